"""The four built-in recalibrators against plain-Python references, the paper and scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from firstcli import plugins
from firstcli.api import PluginOptions, Recalibrator
from firstcli.errors import UserError
from firstcli.metrics import ece
from firstcli.recalibration.builtin import (
    LabelSmoothing,
    LogitTemperature,
    NoRecalibration,
    SingleTemperature,
    TemperatureScaling,
    scale_logits,
    softmax,
)
from firstcli.recalibration.criteria import criterion_value
from firstcli.recalibration.temperature_search import search_hundredths, search_log_spaced
from firstcli.testing import FitInputs, check_recalibrator, overconfident_teacher
from support.recalibration import fitted

if TYPE_CHECKING:
    import numpy.typing as npt

    from firstcli.api import BoolArray, FloatArray, MassMode

TEACHER = np.array(
    [
        [0.7, 0.15, 0.08, 0.04, 0.02],
        [0.9999, 2e-5, 1e-5, 1e-6, 1e-45],
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.2, 0.2, 0.2, 0.2, 0.2],
        [2e-5, 2e-5, 1e-5, 1e-5, 1e-5],
    ]
)


@st.composite
def teachers(draw: st.DrawFn, smallest_k: int = 1) -> FloatArray:
    """Rows as a teacher gives them: descending, the first above 0, summing to 1 or less."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(smallest_k, 6)))
    logits = draw(arrays(np.float64, shape, elements=st.floats(-120, 0)))
    share = draw(st.floats(1e-6, 1))
    ranked = -np.sort(-logits, axis=1)
    weights = np.exp(ranked - ranked[:, :1])
    topk: FloatArray = share * weights / weights.sum(axis=1, keepdims=True)
    return topk


def fitted_temperature(
    cls: type[SingleTemperature], inputs: FitInputs, **options: object
) -> tuple[float, dict[str, Any]]:
    state = fitted(cls, inputs, **options).state()
    return state["temperature"], state


# --- formulas -----------------------------------------------------------------------------------


def reference_none(p: list[float]) -> list[float]:
    return [(x + 1e-6) / sum(y + 1e-6 for y in p) for x in p]


def reference_label_smoothing(p: list[float], delta: float) -> list[float]:
    shares = [x / sum(p) for x in p]
    moved = [shares[0] - delta, *(x + delta / (len(p) - 1) for x in shares[1:])]
    clipped = [max(x, 1e-6) for x in moved]
    return [x / sum(clipped) for x in clipped]


def reference_eq4(p: list[float], temperature: float) -> list[float]:
    with localcontext(prec=50):
        scaled = [(Decimal(x) / Decimal(temperature)).exp() for x in p]
        return [float(x / sum(scaled)) for x in scaled]


def reference_power(p: list[float], temperature: float) -> list[float]:
    with localcontext(prec=50):
        scaled = [Decimal(x) ** (1 / Decimal(temperature)) if x else Decimal(0) for x in p]
        return [float(x / sum(scaled)) for x in scaled]


def assert_rows(target: FloatArray, reference: Callable[[list[float]], list[float]]) -> None:
    expected = [reference(row) for row in TEACHER.tolist()]
    np.testing.assert_allclose(target, expected, rtol=1e-12, atol=1e-300)


def test_none_adds_epsilon_and_normalises() -> None:
    assert_rows(NoRecalibration(PluginOptions()).transform(TEACHER), reference_none)


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.5, 0.99])
def test_label_smoothing_is_eq_3_on_shares(delta: float) -> None:
    target = LabelSmoothing(LabelSmoothing.Options(delta=delta)).transform(TEACHER)
    assert_rows(target, lambda p: reference_label_smoothing(p, delta))


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.3, 1.0, 50.0])
def test_temperature_scaling_is_eq_4(temperature: float) -> None:
    target = softmax(TEACHER, temperature)
    assert_rows(target, lambda p: reference_eq4(p, temperature))


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0, 10.0, 1000.0])
def test_logit_temperature_is_a_power(temperature: float) -> None:
    target = scale_logits(TEACHER, temperature)
    assert_rows(target, lambda p: reference_power(p, temperature))


def test_label_smoothing_can_swap_the_first_two() -> None:
    target = LabelSmoothing(LabelSmoothing.Options(delta=0.3)).transform(np.array([[0.5, 0.4]]))
    assert target[0, 0] < target[0, 1]


