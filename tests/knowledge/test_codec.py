"""What is stored of probabilities: within bounds, ranks kept, small tails with their digits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.knowledge import codec
from firstcli.knowledge.codec import GRIDS, Grid, Precision

PRECISIONS: tuple[Precision, ...] = ("standard", "compact")
PROBABILITY_BOUND = {"standard": 0.005, "compact": 0.025}
KL_BOUND = {"standard": 1e-5, "compact": 1e-4}
# Half a level below the evenly spaced ones, as a factor.
TAIL_FACTOR = {"standard": 1.3, "compact": 2.8}

Array = npt.NDArray[np.float64]


def teachers(seed: int, positions: int, top_k: int, sharpness: float) -> Array:
    """Draw (positions, k + 1) probabilities, sorted but for the tail, from peaked to diffuse."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.standard_normal((positions, 50 * top_k))
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    p = -np.sort(-p, axis=1)
    return np.column_stack([p[:, :top_k], p[:, top_k:].sum(axis=1)])


def logs(p: npt.ArrayLike) -> tuple[codec.Log, codec.Log]:
    with np.errstate(divide="ignore"):
        log = np.log(np.asarray(p, np.float64)).astype(np.float32)
    return log[:, :-1], log[:, -1]


def through(p: npt.ArrayLike, grid: Grid) -> Array:
    """Return probabilities (N, k + 1) as they come back from the store."""
    log_probs, log_tail = codec.decode(codec.encode(*logs(p), grid), grid)
    return np.exp(np.column_stack([log_probs, log_tail]).astype(np.float64))


cases = given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(1, 12),
    sharpness=st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 40.0]),
)


@pytest.mark.parametrize("precision", PRECISIONS)
@cases
def test_ranks_sums_and_bounds(
    precision: Precision, seed: int, top_k: int, sharpness: float
) -> None:
    p = teachers(seed, 20, top_k, sharpness)
    got = through(p, GRIDS[precision])
    assert (np.diff(got[:, :-1], axis=1) <= 0).all()
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-6)
    assert np.abs(got - p).max() <= PROBABILITY_BOUND[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@cases
def test_what_was_stored_is_stored_alike_again(
    precision: Precision, seed: int, top_k: int, sharpness: float
) -> None:
    """But where rounding made the largest outcome a tie, which is rare."""
    grid = GRIDS[precision]
    once = codec.encode(*logs(teachers(seed, 20, top_k, sharpness)), grid)
    again = codec.encode(*codec.decode(once, grid), grid)
    got = np.sort(np.exp(np.column_stack(codec.decode(once, grid))), axis=1)
    tied = got[:, -1] == got[:, -2]
    np.testing.assert_array_equal(once[~tied], again[~tied])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 3.0, 5.0, 10.0])
def test_mean_kl_and_errors_against_float64(precision: Precision, sharpness: float) -> None:
    """The bounds of the issue at k = 5, and the figures that shards state, computed naively."""
    p, grid = teachers(0, 4000, 5, sharpness), GRIDS[precision]
    got = through(p, grid)
    kl = (p * np.log(p / got)).sum(axis=1)
    assert kl.mean() < KL_BOUND[precision]
    steps = codec.encode(*logs(p), grid)
    found = codec.errors(*logs(p), *codec.decode(steps, grid))
    assert found["mean_kl"] == pytest.approx(kl.mean(), rel=1e-3, abs=1e-8)
    off = np.abs(p - got)
    assert found["max_probability_error"] == pytest.approx(off[:, :-1].max(), rel=1e-3)
    assert found["mean_probability_error"] == pytest.approx(off[:, :-1].mean(), rel=1e-3)
    assert found["max_mass_error"] == pytest.approx(off[:, -1].max(), rel=1e-3)
    assert found["mean_mass_error"] == pytest.approx(off[:, -1].mean(), rel=1e-3)
    assert found["mean_top_k_mass"] == pytest.approx(p[:, :-1].sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-9, 1e-12, 1e-30])
def test_small_tails_keep_their_order_of_magnitude(precision: Precision, tail: float) -> None:
    got = through([[0.8, 0.2 - tail, tail], [1 - tail, 0.0, tail]], GRIDS[precision])
    factor = TAIL_FACTOR[precision]
    assert ((got[:, -1] > tail / factor) & (got[:, -1] < tail * factor)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_is_not_very_little(precision: Precision) -> None:
    """No tail, tokens that cannot occur, and what is below the smallest probability."""
    grid = GRIDS[precision]
    got = through([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], grid)
    np.testing.assert_array_equal(
        got == 0, [[False, True, True], [False, False, True], [True, True, False]]
    )
    assert got[0, 0] == 1 and got[2, 2] == 1
    log_probs = np.array([[-1e-30, -69.0, -300.0]], np.float32)
    back, log_tail = codec.decode(
        codec.encode(log_probs, np.array([-200.0], np.float32), grid), grid
    )
    assert np.isfinite(back).all() and np.isfinite(log_tail).all()
    assert log_tail[0] == pytest.approx(np.log(codec.LOWEST), abs=1.1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top_k", [1, 2, 5, 100])
def test_equal_probabilities_stay_equal(precision: Precision, top_k: int) -> None:
    got = through(np.full((1, top_k + 1), 1 / (top_k + 1)), GRIDS[precision])
    assert np.abs(got - 1 / (top_k + 1)).max() <= PROBABILITY_BOUND[precision]
    assert (np.diff(got[:, :-1], axis=1) <= 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top_k", [1, 5, 6, 16, 128, 1000])
@pytest.mark.parametrize("rounded", [0.49, -0.49])
def test_the_bound_holds_for_any_number_of_tokens(
    precision: Precision, top_k: int, rounded: float
) -> None:
    """At worst all are rounded the same way, and all that adds up in what they leave."""
    grid = codec.grid_of(precision, top_k)
    level = np.floor((top_k + 2) ** -0.5 * grid.levels) - 1 + rounded
    each = (level / grid.levels) ** 2
    got = through([[each] * top_k + [1 - top_k * each]], grid)
    assert abs(got[0, -1] - (1 - top_k * each)) <= PROBABILITY_BOUND[precision]
    assert np.abs(got[0, :-1] - each).max() <= PROBABILITY_BOUND[precision]
    assert codec.encode(*logs([[1.0] + [0.0] * top_k]), grid).dtype == np.int16
    assert grid.levels + grid.offset < np.iinfo(np.int16).max


@pytest.mark.parametrize("precision", PRECISIONS)
def test_levels_grow_with_probability_and_fit_into_their_type(precision: Precision) -> None:
    grid = GRIDS[precision]
    log_p = np.linspace(np.log(1e-40), 0.0, 100_000)
    stored = grid.stored(log_p)
    assert (np.diff(stored) >= 0).all()
    assert set(range(stored.min(), stored.max() + 1)) == set(stored.tolist())  # none is wasted
    assert stored.min() == codec.NOTHING + 1
    assert stored.max() + 1 <= np.iinfo(np.int16).max
    np.testing.assert_array_equal(grid.stored(np.log(grid.probabilities(stored))), stored)
    assert grid.stored(-np.inf) == codec.NOTHING and grid.probabilities(codec.NOTHING) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_position_takes_one_number_an_outcome_less_one(precision: Precision) -> None:
    """The larger of first and tail is what the others leave."""
    p = [[0.5, 0.2, 0.3], [0.3, 0.2, 0.5], [0.4, 0.2, 0.4]]
    steps = codec.encode(*logs(p), GRIDS[precision])
    assert (steps == codec.REST).tolist() == [
        [True, False, False],
        [False, False, True],
        [True, False, False],
    ]
