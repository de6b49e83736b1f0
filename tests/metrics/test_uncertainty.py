"""Intervals and paired differences: a naive reference, symmetries and coverage."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from firstcli import metrics
from firstcli.metrics import uncertainty
from firstcli.metrics.calibration import bin_index, wilson
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import Difference, Interval, differences, intervals, over_seeds

Floats = npt.NDArray[np.float64]
KEYS = ("accuracy", "ece", "trust", "ece_true")
DRAWS = 60


def some(
    n: int = 90,
    sharpness: float = 1.0,
    seed: int = 0,
    *,
    noise: float = 0.0,
    truth: bool = True,
    answerable: bool = True,
) -> EvalRecords:
    """Return records whose answers follow a softmax and whose logits are scaled by `sharpness`."""
    world = np.random.default_rng(seed)
    logits = world.normal(0, 1.5, (n, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answers = [int(world.choice(4, p=row)) if answerable else -1 for row in p]
    seen = logits * sharpness + np.random.default_rng(99).normal(0, noise, (n, 4))
    log_probs = seen - np.log(np.exp(seen).sum(1, keepdims=True)) - 0.1
    known = list(p) if truth and answerable else None
    return EvalRecords.from_log_probs([f"q{i}" for i in range(n)], answers, list(log_probs), known)


def naive_bounds(records: EvalRecords, outcome: Floats, bins: int) -> tuple[Floats, Floats]:
    """Return both bounds of the increase of the ECE in each resample, with naive loops."""
    n = len(records)
    order = sorted(range(n), key=lambda i: records.ids[i])
    c, y = records.confidence[order], outcome[order]
    index = bin_index(c, bins)
    gap, clear = [0.0] * bins, [0.0] * bins
    for b in range(bins):
        own = [c[i] - y[i] if index[i] == b else 0.0 for i in range(n)]
        gap[b] = math.fsum(own) / n
        variance = math.fsum((value - gap[b]) ** 2 for value in own) / n
        clear[b] = gap[b] if abs(gap[b]) > 2 * math.sqrt(variance / n) else 0.0
    picked = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    least, most = [], []
    for row in picked:
        drawn = [0.0] * bins
        for i in row:
            drawn[index[i]] += (c[i] - y[i]) / n
        noise = [drawn[b] - gap[b] for b in range(bins)]
        least.append(math.fsum(noise[b] * np.sign(gap[b]) for b in range(bins)))
        most.append(math.fsum(abs(clear[b] + noise[b]) - abs(clear[b]) for b in range(bins)))
    return np.array(least), np.array(most)


def naive_accuracy(records: EvalRecords) -> Floats:
    n = len(records)
    order = sorted(range(n), key=lambda i: records.ids[i])
    right = records.correct[order]
    picked = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    drawn: Floats = np.array([sum(map(float, right[row])) / n for row in picked])
    return drawn - float(right.mean())


def interval(value: float, least: Floats, most: Floats) -> Interval:
    return Interval(value - np.quantile(most, 0.975), value - np.quantile(least, 0.025))


@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_intervals_equal_a_naive_reference(sharpness: float) -> None:
    records = some(sharpness=sharpness)
    found = intervals([records], "candidates", 5, DRAWS)
    least, most = naive_bounds(records, records.correct.astype(float), 5)
    right = naive_accuracy(records)
    value = metrics.ece(records.confidence, records.correct, 5)
    low, high = interval(value, least, most)
    assert found["ece"].value == pytest.approx(value)
    assert found["ece"].interval == pytest.approx((max(0, low), high), abs=1e-12)
    trusted = metrics.trust(records.confidence, records.correct, 5)
    assert found["trust"].value == pytest.approx(trusted)
    ends = wilson(float(records.correct.mean()), 90)
    low, high = interval(trusted, right - most, right - least)
    capped = (low, min(high, ends[1]))  # Trust is never more than accuracy
    assert found["trust"].interval == pytest.approx(capped, abs=1e-12)
    assert found["accuracy"].interval == pytest.approx(ends)
    assert records.p_right is not None
    least, most = naive_bounds(records, records.p_right, 5)
    low, high = interval(found["ece_true"].value, least, most)
    assert found["ece_true"].interval == pytest.approx((max(0, low), high), abs=1e-12)


def test_differences_equal_a_naive_reference() -> None:
    ours, theirs = some(), some(sharpness=2.5, noise=0.5)
    found = differences([ours], [theirs], "candidates", 5, DRAWS)
    assert tuple(sorted(found)) == tuple(sorted(KEYS))
    sides = [naive_bounds(one, one.correct.astype(float), 5) for one in (ours, theirs)]
    (least_a, most_a), (least_b, most_b) = sides
    value = metrics.ece(ours.confidence, ours.correct, 5) - metrics.ece(
        theirs.confidence, theirs.correct, 5
    )
    assert found["ece"].value == pytest.approx(value)
    expected = interval(value, least_a - most_b, most_a - least_b)
    assert found["ece"].interval == pytest.approx(expected, abs=1e-12)
    shift = naive_accuracy(ours) - naive_accuracy(theirs)
    gap = float(ours.correct.mean() - theirs.correct.mean())
    assert found["accuracy"].interval == pytest.approx(interval(gap, shift, shift), abs=1e-12)
    low, high = interval(gap - value, shift - (most_a - least_b), shift - (least_a - most_b))
    assert found["trust"].interval == pytest.approx((low, high), abs=1e-12)


def test_swapping_the_sides_swaps_the_signs() -> None:
    ours, theirs = [some(), some(noise=0.2)], [some(sharpness=2), some(sharpness=2, noise=0.4)]
    there, back = (differences(a, b, "candidates") for a, b in ((ours, theirs), (theirs, ours)))
    for name in KEYS:
        assert there[name].value == pytest.approx(-back[name].value, abs=1e-15)
        low, high = there[name].interval
        assert back[name].interval == pytest.approx((-high, -low), abs=1e-12)


def test_a_model_cannot_be_distinguished_from_itself() -> None:
    for sharpness in (1.0, 3.0):
        one = some(300, sharpness)
        for gap in differences([one], [one], "candidates").values():
            assert gap.value == 0.0 and not gap.distinguishable
            assert gap.interval.low == pytest.approx(-gap.interval.high, abs=1e-12)


def test_the_order_of_questions_does_not_matter() -> None:
    ours, theirs = some(), some(sharpness=2)
    order = np.random.default_rng(1).permutation(len(ours))
    assert ours.truth is not None
    shuffled = EvalRecords.from_log_probs(
        [ours.ids[i] for i in order],
        [int(ours.answer[i]) for i in order],
        [ours.log_probs[i] for i in order],
        [ours.truth[i] for i in order],
    )
    assert intervals([shuffled], "candidates") == intervals([ours], "candidates")
    found = differences([shuffled], [theirs], "candidates")
    assert found == differences([ours], [theirs], "candidates")


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = intervals([some()], "candidates", draws=50)
    monkeypatch.setattr(uncertainty, "_CHUNK", 200)
    chunked = intervals([some()], "candidates", draws=50)
    for name, one in whole.items():
        assert chunked[name].interval == pytest.approx(one.interval, abs=1e-12)


def test_several_seeds_are_averaged_over_the_same_questions() -> None:
    seeds = [some(noise=0.5), some(noise=1.5)]
    found = intervals(seeds, "candidates")
    each = [intervals([one], "candidates") for one in seeds]
    for name in KEYS:
        assert found[name].value == pytest.approx(sum(one[name].value for one in each) / 2)
    twice = intervals([seeds[0]] * 2, "candidates")
    for name in KEYS:  # repeating a seed does not narrow the interval
        assert twice[name].value == pytest.approx(each[0][name].value)
        assert twice[name].interval == pytest.approx(each[0][name].interval)
    widths = [
        one["accuracy"].interval.high - one["accuracy"].interval.low for one in (found, *each)
    ]
    assert widths[0] < max(widths[1:])  # differences between seeds average out


def test_clear_differences_are_distinguishable_and_contain_the_value() -> None:
    ours, theirs = some(1000), some(1000, sharpness=3.0)
    found = differences([ours], [theirs], "candidates")
    assert found["ece"].distinguishable and found["ece"].interval.high < 0
    assert found["trust"].distinguishable and found["trust"].interval.low > 0
    assert not found["accuracy"].distinguishable and found["accuracy"].value == 0.0
    for gap in found.values():
        assert gap.interval.low <= gap.value <= gap.interval.high
    for one in intervals([ours], "candidates").values():
        assert one.interval.low <= one.value <= one.interval.high


def test_too_few_questions_give_the_widest_interval() -> None:
    n = uncertainty.MIN_QUESTIONS - 1
    ours, theirs = some(n), some(n, sharpness=9.0)
    assert intervals([ours], "candidates")["ece"].interval == (0.0, 1.0)
    found = intervals([ours], "candidates")
    assert found["trust"].interval == (-1.0, found["accuracy"].interval.high)
    gaps = differences([ours], [theirs], "candidates").values()
    assert not any(gap.distinguishable for gap in gaps)


def test_undefined_metrics_are_left_out() -> None:
    assert set(intervals([some(truth=False)], "candidates")) == {"accuracy", "ece", "trust"}
    assert intervals([some(answerable=False)], "candidates") == {}
    compared = EvalRecords.from_log_probs(["a"], [0], [[-1.0, -2.0]], scope="candidates")
    assert set(intervals([compared], "full")) == {"accuracy"}
    gaps = differences([some()], [some(truth=False)], "candidates")
    assert set(gaps) == {"accuracy", "ece", "trust"}


def test_different_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="same questions"):
        differences([some(30)], [some(31)], "candidates")
    with pytest.raises(ValueError, match="same questions"):
        intervals([], "candidates")


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_intervals_cover_the_ece_of_infinitely_many_questions(sharpness: float) -> None:
    """A small version of `benchmarks/coverage.py`."""
    many = some(60_000, sharpness, seed=12345)
    assert many.p_right is not None
    population = metrics.ece(many.confidence, many.p_right)
    hits = 0
    for seed in range(60):
        records = some(300, sharpness, seed, truth=False)
        low, high = intervals([records], "candidates", draws=200)["ece"].interval
        hits += low <= population <= high
    assert hits >= 51  # 0.95 of 60 is 57, with a standard deviation of 1.7


def test_over_seeds_is_the_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    ours, theirs = [0.61, 0.63, 0.60, 0.64], [0.58, 0.61, 0.59, 0.59]
    found, expected = over_seeds(ours, theirs), ttest_rel(ours, theirs)
    assert found.value == pytest.approx(0.0275)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    ends = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((ends.low, ends.high), abs=1e-12)
    assert found.distinguishable == (expected.pvalue < 0.05)


def test_over_seeds_without_variance() -> None:
    assert over_seeds([0.5, 0.75], [0.25, 0.5]) == Difference(0.25, Interval(0.25, 0.25), 0.0)
    assert over_seeds([0.5, 0.6], [0.5, 0.6]) == Difference(0.0, Interval(0.0, 0.0), 1.0)
    assert not over_seeds([0.5, 0.6], [0.5, 0.6]).distinguishable
    with pytest.raises(ValueError, match="two or more seeds"):
        over_seeds([0.5], [0.4])