def test_eq_4_has_the_effects_of_section_5_5() -> None:
    overconfident = np.array([[0.97, 0.015, 0.008, 0.005, 0.002]])
    large = softmax(overconfident, 1000.0)
    np.testing.assert_allclose(large, 0.2, atol=1e-3)
    one = softmax(overconfident, 1.0)
    assert one[0, 0] < 0.42  # the first is compressed dramatically
    assert (one[0, 1:] > overconfident[0, 1:]).all()  # and the other tokens enlarged
    tenth = softmax(overconfident, 0.1)
    assert tenth[0, 0] > overconfident[0, 0]  # more confident than before


@given(teachers(), st.floats(0.02, 10))
def test_temperatures_preserve_order_and_sum_to_1(topk: FloatArray, temperature: float) -> None:
    for target in (softmax(topk, temperature), scale_logits(topk, temperature)):
        assert np.isfinite(target).all() and (target >= 0).all()
        np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-12)
        assert (np.diff(target, axis=1) <= 1e-12).all()


@given(teachers())
def test_logit_temperature_1_only_normalises(topk: FloatArray) -> None:
    shares = topk / topk.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scale_logits(topk, 1.0), shares, rtol=1e-12)


@given(teachers(), st.floats(0.1, 10), st.floats(1e-6, 1))
def test_logit_temperature_ignores_the_mass(
    topk: FloatArray, temperature: float, share: float
) -> None:
    scaled = scale_logits(share * topk, temperature)
    np.testing.assert_allclose(scaled, scale_logits(topk, temperature), atol=1e-11)


@given(teachers(smallest_k=2), st.floats(0, 0.999))
def test_label_smoothing_sums_to_1_and_leaves_no_zero(topk: FloatArray, delta: float) -> None:
    target = LabelSmoothing(LabelSmoothing.Options(delta=delta)).transform(topk)
    np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-12)
    assert (target >= 0.5e-6).all()  # clipping the first at most doubles the sum


@given(teachers(), st.floats(0.02, 1), st.floats(1.01, 5))
def test_a_higher_temperature_is_never_more_confident(
    topk: FloatArray, temperature: float, factor: float
) -> None:
    for scale in (softmax, scale_logits):
        cold, hot = scale(topk, temperature), scale(topk, factor * temperature)
        assert (hot[:, 0] <= cold[:, 0] + 1e-12).all()


# --- criteria -----------------------------------------------------------------------------------


def reference_criterion(
    criterion: str, target: FloatArray, is_label: BoolArray, mass: FloatArray
) -> float:
    """Plain loops over k + 1 outcomes."""
    total = 0.0
    for row, hits, m in zip(target.tolist(), is_label.tolist(), mass.tolist(), strict=True):
        soft_target = [m * x for x in row] + [1 - m]
        outcome = [*hits, not any(hits)]
        if criterion == "nll":
            total -= math.log(max(soft_target[outcome.index(True)], 1e-12))
        else:
            total += sum((x - y) ** 2 for x, y in zip(soft_target, outcome, strict=True))
    return total / len(target)


@pytest.mark.parametrize("criterion", ["nll", "brier"])
def test_nll_and_brier_run_over_k_plus_1_outcomes(criterion: Literal["nll", "brier"]) -> None:
    topk, is_label, mass, _ = overconfident_teacher(5, mass_mode="teacher")
    assert not is_label.any(axis=1).all()
    target = scale_logits(topk, 1.5)
    value = criterion_value(criterion, target, is_label, mass, bins=10)
    assert value == pytest.approx(reference_criterion(criterion, target, is_label, mass), rel=1e-12)


