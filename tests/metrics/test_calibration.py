"""Calibration errors compared with naive loops, their edge cases, and their null distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli import metrics
from firstcli.metrics import calibration
from firstcli.metrics.calibration import ReliabilityBin, reliability_bins, wilson

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = list[tuple[float, bool]]

GRID = [i / 20 for i in range(21)]
shares = st.sampled_from(GRID) | st.floats(0.0, 1.0, allow_subnormal=False)
any_rows = st.lists(st.tuples(shares, st.booleans()), min_size=1, max_size=60)


def columns(rows: Rows) -> tuple[Floats, Bools]:
    return np.array([c for c, _ in rows]), np.array([y for _, y in rows])


def some(n: int = 400, seed: int = 0) -> tuple[Floats, Bools]:
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.2, 1.0, n)
    return confidence, random.random(n) < 0.8 * confidence


def naive_mass(confidence: Floats, correct: Bools, bins: int) -> float:
    """Cut the sorted questions into equal runs, then move equal confidences into the first run."""
    n = len(confidence)
    bins = min(bins, n)
    order = sorted(range(n), key=lambda i: confidence[i])
    run_of: dict[float, int] = {}
    sizes = [n // bins + (run < n % bins) for run in range(bins)]
    runs = [run for run, size in enumerate(sizes) for _ in range(size)]
    for run, i in zip(runs, order, strict=True):
        run_of.setdefault(float(confidence[i]), run)
    total = 0.0
    for run in range(bins):
        inside = [i for i in range(n) if run_of[float(confidence[i])] == run]
        total += abs(math.fsum(confidence[i] - correct[i] for i in inside))
    return total / n


def naive_smooth(confidence: Floats, correct: Bools, width: float) -> float:
    """Integrate the residuals, smoothed with a Gaussian and its mirror images, by midpoints."""
    at = (np.arange(4000) + 0.5) / 4000
    total = np.zeros_like(at)
    for c, y in zip(confidence, correct, strict=True):
        images = [sign * c + 2 * shift for shift in range(-4, 5) for sign in (1, -1)]
        kernel = sum(np.exp(-((at - image) ** 2) / (2 * width**2)) for image in images)
        total += (c - y) * kernel / (width * math.sqrt(2 * math.pi))
    return float(np.mean(np.abs(total)) / len(confidence))


@settings(max_examples=100)
@given(rows=any_rows, bins=st.sampled_from([1, 2, 5, 10]))
def test_equal_mass_equals_a_naive_loop(rows: Rows, bins: int) -> None:
    confidence, correct = columns(rows)
    ours = metrics.ece_mass(confidence, correct, bins)
    assert ours == pytest.approx(naive_mass(confidence, correct, bins), abs=1e-12)


def test_equal_mass_of_equal_confidences_is_one_bin() -> None:
    confidence, correct = np.full(40, 0.7), np.arange(40) < 20
    assert metrics.ece_mass(confidence, correct) == pytest.approx(0.2)
    # of 0.5 0.5 0.5 0.9 in two bins the first takes all three of 0.5
    value = metrics.ece_mass(np.array([0.5, 0.5, 0.5, 0.9]), np.array([1, 0, 0, 1], bool), 2)
    assert value == pytest.approx((0.5 + 0.1) / 4)


@settings(max_examples=100)
@given(rows=any_rows, bins=st.sampled_from([1, 2, 5, 10]))
def test_relations_between_the_errors(rows: Rows, bins: int) -> None:
    """The parts sum to the ECE, which is at most the MCE and the mean distance to the outcome."""
    confidence, correct = columns(rows)
    value = metrics.ece(confidence, correct, bins)
    over, under = metrics.ece_parts(confidence, correct, bins)
    assert over >= 0 and under >= 0
    assert over + under == pytest.approx(value, abs=1e-12)
    assert over - under == pytest.approx(np.mean(confidence - correct), abs=1e-12)
    assert value - 1e-12 <= metrics.mce(confidence, correct, bins) <= 1
    distance = float(np.mean(np.abs(confidence - correct)))
    assert value <= distance + 1e-12
    assert 0 <= metrics.ece_smooth(confidence, correct) <= distance + 1e-9


def test_mce_is_the_largest_gap_of_a_bin_in_use() -> None:
    confidence, correct = some()
    gaps = [
        abs(b.confidence - b.accuracy)
        for b in reliability_bins(confidence, correct)
        if b.confidence is not None and b.accuracy is not None
    ]
    assert metrics.mce(confidence, correct) == pytest.approx(max(gaps), abs=1e-12)


def test_classwise_weights_pairs_of_question_and_candidate_equally() -> None:
    probabilities = np.array([[0.6, 0.4, 0.0], [0.3, 0.3, 0.4], [0.9, 0.1, 0.0]])
    answer, count = np.array([0, 2, 1], np.int32), np.array([2, 3, 2], np.int32)
    total = 0.0
    for c in range(3):
        has = count > c
        total += has.sum() * metrics.ece(probabilities[has, c], answer[has] == c, 5)
    assert metrics.ece_classwise(probabilities, answer, count, 5) == pytest.approx(total / 7)


def test_classwise_of_two_candidates_is_binary() -> None:
    right = np.array([0.55, 0.8, 0.31, 0.97])
    answer = np.array([0, 1, 1, 0], np.int32)
    both = np.stack([right, 1 - right], axis=1)
    each = [metrics.ece(both[:, c], answer == c) for c in (0, 1)]
    value = metrics.ece_classwise(both, answer, np.full(4, 2, np.int32))
    assert value == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("law", [lambda c: 0.6 * c, lambda c: c, lambda c: c**3, lambda c: 0 * c])
def test_smooth_ece_is_where_the_smoothed_error_equals_the_width(
    law: Callable[[Floats], Floats], seed: int
) -> None:
    random = np.random.default_rng(seed)
    confidence = random.uniform(0, 1, 150)
    correct = random.random(150) < law(confidence)
    value = metrics.ece_smooth(confidence, correct)
    assert naive_smooth(confidence, correct, value) == pytest.approx(value, abs=2e-5)


def test_smooth_ece_at_its_ends() -> None:
    assert metrics.ece_smooth(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    # a single point at an end: the mirrored Gaussian keeps all of its mass
    value = metrics.ece_smooth(np.array([1.0]), np.array([False]))
    assert value == pytest.approx(1.0, abs=1e-6)
    assert metrics.ece_smooth(np.array([0.5]), np.array([True])) == pytest.approx(0.5, abs=1e-6)


def every_error(confidence: Floats, correct: Bools) -> list[float]:
    return [
        metrics.ece(confidence, correct),
        metrics.mce(confidence, correct),
        metrics.ece_mass(confidence, correct),
        metrics.ece_smooth(confidence, correct),
        *metrics.ece_parts(confidence, correct),
    ]


def test_errors_do_not_depend_on_the_order_of_questions() -> None:
    confidence, correct = some()
    confidence = np.round(confidence, 1)  # with many equal ones
    shuffled = np.random.default_rng(5).permutation(len(confidence))
    found = every_error(confidence[shuffled], correct[shuffled])
    assert found == pytest.approx(every_error(confidence, correct), abs=1e-12)


def test_wilson() -> None:
    # Wilson 1927, as solved: |share - p| = z * sqrt(p (1 - p) / n) at both ends
    for share, n in ((0.3, 10), (0.5, 200), (0.97, 33)):
        for end in wilson(share, n):
            limit = calibration.Z95 * math.sqrt(end * (1 - end) / n)
            assert abs(share - end) == pytest.approx(limit, abs=1e-12)
    assert wilson(0.0, 5)[0] == 0.0 and wilson(1.0, 5)[1] == 1.0
    assert wilson(0.0, 5)[1] == pytest.approx(1 - wilson(1.0, 5)[0])


def naive_null(confidence: Floats, draws: int) -> list[float]:
    """Draw the outcome of each question separately and compute the ECE."""
    random = np.random.default_rng(17)
    found = []
    for _ in range(draws):
        outcome = np.array([random.random() < c for c in confidence])
        found.append(metrics.ece(confidence, outcome))
    return found


def test_the_null_has_the_distribution_of_naive_draws() -> None:
    confidence = np.random.default_rng(3).uniform(0.2, 1, 120)
    ours, naive = calibration.ece_null(confidence), naive_null(confidence, 1000)
    assert ours.shape == (1000,)
    error = math.sqrt(2 / 1000) * float(np.std(naive))
    assert float(ours.mean()) == pytest.approx(float(np.mean(naive)), abs=4 * error)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(ours, q) == pytest.approx(np.quantile(naive, q), abs=8 * error)


def test_the_null_of_certain_predictions_is_zero() -> None:
    assert calibration.ece_null(np.array([0.0, 1.0, 1.0]), draws=7).tolist() == [0.0] * 7


def test_the_null_depends_neither_on_order_nor_on_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confidence = np.random.default_rng(4).uniform(0, 1, 300)
    whole = calibration.ece_null(confidence, draws=50)
    np.testing.assert_array_equal(calibration.ece_null(confidence[::-1], draws=50), whole)
    monkeypatch.setattr(calibration, "_CHUNK", 1000)
    np.testing.assert_array_equal(calibration.ece_null(confidence, draws=50), whole)


def test_p_values_of_calibrated_models_are_uniform_and_of_others_small() -> None:
    random = np.random.default_rng(6)
    found = []
    for _ in range(200):
        confidence = random.uniform(0.2, 1, 150)
        null = calibration.ece_null(confidence, draws=99)
        right = random.random(150) < confidence
        found.append(metrics.p_value(metrics.ece(confidence, right), null))
    assert 0.4 < np.mean(found) < 0.6
    assert np.mean(np.array(found) <= 0.05) < 0.12
    wrong = np.zeros(150, bool)
    assert metrics.p_value(metrics.ece(confidence, wrong), null) == 1 / 100


def test_p_value_counts_equal_values() -> None:
    assert metrics.p_value(0.2, np.array([0.1, 0.2, 0.3])) == 3 / 4
    assert metrics.p_value(0.0, np.zeros(9)) == 1.0


def test_bins_have_an_interval_and_a_band_or_neither() -> None:
    confidence, correct = some()
    found = reliability_bins(confidence, correct)
    assert found[0] == ReliabilityBin(0.0, 0.1, 0, *[None] * 6)
    for b in found:
        if not b.n:
            continue
        assert b.accuracy is not None and b.low is not None and b.high is not None
        assert (b.low, b.high) == wilson(b.accuracy, b.n)
        assert b.low <= b.accuracy <= b.high
        assert b.confidence is not None and b.band_low is not None and b.band_high is not None
        # of as many questions, all with the bin's mean confidence, the binomial quantiles are close
        half = calibration.Z95 * math.sqrt(b.confidence * (1 - b.confidence) / b.n)
        assert b.band_low == pytest.approx(b.confidence - half, abs=0.5 * half + 1 / b.n)
        assert b.band_high == pytest.approx(b.confidence + half, abs=0.5 * half + 1 / b.n)
