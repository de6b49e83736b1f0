"""How sure a fitted temperature is: resamples against loops, and what is said of doubtful ones.

Run alone: pytest tests/test_temperatures.py
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstcli.api import JSON, PluginOptions
from firstcli.recalibration import temperature_search
from firstcli.recalibration.builtin import (
    LogitTemperature,
    NoRecalibration,
    SingleTemperature,
    TemperatureScaling,
    scale_logits,
    scale_probabilities,
    softmax,
)
from firstcli.recalibration.criteria import CRITERIA, Criterion, among_topk, criterion_value
from firstcli.recalibration.temperature_search import (
    Resampled,
    Rows,
    best_temperature,
    search_hundredths,
    vertex,
)
from firstcli.stages.calibrate import facts_of, judged, warnings
from firstcli.testing.recalibrators import overconfident_teacher

if TYPE_CHECKING:
    import numpy.typing as npt

CLASSES = [TemperatureScaling, LogitTemperature]


def teacher(count: int, seed: int = 0, heat: float = 2.0) -> Rows:
    """Five answers, all kept, by a teacher whose logits are `heat` times too large."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3.0, size=(count, 5))
    drawn = generator.random((count, 1)) > softmax(logits, heat).cumsum(axis=1)
    answer = np.minimum(drawn.sum(axis=1), 4)
    order = np.argsort(-logits, axis=1)
    topk = np.take_along_axis(softmax(logits, 1.0), order, axis=1)
    return Rows(topk, order == answer[:, None], topk.sum(axis=1))


def fitted(cls: type[SingleTemperature], rows: Rows, **options: object) -> SingleTemperature:
    recalibrator = cls(cls.Options.model_validate(options))
    recalibrator.fit(*rows)
    return recalibrator


def state_of(cls: type[SingleTemperature], rows: Rows, **options: object) -> dict[str, Any]:
    return fitted(cls, rows, **options).state()


def repeated(rows: Rows, times: npt.NDArray[np.float64]) -> Rows:
    """Write a resample out."""
    index = np.repeat(np.arange(len(times)), times.astype(int))
    return Rows(rows.topk[index], rows.is_label[index], rows.mass[index])


# --- resamples ----------------------------------------------------------------------------------


def each_resample(resampled: Resampled) -> list[Rows]:
    return [
        repeated(resampled._rows, times[resampled._block]) for times in resampled._times.astype(int)
    ]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("temperature", [0.2, 0.7])
def test_resampled_values_are_those_of_the_rows_written_out(
    criterion: Criterion, temperature: float
) -> None:
    rows = Rows(*overconfident_teacher(5, mass_is_one=False))
    resampled = Resampled(scale_logits, rows, bins=7)
    found = resampled.values(criterion, temperature)
    for value, some in zip(found[:20], each_resample(resampled), strict=False):
        assert len(some.topk) == len(rows.topk)
        target = scale_logits(some.topk, temperature)
        expected = criterion_value(criterion, target, some.is_label, some.mass, bins=7)
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mass_is_one", [False, True])
def test_each_resample_goes_through_the_search_of_a_fit(mass_is_one: bool) -> None:
    rows = Rows(*overconfident_teacher(5, mass_is_one))
    resampled = Resampled(scale_probabilities, rows, bins=10)
    for criterion in ("ece", "brier"):
        found = resampled.temperatures(criterion, lambda value_at, _: search_hundredths(value_at))
        for temperature, some in zip(found[:15], each_resample(resampled), strict=False):
            assert (
                temperature
                == state_of(TemperatureScaling, some, criterion=criterion)["temperature"]
            )


def test_with_mass_one_rows_outside_the_k_do_not_count() -> None:
    rows = Rows(*overconfident_teacher(5, mass_is_one=True))
    inside = rows.where(among_topk(rows.is_label))
    found = Resampled(scale_logits, rows, 10)
    found._times = np.ones((1, len(rows.topk)))
    for criterion in ("nll", "brier"):
        target = scale_logits(inside.topk, 1.5)
        expected = criterion_value(criterion, target, inside.is_label, inside.mass, 10)
        assert found.values(criterion, 1.5)[0] == pytest.approx(expected, rel=1e-12)


def test_groups_of_rows_scatter_as_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = teacher(1000)
    single = state_of(LogitTemperature, rows)["criteria"]
    monkeypatch.setattr(temperature_search, "BLOCKS", 125)
    grouped = state_of(LogitTemperature, rows)["criteria"]
    for criterion in CRITERIA:
        assert grouped[criterion]["temperature"] == single[criterion]["temperature"]
        assert 0.7 < grouped[criterion]["spread"] / single[criterion]["spread"] < 1.4


