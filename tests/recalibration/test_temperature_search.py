"""Uncertainty of a fitted temperature: resamples against loops, intervals and flags."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firstcli.recalibration import temperature_search
from firstcli.recalibration.builtin import (
    LogitTemperature,
    SingleTemperature,
    TemperatureScaling,
    scale_logits,
    softmax,
)
from firstcli.recalibration.criteria import CRITERIA, Criterion, criterion_value, in_top_k
from firstcli.recalibration.temperature_search import (
    Resampled,
    best_temperature,
    search_hundredths,
    vertex,
)
from firstcli.testing import FitInputs, overconfident_teacher
from support.recalibration import fitted

if TYPE_CHECKING:
    import numpy.typing as npt

    from firstcli.api import MassMode

CLASSES = [TemperatureScaling, LogitTemperature]


def teacher(count: int, seed: int = 0, heat: float = 2.0) -> FitInputs:
    """Simulate a teacher of five answers, all in the top k, with logits `heat` times too large."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3.0, size=(count, 5))
    drawn = generator.random((count, 1)) > softmax(logits, heat).cumsum(axis=1)
    answer = np.minimum(drawn.sum(axis=1), 4)
    order = np.argsort(-logits, axis=1)
    topk = np.take_along_axis(softmax(logits, 1.0), order, axis=1)
    return FitInputs(topk, order == answer[:, None], topk.sum(axis=1), "teacher")


def state_of(cls: type[SingleTemperature], rows: FitInputs, **options: object) -> dict[str, Any]:
    return fitted(cls, rows, **options).state()


def repeated(rows: FitInputs, times: npt.NDArray[np.float64]) -> FitInputs:
    """Return the rows of a resample, each as often as it was drawn."""
    return rows.rows(np.repeat(np.arange(len(times)), times.astype(int)))


# --- resamples ----------------------------------------------------------------------------------


def each_resample(resampled: Resampled) -> list[FitInputs]:
    return [
        repeated(resampled._rows, times[resampled._block]) for times in resampled._times.astype(int)
    ]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("temperature", [0.2, 0.7])
def test_resampled_values_are_those_of_the_resampled_rows(
    criterion: Criterion, temperature: float
) -> None:
    rows = FitInputs(*overconfident_teacher(5, mass_mode="teacher"))
    resampled = Resampled(scale_logits, rows, bins=7)
    values = resampled.values(criterion, temperature)
    for value, resample in zip(values[:20], each_resample(resampled), strict=False):
        assert len(resample.topk) == len(rows.topk)
        target = scale_logits(resample.topk, temperature)
        expected = criterion_value(criterion, target, resample.is_label, resample.mass, bins=7)
        assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_each_resample_goes_through_the_search_of_a_fit(mass_mode: MassMode) -> None:
    rows = FitInputs(*overconfident_teacher(5, mass_mode))
    resampled = Resampled(softmax, rows, bins=10)
    for criterion in ("ece", "brier"):
        temperatures = resampled.temperatures(criterion, lambda f, _: search_hundredths(f))
        for temperature, resample in zip(temperatures[:15], each_resample(resampled), strict=False):
            state = state_of(TemperatureScaling, resample, criterion=criterion)
            assert temperature == state["temperature"]


def test_with_mass_one_rows_outside_the_k_do_not_count() -> None:
    rows = FitInputs(*overconfident_teacher(5, mass_mode="one"))
    inside = rows.rows(in_top_k(rows.is_label))
    resampled = Resampled(scale_logits, rows, 10)
    resampled._times = np.ones((1, len(rows.topk)))
    for criterion in ("nll", "brier"):
        target = scale_logits(inside.topk, 1.5)
        expected = criterion_value(criterion, target, inside.is_label, inside.mass, 10)
        assert resampled.values(criterion, 1.5)[0] == pytest.approx(expected, rel=1e-12)


def test_blocks_of_rows_scatter_like_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = teacher(1000)
    single = state_of(LogitTemperature, rows)["criteria"]
    monkeypatch.setattr(temperature_search, "MAX_BLOCKS", 125)
    blocks = state_of(LogitTemperature, rows)["criteria"]
    for criterion in CRITERIA:
        assert blocks[criterion]["temperature"] == single[criterion]["temperature"]
        assert 0.7 < blocks[criterion]["spread"] / single[criterion]["spread"] < 1.4


