"""The codec keeps probabilities within bounds, their order, and the magnitude of small tails."""

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
# Half a level in the logarithmic part, as a factor.
TAIL_FACTOR = {"standard": 1.3, "compact": 2.8}

Array = npt.NDArray[np.float64]


def teachers(seed: int, positions: int, top_k: int, sharpness: float) -> Array:
    """Draw (positions, k + 1) probabilities, sorted except for the tail, from peaked to diffuse."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.standard_normal((positions, 50 * top_k))
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    p = -np.sort(-p, axis=1)
    return np.column_stack([p[:, :top_k], p[:, top_k:].sum(axis=1)])


def logs(p: npt.ArrayLike) -> tuple[codec.Log, codec.Log]:
    with np.errstate(divide="ignore"):
        log = np.log(np.asarray(p, np.float64)).astype(np.float32)
    return log[:, :-1], log[:, -1]


def round_trip(p: npt.ArrayLike, grid: Grid) -> Array:
    """Return the probabilities (N, k + 1) after encoding and decoding."""
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
    got = round_trip(p, GRIDS[precision])
    assert (np.diff(got[:, :-1], axis=1) <= 0).all()
    np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-6)
    assert np.abs(got - p).max() <= PROBABILITY_BOUND[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@cases
def test_encoding_decoded_values_gives_the_same_steps(
    precision: Precision, seed: int, top_k: int, sharpness: float
) -> None:
    """Except where rounding made the largest outcome a tie, which is rare."""
    grid = GRIDS[precision]
    once = codec.encode(*logs(teachers(seed, 20, top_k, sharpness)), grid)
    again = codec.encode(*codec.decode(once, grid), grid)
    got = np.sort(np.exp(np.column_stack(codec.decode(once, grid))), axis=1)
    tied = got[:, -1] == got[:, -2]
    np.testing.assert_array_equal(once[~tied], again[~tied])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 3.0, 5.0, 10.0])
def test_mean_kl_and_errors_against_float64(precision: Precision, sharpness: float) -> None:
    """Bounds at k = 5, and the errors that shards state against a naive computation."""
    p, grid = teachers(0, 4000, 5, sharpness), GRIDS[precision]
    got = round_trip(p, grid)
    kl = (p * np.log(p / got)).sum(axis=1)
    assert kl.mean() < KL_BOUND[precision]
    steps = codec.encode(*logs(p), grid)
    errors = codec.errors(*logs(p), *codec.decode(steps, grid))
    assert errors["mean_kl"] == pytest.approx(kl.mean(), rel=1e-3, abs=1e-8)
    off = np.abs(p - got)
    assert errors["max_probability_error"] == pytest.approx(off[:, :-1].max(), rel=1e-3)
    assert errors["mean_probability_error"] == pytest.approx(off[:, :-1].mean(), rel=1e-3)
    assert errors["max_mass_error"] == pytest.approx(off[:, -1].max(), rel=1e-3)
    assert errors["mean_mass_error"] == pytest.approx(off[:, -1].mean(), rel=1e-3)
    assert errors["mean_top_k_mass"] == pytest.approx(p[:, :-1].sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-9, 1e-12, 1e-30])
def test_small_tails_keep_their_order_of_magnitude(precision: Precision, tail: float) -> None:
    got = round_trip([[0.8, 0.2 - tail, tail], [1 - tail, 0.0, tail]], GRIDS[precision])
    factor = TAIL_FACTOR[precision]
    assert ((got[:, -1] > tail / factor) & (got[:, -1] < tail * factor)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zero_is_distinct_from_the_smallest_probability(precision: Precision) -> None:
    """No tail, impossible tokens, and probabilities below the smallest level."""
    grid = GRIDS[precision]
    got = round_trip([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], grid)
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
    got = round_trip(np.full((1, top_k + 1), 1 / (top_k + 1)), GRIDS[precision])
    assert np.abs(got - 1 / (top_k + 1)).max() <= PROBABILITY_BOUND[precision]
    assert (np.diff(got[:, :-1], axis=1) <= 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("top_k", [1, 5, 6, 16, 128, 1000])
@pytest.mark.parametrize("rounded", [0.49, -0.49])
def test_the_bound_holds_for_any_number_of_tokens(
    precision: Precision, top_k: int, rounded: float
) -> None:
    """In the worst case all are rounded in the same direction, and the errors add up."""
    grid = codec.grid_of(precision, top_k)
    level = np.floor((top_k + 2) ** -0.5 * grid.levels) - 1 + rounded
    each = (level / grid.levels) ** 2
    got = round_trip([[each] * top_k + [1 - top_k * each]], grid)
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
    assert set(range(stored.min(), stored.max() + 1)) == set(stored.tolist())  # every level is used
    assert stored.min() == codec.NOTHING + 1
    assert stored.max() + 1 <= np.iinfo(np.int16).max
    np.testing.assert_array_equal(grid.stored(np.log(grid.probabilities(stored))), stored)
    assert grid.stored(-np.inf) == codec.NOTHING and grid.probabilities(codec.NOTHING) == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_larger_of_first_and_tail_is_not_stored(precision: Precision) -> None:
    p = [[0.5, 0.2, 0.3], [0.3, 0.2, 0.5], [0.4, 0.2, 0.4]]
    steps = codec.encode(*logs(p), GRIDS[precision])
    assert (steps == codec.REST).tolist() == [
        [True, False, False],
        [False, False, True],
        [True, False, False],
    ]
