"""Prediction sets contain the right candidate as often as promised, whatever the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.metrics.prediction_sets import (
    SetSizes,
    coverage_range,
    least_probability,
    prediction_sets,
    set_sizes,
)
from firstcli.metrics.records import EvalRecords

Array = np.ndarray


def naive(true_probability: list[float], coverage: float) -> float:
    """Return 1 minus the ceil((n + 1) c)-th smallest score, or 0."""
    scores = sorted(1 - p for p in true_probability)
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    return 0.0 if rank > len(scores) else 1 - scores[rank - 1]


@given(
    known=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=40),
    coverage=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
def test_the_least_probability_agrees_with_a_naive_one(known: list[float], coverage: float) -> None:
    least = least_probability(np.array(known), coverage)
    assert least == pytest.approx(naive(known, coverage))
    covered = sum(p >= least for p in known)
    assert covered >= min(len(known), (len(known) + 1) * coverage - 1e-9)


@pytest.mark.parametrize(("n", "least"), [(8, 0.0), (9, 0.1), (18, 0.1), (19, 0.2)])
def test_the_rank_is_exact_where_it_is_a_whole_number(n: int, least: float) -> None:
    known = np.arange(1, n + 1) / 10 / max(1, n / 10)
    found = least_probability(np.round(known, 6), 0.9)
    assert found == pytest.approx(0.0 if not least else np.round(known, 6)[n - naive_rank(n)])


def naive_rank(n: int) -> int:
    return -(-9 * (n + 1) // 10)  # ceil(0.9 (n + 1)) in whole numbers


@pytest.mark.parametrize(
    ("sharpness", "decimals"), [(1.0, 12), (4.0, 12), (0.2, 12), (3.0, 1), (0.0, 12)]
)
def test_the_coverage_is_kept_on_average(sharpness: float, decimals: int) -> None:
    """For calibrated, over-confident, flat and rounded probabilities, and those that are equal."""
    random, n, repeats = np.random.default_rng(3), 60, 400
    logits = random.normal(0, 1.5, (repeats, 2 * n, 5))
    truth = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    answer = (random.random((repeats, 2 * n, 1)) > truth.cumsum(axis=-1)).sum(axis=-1).clip(max=4)
    shown = np.exp(sharpness * logits)
    shown = (shown / shown.sum(axis=-1, keepdims=True)).round(decimals)
    in_right = np.take_along_axis(shown, answer[..., None], axis=-1)[..., 0]
    covered = []
    for p, right, gold in zip(shown, in_right, answer, strict=True):
        least = least_probability(right[:n], 0.9)
        sets = prediction_sets(p[n:], least)
        covered.append(sets[np.arange(n), gold[n:]].mean())
    mean, error = np.mean(covered), np.std(covered) / math.sqrt(repeats)
    assert mean >= 0.9 - 3 * error
    if decimals == 12 and sharpness:  # no ties: at most 1 / (n + 1) more, and few empty sets
        assert mean <= 0.9 + 1 / (n + 1) + 3 * error + 0.01


def test_the_coverage_of_one_draw_is_within_its_range() -> None:
    random, n = np.random.default_rng(4), 200
    low, high = coverage_range(n, 500, 0.9)
    assert low < 0.9 < high and high - low < 0.12
    inside = [
        low <= np.mean(random.random(500) >= least_probability(random.random(n), 0.9)) <= high
        for _ in range(1000)
    ]
    assert np.mean(inside) == pytest.approx(0.96, abs=0.025)  # whole questions: a little more
    assert coverage_range(5, 500, 0.9) == (1.0, 1.0)


def test_sets_are_never_empty_and_contain_no_missing_candidate() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.1, 0.9, 0.0]])
    count = np.array([2, 3, 2])
    assert prediction_sets(probabilities, 0.6, count).tolist() == [
        [True, False, False],  # the first of equally likely candidates
        [False, False, True],
        [False, True, False],
    ]
    everything = prediction_sets(probabilities, 0.0, count)
    assert everything.sum(axis=1).tolist() == [2, 3, 2]
    assert prediction_sets(probabilities, 0.3).sum(axis=1).tolist() == [2, 2, 1]


def test_sets_of_records() -> None:
    rows = [[math.log(p) for p in row] for row in ((0.6, 0.4), (0.9, 0.05, 0.05), (0.2, 0.8))]
    records = EvalRecords.from_log_probs(["a", "b", "c"], [1, 0, 0], rows)
    found = set_sizes(records, 0.3)
    assert found == SetSizes(questions=3, covered=2, mean_size=4 / 3, singletons=2)
    assert found.coverage == 2 / 3
    low, high = found.interval
    assert low < 2 / 3 < high


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5])
def test_a_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage"):
        least_probability(np.array([0.5]), coverage)


def test_thousands_of_candidates() -> None:
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(2000, 0.01), 300)
    right = probabilities.max(axis=1)
    sets = prediction_sets(probabilities, least_probability(right, 0.9))
    assert sets.shape == (300, 2000) and sets.any(axis=1).all()
