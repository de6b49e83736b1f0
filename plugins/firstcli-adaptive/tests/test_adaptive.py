"""The plugin's own behaviour; `firstcli.testing` checks the contract of recalibrators."""

from __future__ import annotations

import json
import math
from typing import Any

import firstcli_adaptive
import numpy as np
import pytest
from firstcli_adaptive import Adaptive, features, objective, standardisation, standardised
from scipy.optimize import minimize_scalar

from firstcli.api import FloatArray, MassMode, PluginOptions, UserError
from firstcli.testing import FitInputs, check_recalibrator, overconfident_teacher


def softmax(logits: FloatArray) -> FloatArray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def tempered(topk: FloatArray, temperature: Any) -> FloatArray:
    """Return p^(1/T), normalised; T is a number or one per row, (N, 1)."""
    return softmax(np.log(topk) / temperature)


def best_single_temperature(inputs: FitInputs) -> float:
    """Return the T that minimises the NLL of the labels in the top k."""
    used = inputs.rows(inputs.is_label.any(axis=1))
    result = minimize_scalar(
        lambda log_t: nll(tempered(used.topk, np.exp(log_t)), used),
        bounds=(math.log(0.1), math.log(10)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return math.exp(result.x)


def fitted(inputs: FitInputs) -> Adaptive:
    adaptive = Adaptive(PluginOptions())
    adaptive.fit(*inputs)
    return adaptive


def teacher(count: int, heats: tuple[float, float], seed: int = 0) -> FitInputs:
    """Simulate sharp rows that are over-confident by the first factor, flat rows by the second."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=generator.choice([1.0, 4.0], (count, 1)), size=(count, 5))
    sharp = np.sort(softmax(logits), axis=1)[:, -1] > 0.8
    heat = np.where(sharp, *heats)[:, None]
    drawn = generator.random((count, 1)) > softmax(logits / heat).cumsum(axis=1)
    order = np.argsort(-logits, axis=1)
    topk = np.take_along_axis(softmax(logits), order, axis=1)
    is_label = order == np.minimum(drawn.sum(axis=1), 4)[:, None]
    return FitInputs(topk, is_label, topk.sum(axis=1), "teacher")


def nll(target: FloatArray, inputs: FitInputs) -> float:
    return -float(np.log((target * inputs.is_label).sum(axis=1)).mean())


def test_conforms() -> None:
    check_recalibrator(Adaptive)


def test_features_are_entropy_margin_and_tail() -> None:
    row = [0.6, 0.2, 0.1]
    shares = [value / sum(row) for value in row]
    expected = [
        -sum(share * math.log(share) for share in shares),
        math.log(0.6) - math.log(0.2),
        math.log(0.1),
    ]
    np.testing.assert_allclose(features(np.array([row]))[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1.0, 0.0, 0.0], [0.0, math.log(1e12), math.log(1e-4)]),
        ([1 / 3] * 3, [math.log(3), 0.0, math.log(1e-4)]),
        ([1e-45, 1e-45, 0.0], [math.log(2), 0.0, 0.0]),
        ([0.5], [0.0, 0.0, math.log(0.5)]),
    ],
)
def test_features_of_extreme_rows(row: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(features(np.array([row]))[0], expected, rtol=1e-12, atol=1e-15)


def test_standardised_features_are_clipped_to_the_range_of_the_fit() -> None:
    raw = np.array([[0.0, 1.0, 7.0], [2.0, 3.0, 7.0]])
    scale = standardisation(raw)
    np.testing.assert_allclose(standardised(raw, scale), [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_allclose(standardised(np.array([[-9.0, 9.0, 9.0]]), scale), [[-1, 1, 0]])


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_the_gradient_is_that_of_finite_differences(strength: float) -> None:
    inputs = overconfident_teacher(5, "teacher")
    inputs = inputs.rows(inputs.is_label.any(axis=1))
    raw = features(inputs.topk)
    scaled = standardised(raw, standardisation(raw))
    data = firstcli_adaptive._data(inputs.topk, inputs.is_label, scaled)
    weights = np.array([0.5, 0.2, -0.3, 0.1])
    value, gradient = objective(weights, data, strength)
    temperatures = np.exp(weights[0] + scaled @ weights[1:])
    expected = nll(tempered(inputs.topk, temperatures[:, None]), inputs)
    penalty = strength * (0.2**2 + 0.3**2 + 0.1**2) / 2
    assert value == pytest.approx(expected + penalty, rel=1e-12)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        rise = objective(weights + step, data, strength)[0]
        fall = objective(weights - step, data, strength)[0]
        assert gradient[i] == pytest.approx((rise - fall) / 2e-6, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_one_temperature_for_all_minimises_the_nll(
    mass_mode: MassMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firstcli_adaptive, "STRENGTHS", (math.inf,))
    inputs = overconfident_teacher(5, mass_mode)
    adaptive = fitted(inputs)
    assert adaptive.state()["weights"][1:] == [0.0, 0.0, 0.0]
    temperature = best_single_temperature(inputs)
    assert adaptive.state()["temperature_of_all"] == pytest.approx(temperature, rel=1e-6)
    np.testing.assert_allclose(adaptive.temperatures(inputs.topk), temperature, rtol=1e-6)
    expected = tempered(inputs.topk, temperature)
    np.testing.assert_allclose(adaptive.transform(inputs.topk), expected, atol=1e-6)


def test_a_teacher_that_needs_one_temperature_gets_one() -> None:
    strengths = [fitted(teacher(200, (2.0, 2.0), seed)).state()["strength"] for seed in range(10)]
    assert sum(strength is None for strength in strengths) >= 7


def test_a_teacher_that_needs_two_gets_more_than_one() -> None:
    train, test = teacher(2000, (3.0, 1.0)), teacher(2000, (3.0, 1.0), seed=1)
    adaptive = fitted(train)
    assert adaptive.state()["strength"] is not None
    single = tempered(test.topk, best_single_temperature(train))
    assert nll(adaptive.transform(test.topk), test) < nll(single, test) - 0.01
    sharp = adaptive.temperatures(np.array([[0.96, 0.01, 0.01, 0.01, 0.01]]))
    even = adaptive.temperatures(np.array([[0.24, 0.2, 0.2, 0.18, 0.18]]))
    assert sharp > 1.5 * even


def test_few_rows_share_a_temperature() -> None:
    few = fitted(teacher(2000, (3.0, 1.0)).rows(slice(99)))
    assert few.state()["strength"] is None
    assert few.diagnostics().facts["strength"] is None
    [warning] = few.diagnostics().warnings
    assert warning.startswith("99 rows are too few to predict a temperature per row")
    assert len(set(few.temperatures(np.array([[0.9, 0.05], [0.5, 0.4]])).tolist())) == 1


def test_the_state_is_json_and_restores_everything() -> None:
    inputs = teacher(2000, (3.0, 1.0))
    adaptive = fitted(inputs)
    restored = Adaptive(PluginOptions())
    restored.restore(json.loads(json.dumps(adaptive.state(), allow_nan=False)))
    np.testing.assert_array_equal(restored.transform(inputs.topk), adaptive.transform(inputs.topk))
    assert not restored.diagnostics().warnings


def test_temperatures_stay_within_a_factor_of_ten() -> None:
    adaptive = Adaptive(PluginOptions())
    sides = {"centre": [0.0] * 3, "scale": [1.0] * 3, "low": [-9.0] * 3, "high": [9.0] * 3}
    adaptive.restore({"weights": [0.0, 50.0, -50.0, 0.0], **sides})
    temperatures = adaptive.temperatures(np.array([[0.5, 0.5], [0.999, 0.001]]))
    np.testing.assert_allclose(temperatures, [10.0, 0.1])


def test_rows_that_do_not_determine_a_temperature_are_rejected() -> None:
    topk = np.tile([0.6, 0.3, 0.0], (4, 1))
    zero = np.tile([False, False, True], (4, 1))
    for is_label in (zero, np.zeros((4, 3), dtype=bool)):
        with pytest.raises(UserError, match="none of the 4 labels"):
            Adaptive(PluginOptions()).fit(topk, is_label, np.ones(4), "one")
    no_rows = FitInputs(np.ones((0, 5)), np.ones((0, 5), dtype=bool), np.ones(0), "one")
    with pytest.raises(UserError, match="none of the 0 labels"):
        fitted(no_rows)


def test_it_says_what_it_learned() -> None:
    adaptive = Adaptive(PluginOptions())
    adaptive.restore({"strength": None, "temperature_of_all": 1.789, "weights": [0.58, 0, 0, 0]})
    assert adaptive.summary() == "T = 1.79 for all rows"
    adaptive.restore({"strength": 0.1, "weights": [0.5, 0.25, -0.1, 0.031]})
    assert adaptive.summary() == "log T by entropy +0.25, margin -0.1, log tail +0.031"