def test_ece_is_that_of_the_soft_targets() -> None:
    topk, is_label, mass, _ = overconfident_teacher(5, mass_mode="teacher")
    target = softmax(topk, 0.3)
    value = criterion_value("ece", target, is_label, mass, bins=7)
    assert value == ece(mass * target[:, 0], is_label[:, 0], bins=7)


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
@pytest.mark.parametrize("criterion", ["nll", "brier"])
def test_with_mass_one_rows_without_their_label_do_not_count(
    cls: type[SingleTemperature], criterion: str
) -> None:
    inputs = overconfident_teacher(5, mass_mode="one")
    inside = inputs.is_label.any(axis=1)
    temperature, state = fitted_temperature(cls, inputs, criterion=criterion)
    assert temperature == fitted_temperature(cls, inputs.rows(inside), criterion=criterion)[0]
    assert (state["rows"], state["rows_left_out"]) == (inside.sum(), (~inside).sum())


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
@pytest.mark.parametrize("criterion", ["nll", "brier"])
def test_a_teacher_with_all_its_mass_in_the_top_k_is_not_mass_one(
    cls: type[SingleTemperature], criterion: str
) -> None:
    """The mode decides which rows count, not the values of the mass."""
    inputs = overconfident_teacher(5, mass_mode="one")._replace(mass_mode="teacher")
    assert (inputs.mass == 1).all() and not inputs.is_label.any(axis=1).all()
    state = fitted_temperature(cls, inputs, criterion=criterion)[1]
    assert (state["rows"], state["rows_left_out"]) == (len(inputs.topk), 0)


def test_ece_counts_every_row_with_mass_one() -> None:
    inputs = overconfident_teacher(5, mass_mode="one")
    assert fitted_temperature(TemperatureScaling, inputs)[1]["rows"] == len(inputs.topk)


# --- searching T --------------------------------------------------------------------------------


def naive_hundredths(inputs: FitInputs) -> tuple[float, dict[float, float]]:
    """The search of section 5.5, with T in hundredths."""

    def value(count: int) -> float:
        target = np.array([reference_eq4(row, count / 100) for row in inputs.topk.tolist()])
        return ece(inputs.mass * target[:, 0], inputs.is_label[:, 0], bins=10)

    def best(values: dict[int, float]) -> int:
        return max(count for count in values if values[count] == min(values.values()))

    values = {count: value(count) for count in range(10, 101, 10)}
    centre = best(values)
    for count in range(centre - 10, centre + 11, 2):
        if 1 <= count <= 100:
            values[count] = value(count)
    return best(values) / 100, {count / 100: values[count] for count in sorted(values)}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_temperature_scaling_is_fitted_as_in_the_paper(seed: int, mass_mode: MassMode) -> None:
    inputs = overconfident_teacher(5, mass_mode, seed)
    temperature, state = fitted_temperature(TemperatureScaling, inputs)
    expected, curve = naive_hundredths(inputs)
    assert temperature == expected
    assert [t for t, _ in state["curve"]] == list(curve)
    np.testing.assert_allclose([v for _, v in state["curve"]], list(curve.values()), atol=1e-12)


@pytest.mark.parametrize(
    ("lowest", "finer"),
    [
        (0.10, [0.02, 0.04, 0.06, 0.08, 0.12, 0.14, 0.16, 0.18]),
        (0.30, [0.22, 0.24, 0.26, 0.28, 0.32, 0.34, 0.36, 0.38]),
        (1.00, [0.92, 0.94, 0.96, 0.98]),
    ],
)
def test_hundredths_stay_within_0_and_1(lowest: float, finer: list[float]) -> None:
    evaluated: list[float] = []

    def value_at(temperature: float) -> float:
        evaluated.append(temperature)
        return abs(temperature - lowest)

    curve = search_hundredths(value_at)
    coarse = [count / 100 for count in range(10, 101, 10)]
    assert list(curve) == sorted(coarse + finer)  # exact: 0.3 is never 0.30000000000000004
    assert set(evaluated) == set(curve)


def test_ties_go_to_the_larger_temperature() -> None:
    certain = FitInputs(np.ones((300, 1)), np.ones((300, 1), dtype=bool), np.ones(300), "one")
    temperature, state = fitted_temperature(TemperatureScaling, certain)
    assert (temperature, state["at_grid_end"]) == (1.0, True)
    assert fitted_temperature(LogitTemperature, certain)[0] == 10.0


def test_log_spaced_grid_and_its_refinement() -> None:
    def value_at(temperature: float) -> float:
        return (math.log(temperature) - math.log(1.7)) ** 2

    finer = search_log_spaced(value_at, unimodal=False)
    exact = search_log_spaced(value_at, unimodal=True)
    for curve in (finer, exact):
        assert (min(curve), max(curve)) == (0.1, 10.0)
        assert list(curve) == sorted(curve)
        assert set(np.geomspace(0.1, 10, 40).tolist()) <= set(curve)
    assert min(finer, key=finer.__getitem__) == pytest.approx(1.7, rel=0.005)
    assert min(exact, key=exact.__getitem__) == pytest.approx(1.7, rel=1e-7)