@pytest.fixture(scope="module", params=CLASSES)
def scattered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Return the criteria of fits on 40 validation parts of one teacher."""
    return [state_of(request.param, teacher(300, seed))["criteria"] for seed in range(40)]


def test_the_spread_predicts_the_scatter_over_validation_parts(
    scattered: list[dict[str, Any]],
) -> None:
    for criterion in CRITERIA:
        actual = np.std([state[criterion]["temperature"] for state in scattered])
        predicted = np.median([state[criterion]["spread"] for state in scattered])
        assert 0.6 < predicted / actual < 1.6
    ratios = [state["nll"]["spread"] / state["ece"]["spread"] for state in scattered]
    assert np.median(ratios) < 0.8  # NLL scatters less


@pytest.mark.parametrize("scattered", [LogitTemperature], indirect=True)
def test_intervals_cover_the_true_temperature(scattered: list[dict[str, Any]]) -> None:
    intervals = [state["nll"]["interval"] for state in scattered]
    # 38 of 40 on average; 34 or fewer in one of forty cases
    assert sum(low <= 2.0 <= high for low, high in intervals) >= 34


@pytest.mark.parametrize("cls", CLASSES)
def test_the_order_of_the_rows_changes_nothing(cls: type[SingleTemperature]) -> None:
    rows = teacher(150)
    order = np.random.default_rng(1).permutation(150)
    once = state_of(cls, rows)
    again = state_of(cls, rows.rows(order))
    for key in ("temperature", "interval", "spread"):
        assert again[key] == pytest.approx(once[key], rel=1e-9)


def test_vertex_is_exact_for_a_parabola_over_log_t() -> None:
    def value(temperature: float) -> float:
        return 3 * math.log(temperature / 1.7) ** 2 + 0.2

    assert vertex({t: value(t) for t in (1.0, 1.5, 2.5, 3.0)}) == pytest.approx(1.7, rel=1e-12)
    assert vertex({t: value(t) for t in (1.8, 2.0, 3.0)}) == 1.8  # no parabola at an end
    assert vertex({1.0: 0.5, 2.0: 0.5, 3.0: 0.5}) == 3.0
    assert vertex({1.0: 0.5, 2.0: 0.4, 3.0: 0.4, 4.0: 0.5}) < 3.0
    assert best_temperature({1.0: 0.5, 2.0: 0.4, 3.0: 0.4, 4.0: 0.5}) == 3.0


# --- the state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("mass_mode", ["teacher", "one"])
def test_the_state_has_every_criterion_whichever_is_chosen(
    cls: type[SingleTemperature], mass_mode: MassMode
) -> None:
    rows = FitInputs(*overconfident_teacher(5, mass_mode))
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
    outside = FitInputs(rows.topk, np.zeros_like(rows.is_label), np.ones(30), "one")
    assert set(state_of(LogitTemperature, outside)["criteria"]) == {"ece"}


@pytest.mark.parametrize("cls", CLASSES)
def test_flat_if_rows_hardly_determine_the_temperature(cls: type[SingleTemperature]) -> None:
    assert not state_of(cls, teacher(2000))["flat"]
    assert state_of(cls, teacher(12))["flat"]  # the interval covers most of the range
    single = FitInputs(
        np.full((500, 1), 0.7), np.ones((500, 1), dtype=bool), np.full(500, 0.7), "teacher"
    )
    assert state_of(cls, single)["flat"]  # one token gets everything at every temperature
    even = np.tile([0.2, 0.2, 0.2, 0.2, 0.2], (500, 1))
    first = np.arange(500)[:, None] % 5 == np.arange(5)
    assert state_of(cls, FitInputs(even, first, np.ones(500), "one"))[
        "flat"
    ]  # equal tokens stay equal


@pytest.mark.parametrize("cls", CLASSES)
def test_many_rows_are_resampled_in_blocks(cls: type[SingleTemperature]) -> None:
    rows = teacher(20_000)
    resampled = Resampled(scale_logits, rows, 10)
    assert resampled._times.shape == (temperature_search.RESAMPLES, temperature_search.MAX_BLOCKS)
    assert np.bincount(resampled._block).tolist() == [20] * 1000
    assert state_of(cls, rows)["spread"] < state_of(cls, teacher(500))["spread"]