@pytest.fixture(scope="module", params=CLASSES)
def scattered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Fits of 40 validation parts of the same kind."""
    return [state_of(request.param, teacher(300, seed))["criteria"] for seed in range(40)]


def test_the_spread_is_how_far_fits_on_other_rows_scatter(scattered: list[dict[str, Any]]) -> None:
    for criterion in CRITERIA:
        actual = np.std([state[criterion]["temperature"] for state in scattered])
        told = np.median([state[criterion]["spread"] for state in scattered])
        assert 0.6 < told / actual < 1.6
    # NLL scatters less, as DESIGN says
    assert np.median([one["nll"]["spread"] / one["ece"]["spread"] for one in scattered]) < 0.8


@pytest.mark.parametrize("scattered", [LogitTemperature], indirect=True)
def test_intervals_hold_the_temperature_that_is_true(scattered: list[dict[str, Any]]) -> None:
    intervals = [state["nll"]["interval"] for state in scattered]
    # 38 of 40 on average, and 34 or fewer once in forty times
    assert sum(low <= 2.0 <= high for low, high in intervals) >= 34


@pytest.mark.parametrize("cls", CLASSES)
def test_the_order_of_the_rows_changes_nothing(cls: type[SingleTemperature]) -> None:
    rows = teacher(150)
    order = np.random.default_rng(1).permutation(150)
    once = state_of(cls, rows)
    again = state_of(cls, Rows(rows.topk[order], rows.is_label[order], rows.mass[order]))
    for key in ("temperature", "interval", "spread"):
        assert again[key] == pytest.approx(once[key], rel=1e-9)


def test_vertex_is_exact_for_a_parabola_over_log_t() -> None:
    def value(temperature: float) -> float:
        return 3 * math.log(temperature / 1.7) ** 2 + 0.2

    assert vertex({t: value(t) for t in (1.0, 1.5, 2.5, 3.0)}) == pytest.approx(1.7, rel=1e-12)
    assert vertex({t: value(t) for t in (1.8, 2.0, 3.0)}) == 1.8  # at an end there is none
    assert vertex({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}) == 3.0
    assert vertex({1.0: 0.5, 2.0: 0.4, 3.0: 0.4, 4.0: 0.5}) < 3.0
    assert best_temperature({1.0: 0.5, 2.0: 0.4, 3.0: 0.4, 4.0: 0.5}) == 3.0


# --- what the state says ------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("mass_is_one", [False, True])
def test_every_criterion_is_told_whichever_is_chosen(
    cls: type[SingleTemperature], mass_is_one: bool
) -> None:
    rows = Rows(*overconfident_teacher(5, mass_is_one))
    states = {criterion: state_of(cls, rows, criterion=criterion) for criterion in CRITERIA}
    for criterion, state in states.items():
        assert state["criteria"] == states["ece"]["criteria"]
        assert state["criteria"][criterion] == {
            key: state[key] for key in ("temperature", "interval", "spread", "curve")
        }
        low, high = state["interval"]
        assert low <= state["temperature"] <= high
        assert state["spread"] > 0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_any_number_of_rows(cls: type[SingleTemperature], count: int) -> None:
    state = state_of(cls, teacher(count))
    searched = [t for t, _ in state["curve"]]
    assert state["interval"] == [min(searched), max(searched)]
    assert (state["resamples"], state["flat"], state["few_rows"]) == (0, True, True)
    assert json.loads(json.dumps(state, allow_nan=False)) == state


def test_a_criterion_without_rows_is_left_out() -> None:
    rows = teacher(30)
    outside = Rows(rows.topk, np.zeros_like(rows.is_label), np.ones(30))
    assert set(state_of(LogitTemperature, outside)["criteria"]) == {"ece"}


@pytest.mark.parametrize("cls", CLASSES)
def test_flat_where_rows_hardly_say_which_temperature_is_best(cls: type[SingleTemperature]) -> None:
    assert not state_of(cls, teacher(2000))["flat"]
    assert state_of(cls, teacher(12))["flat"]  # the interval covers most of the range
    single = Rows(np.full((500, 1), 0.7), np.ones((500, 1), dtype=bool), np.full(500, 0.7))
    assert state_of(cls, single)["flat"]  # one token gets everything at any temperature
    even = np.tile([0.2, 0.2, 0.2, 0.2, 0.2], (500, 1))
    first = np.arange(500)[:, None] % 5 == np.arange(5)
    assert state_of(cls, Rows(even, first, np.ones(500)))["flat"]  # equals stay equal


@pytest.mark.parametrize("cls", CLASSES)
def test_many_rows_are_resampled_in_groups(cls: type[SingleTemperature]) -> None:
    rows = teacher(20_000)
    resampled = Resampled(scale_logits, rows, 10)
    assert resampled._times.shape == (temperature_search.RESAMPLES, temperature_search.BLOCKS)
    assert np.bincount(resampled._block).tolist() == [20] * 1000
    assert state_of(cls, rows)["spread"] < state_of(cls, teacher(500))["spread"]


# --- judging and warning ------------------------------------------------------------------------


@pytest.mark.parametrize("mass_is_one", [False, True])
def test_ranks_compare_what_is_believed_with_what_is_so(mass_is_one: bool) -> None:
    topk, is_label, mass = overconfident_teacher(5, mass_is_one)
    recalibrator = LogitTemperature(LogitTemperature.Options(temperature=2.0))
    found = judged(recalibrator, topk, is_label, mass)
    taught = mass[:, None] * scale_logits(topk, 2.0)
    assert [one["rank"] for one in found["ranks"]] == [1, 2, 3, 4, 5]
    for one in found["ranks"]:
        column = one["rank"] - 1
        assert one["confidence_before"] == pytest.approx(topk[:, column].mean(), rel=1e-12)
        assert one["confidence_after"] == pytest.approx(taught[:, column].mean(), rel=1e-12)
        assert one["frequency"] == is_label[:, column].mean()
        assert one["n"] == 240
    assert found["accuracy"] == is_label[:, 0].mean()
    assert found["confidence_after"] == found["ranks"][0]["confidence_after"]
    assert found["state"] == {"temperature": 2.0}
    facts = facts_of(found)
    assert facts.keys().isdisjoint({"temperatures", "interval", "ranks", "state"})


def test_facts_are_short_and_json() -> None:
    rows = teacher(60)
    recalibrator = TemperatureScaling(TemperatureScaling.Options())
    recalibrator.fit(*rows)
    found = judged(recalibrator, *rows)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    facts = facts_of(found)
    assert facts["interval"] == recalibrator.state()["interval"]
    assert facts["temperatures"].keys() == set(CRITERIA)
    assert len(json.dumps(facts)) < 600


def test_a_sure_temperature_is_not_warned_of() -> None:
    assert warnings("arms.first", fitted(TemperatureScaling, teacher(1000))) == []
    assert (
        warnings("arms.first", TemperatureScaling(TemperatureScaling.Options(temperature=1))) == []
    )
    assert warnings("arms.first", NoRecalibration(PluginOptions())) == []


def test_warnings_name_arm_temperature_interval_and_what_to_do() -> None:
    few = fitted(LogitTemperature, teacher(12))
    state = few.state()
    low, high = state["interval"]
    begin = (
        f"arms.first: T = {state['temperature']:.3g}, fitted by ece on 12 rows "
        f"(95 % interval {low:.3g} to {high:.3g}), "
    )
    [told] = warnings("arms.first", few)
    assert told.startswith(f"{begin}would scatter by about {state['spread']:.2g}")
    assert "raise train.validation" in told

    flat = LogitTemperature(LogitTemperature.Options())
    flat.restore({**state, "few_rows": False})
    [told] = warnings("arms.first", flat)
    assert told.startswith(f"{begin}is hardly determined")

    always = np.zeros((400, 3), dtype=bool)
    always[:, 0] = True
    right = Rows(np.tile([0.5, 0.3, 0.2], (400, 1)), always, np.ones(400))
    [told] = warnings("arms.first", fitted(TemperatureScaling, right))
    assert "lies at the end of the searched range" in told


def test_other_plugins_may_keep_anything_in_their_state() -> None:
    class Other(NoRecalibration):
        def state(self) -> dict[str, JSON]:
            return {"interval": "none", "criteria": [1], "temperature": {}}

    topk, is_label, mass = teacher(20)
    found = facts_of(judged(Other(PluginOptions()), topk, is_label, mass))
    assert found.keys().isdisjoint({"interval", "criteria", "temperature", "temperatures"})
    assert warnings("arms.other", Other(PluginOptions())) == []