@pytest.mark.parametrize("classes", [2, 5])
def test_nll_finds_the_temperature_of_scikit_learn(classes: int) -> None:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class GivenLogits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def fit(self, X: FloatArray, y: npt.NDArray[np.int64]) -> GivenLogits:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X: FloatArray) -> FloatArray:
            # for two classes it takes one number x per row, the logits (-x, x)
            return X if classes > 2 else (X[:, 1] - X[:, 0]) / 2

        def predict(self, X: FloatArray) -> npt.NDArray[np.int64]:
            predicted: npt.NDArray[np.int64] = X.argmax(axis=1)
            return predicted

    generator = np.random.default_rng(3)
    logits = generator.normal(scale=3.0, size=(800, classes))
    honest = softmax(logits, 2.2)  # the softmax of logits / 2.2
    labels = np.array([generator.choice(classes, p=row) for row in honest])
    frozen = FrozenEstimator(GivenLogits().fit(logits, labels))
    calibrated = CalibratedClassifierCV(frozen, method="temperature").fit(logits, labels)
    expected = 1 / calibrated.calibrated_classifiers_[0].calibrators[0].beta_

    claimed = softmax(logits, 1.0)
    order = np.argsort(-claimed, axis=1)
    ranked = np.take_along_axis(claimed, order, axis=1)
    inputs = FitInputs(ranked, order == labels[:, None], np.ones(800), "one")
    temperature, _ = fitted_temperature(LogitTemperature, inputs, criterion="nll")
    assert temperature == pytest.approx(2.2, rel=0.15)
    assert temperature == pytest.approx(cast("float", expected), rel=1e-6)
    np.testing.assert_allclose(
        scale_logits(ranked, temperature),
        np.take_along_axis(calibrated.predict_proba(logits), order, axis=1),
        atol=1e-6,
    )


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
@pytest.mark.parametrize("criterion", ["ece", "nll", "brier"])
def test_fitting_calibrates_an_overconfident_teacher(
    cls: type[SingleTemperature], criterion: str
) -> None:
    inputs = overconfident_teacher(5, mass_mode="teacher", seed=5)
    before = ece(inputs.topk[:, 0], inputs.is_label[:, 0])
    recalibrator = cls(cls.Options.model_validate({"criterion": criterion}))
    recalibrator.fit(*inputs)
    after = inputs.mass * recalibrator.transform(inputs.topk)[:, 0]
    assert ece(after, inputs.is_label[:, 0]) < 0.7 * before


@settings(max_examples=20)
@given(st.permutations(range(60)))
def test_the_order_of_the_rows_does_not_matter(order: list[int]) -> None:
    inputs = overconfident_teacher(3, mass_mode="teacher").rows(slice(60))
    for cls in (TemperatureScaling, LogitTemperature):
        expected = fitted_temperature(cls, inputs)[0]
        assert fitted_temperature(cls, inputs.rows(order))[0] == pytest.approx(expected, rel=1e-9)


# --- the state ----------------------------------------------------------------------------------


def test_the_state_describes_the_fit() -> None:
    inputs = overconfident_teacher(5, mass_mode="teacher")
    temperature, state = fitted_temperature(TemperatureScaling, inputs, criterion="brier")
    lowest = min(value for _, value in state["curve"])
    assert [temperature, lowest] in state["curve"]
    tested_elsewhere = ("curve", "temperature", "interval", "spread", "criteria")
    assert {key: state[key] for key in state if key not in tested_elsewhere} == {
        "criterion": "brier",
        "resamples": 200,
        "flat": False,
        "rows": 240,
        "rows_left_out": 0,
        "floored": 0,
        "at_grid_end": False,
        "few_rows": False,
    }


def test_the_state_marks_a_grid_end_and_few_rows() -> None:
    topk = np.tile([0.5, 0.3, 0.2], (199, 1))
    never = FitInputs(topk, np.zeros((199, 3), dtype=bool), np.ones(199), "one")
    temperature, state = fitted_temperature(LogitTemperature, never)
    assert (temperature, state["at_grid_end"], state["few_rows"]) == (10.0, True, True)
    always = np.zeros((199, 3), dtype=bool)
    always[:, 0] = True
    right = FitInputs(topk, always, np.ones(199), "one")
    temperature, state = fitted_temperature(TemperatureScaling, right)
    assert state["at_grid_end"]
    assert temperature <= 0.10


