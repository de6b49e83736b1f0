"""Proper scores, their parts and selective prediction, compared with naive loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli import metrics

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = list[tuple[float, bool]]

GRID = [i / 10 for i in range(11)]
any_rows = st.lists(st.tuples(st.sampled_from(GRID), st.booleans()), min_size=1, max_size=40)


def columns(rows: Rows) -> tuple[Floats, Bools]:
    return np.array([c for c, _ in rows]), np.array([y for _, y in rows])


def naive_isotonic(confidence: Floats, correct: Bools) -> Floats:
    """Pool adjacent violators: equal confidences first, then neighbours in the wrong order."""
    blocks: list[tuple[list[int], float]] = []
    for value in sorted(set(confidence)):
        members = [i for i, c in enumerate(confidence) if c == value]
        blocks.append((members, sum(map(float, correct[members])) / len(members)))
        while len(blocks) > 1 and blocks[-2][1] >= blocks[-1][1]:
            last, before = blocks.pop(), blocks.pop()
            members = before[0] + last[0]
            blocks.append((members, sum(map(float, correct[members])) / len(members)))
    fitted = np.zeros(len(confidence))
    for members, share in blocks:
        fitted[members] = share
    return fitted


@settings(max_examples=80)
@given(rows=any_rows)
def test_parts_of_the_brier_score(rows: Rows) -> None:
    confidence, correct = columns(rows)
    parts = metrics.brier_parts(confidence, correct)
    total = parts.miscalibration - parts.discrimination + parts.uncertainty
    assert total == pytest.approx(metrics.brier_top(confidence, correct), abs=1e-12)
    best = float(np.mean((naive_isotonic(confidence, correct) - correct) ** 2))
    share = float(np.mean(correct))
    assert parts.uncertainty == pytest.approx(share * (1 - share), abs=1e-12)
    assert parts.discrimination == pytest.approx(share * (1 - share) - best, abs=1e-12)
    assert parts.miscalibration >= -1e-12 and parts.discrimination >= -1e-12


def test_parts_of_a_perfect_and_a_constant_forecast() -> None:
    correct = np.array([True, False, True, True])
    assert metrics.brier_parts(correct.astype(float), correct) == pytest.approx((0, 0.1875, 0.1875))
    assert metrics.brier_parts(np.full(4, 0.75), correct) == pytest.approx((0, 0, 0.1875))
    assert metrics.brier_parts(np.full(4, 0.5), correct) == pytest.approx((0.0625, 0, 0.1875))


@settings(max_examples=80)
@given(rows=any_rows)
def test_auroc_counts_pairs(rows: Rows) -> None:
    confidence, correct = columns(rows)
    pairs = list(itertools.product(confidence[correct], confidence[~correct]))
    value = metrics.auroc(confidence, correct)
    if not pairs:
        assert value is None
    else:
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        assert value == pytest.approx(wins / len(pairs), abs=1e-12)


def naive_aurc(confidence: Floats, correct: Bools, orders: list[list[int]]) -> float:
    """Return the mean over the orders, each sorted by confidence with its order of ties."""
    areas = []
    for order in orders:
        chosen = sorted(order, key=lambda i: -confidence[i])  # stable
        wrong = [0.0 if correct[i] else 1.0 for i in chosen]
        areas.append(sum(sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)) / len(wrong))
    return math.fsum(areas) / len(areas)


def test_aurc_is_the_mean_over_all_orders_of_equal_confidences() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.2, 0.2])
    correct = np.array([True, False, True, True, False, True])
    orders = [list(order) for order in itertools.permutations(range(6))]
    expected = naive_aurc(confidence, correct, orders)
    assert metrics.aurc(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_aurc_without_ties_is_a_plain_loop() -> None:
    random = np.random.default_rng(0)
    confidence, correct = random.random(200), random.random(200) < 0.7
    expected = naive_aurc(confidence, correct, [list(range(200))])
    assert metrics.aurc(confidence, correct) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=80)
@given(rows=any_rows, seed=st.integers(0, 99))
def test_selective_scores_do_not_depend_on_order(rows: Rows, seed: int) -> None:
    confidence, correct = columns(rows)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    for coverage in (0.1, 0.5, 0.8, 0.9, 1.0):
        here = metrics.accuracy_at(coverage, confidence, correct)
        there = metrics.accuracy_at(coverage, confidence[shuffled], correct[shuffled])
        assert here == pytest.approx(there, abs=1e-12)
    area = metrics.aurc(confidence, correct)
    assert area == pytest.approx(metrics.aurc(confidence[shuffled], correct[shuffled]), abs=1e-12)


def test_risk_coverage_ends_at_the_accuracy() -> None:
    confidence = np.array([0.6, 0.9, 0.3, 0.8])
    correct = np.array([False, True, False, True])
    coverage, accuracy = metrics.risk_coverage(confidence, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3, 1 / 2])
    assert metrics.aurc(confidence, correct) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_accuracy_at_coverage_keeps_whole_questions_rounded_up() -> None:
    confidence = np.arange(10, 0, -1) / 10
    correct = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], bool)
    assert metrics.accuracy_at(0.9, confidence, correct) == 1.0  # nine, though 0.9 * 10 > 9
    assert metrics.accuracy_at(0.91, confidence, correct) == 0.9
    assert metrics.accuracy_at(1e-9, confidence, correct) == 1.0  # at least one
    for coverage in (0.0, 1.1):
        with pytest.raises(ValueError, match="coverage"):
            metrics.accuracy_at(coverage, confidence, correct)


def test_equal_confidences_count_with_their_mean_accuracy() -> None:
    correct = np.array([True, True, False, False])
    assert metrics.accuracy_at(0.25, np.full(4, 0.5), correct) == 0.5
    assert metrics.aurc(np.full(4, 0.5), correct) == 0.5


def test_confidences_that_differ_in_the_last_bit_are_decomposed() -> None:
    """As those of saturated models do, next to 1."""
    confidence = np.array([0.5, 0.6, np.nextafter(1.0, 0.0), 1.0])
    for correct in ([True, False, True, False], [False, False, True, True]):
        parts = metrics.brier_parts(confidence, np.array(correct))
        total = parts.miscalibration - parts.discrimination + parts.uncertainty
        assert total == pytest.approx(np.mean((confidence - correct) ** 2))