def test_floored_likelihoods_are_counted() -> None:
    topk = np.tile([0.9, 0.1, 0.0], (10, 1))
    is_label = np.zeros((10, 3), dtype=bool)
    is_label[:7, 0] = is_label[7:, 2] = True  # three labels with probability 0
    _, state = fitted_temperature(
        LogitTemperature, FitInputs(topk, is_label, np.ones(10), "one"), criterion="nll"
    )
    assert state["floored"] == 3


def test_a_mass_that_float32_rounded_above_1_is_taken_as_1() -> None:
    inputs = overconfident_teacher(5, mass_mode="one")
    rounded = inputs._replace(mass=np.full(len(inputs.topk), 1 + 1e-7))
    expected = fitted_temperature(TemperatureScaling, inputs)
    assert fitted_temperature(TemperatureScaling, rounded) == expected


# --- options and mistakes -----------------------------------------------------------------------


def test_a_given_temperature_needs_no_fit_and_survives_one() -> None:
    recalibrator = TemperatureScaling(TemperatureScaling.Options.model_validate({"temperature": 1}))
    assert not recalibrator.needs_fit
    recalibrator.fit(*overconfident_teacher(5, mass_mode="teacher"))
    assert recalibrator.state() == {"temperature": 1.0}
    np.testing.assert_array_equal(recalibrator.transform(TEACHER), softmax(TEACHER, 1.0))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LabelSmoothing, {"delta": 1.0}),
        (LabelSmoothing, {"delta": -0.1}),
        (LabelSmoothing, {"delta": math.nan}),
        (LabelSmoothing, {"delta": "0.1"}),
        (TemperatureScaling, {"temperature": 0}),
        (TemperatureScaling, {"temperature": 1.01}),
        (TemperatureScaling, {"temperature": True}),
        (TemperatureScaling, {"criterion": "accuracy"}),
        (TemperatureScaling, {"bins": 0}),
        (LogitTemperature, {"temperature": 0.0}),
        (LogitTemperature, {"temperature": math.inf}),
        (LogitTemperature, {"temprature": 1.0}),
        (NoRecalibration, {"temperature": 1.0}),
    ],
)
def test_wrong_options_are_refused(
    cls: type[Recalibrator[Any]], options: dict[str, object]
) -> None:
    with pytest.raises(ValidationError):
        cls.Options.model_validate(options)


def test_label_smoothing_refuses_a_single_token() -> None:
    with pytest.raises(UserError, match=r"top_k is 1"):
        LabelSmoothing(LabelSmoothing.Options()).transform(np.ones((2, 1)))


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
def test_rows_that_determine_no_fit_are_a_user_error(cls: type[SingleTemperature]) -> None:
    no_rows = FitInputs(np.ones((0, 5)), np.ones((0, 5), dtype=bool), np.ones(0), "one")
    with pytest.raises(UserError, match=r"has no rows; raise train\.validation"):
        fitted_temperature(cls, no_rows)
    outside = FitInputs(TEACHER, np.zeros((5, 5), dtype=bool), np.ones(5), "one")
    with pytest.raises(UserError, match="none of the 5 labels"):
        fitted_temperature(cls, outside, criterion="nll")


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
def test_transform_before_fit_is_a_bug(cls: type[SingleTemperature]) -> None:
    with pytest.raises(RuntimeError, match="fit or restore"):
        cls(cls.Options()).transform(TEACHER)


@pytest.mark.parametrize(
    "cls", [NoRecalibration, LabelSmoothing, TemperatureScaling, LogitTemperature]
)
def test_every_recalibrator_conforms(cls: type[Recalibrator[Any]]) -> None:
    check_recalibrator(cls)


@pytest.mark.parametrize("cls", [TemperatureScaling, LogitTemperature])
@pytest.mark.parametrize(
    "options", [{"criterion": "nll"}, {"criterion": "brier"}, {"temperature": 0.02}]
)
def test_every_option_conforms(cls: type[Recalibrator[Any]], options: dict[str, object]) -> None:
    check_recalibrator(cls, options)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("none", NoRecalibration),
        ("label-smoothing", LabelSmoothing),
        ("temperature-scaling", TemperatureScaling),
        ("logit-temperature", LogitTemperature),
    ],
)
def test_recipes_find_them_by_name(name: str, cls: type) -> None:
    assert plugins.load("recalibrators", name) is cls
