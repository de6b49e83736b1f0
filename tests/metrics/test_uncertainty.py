"""Intervals and paired differences: a naive reference, symmetries and coverage."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from firstcli import metrics
from firstcli.metrics import spread, uncertainty
from firstcli.metrics.calibration import bin_index, wilson
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import (
    Difference,
    Interval,
    differences,
    holm,
    intervals,
    over_seeds,
)

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


class Naive(NamedTuple):
    """Draws of a metric by loops: its value, and rows for the lower and for the upper limit."""

    value: float
    lows: list[Floats]
    highs: list[Floats]

    def interval(self) -> Interval:
        low = min(float(np.quantile(row, 0.025)) for row in self.lows)
        high = max(float(np.quantile(row, 0.975)) for row in self.highs)
        return Interval(min(self.value, low), max(self.value, high))

    def minus(self, other: Naive) -> Naive:
        lows = [ours - theirs for ours in self.lows for theirs in other.highs]
        highs = [ours - theirs for ours in self.highs for theirs in other.lows]
        return Naive(self.value - other.value, lows, highs)


def naive(records: EvalRecords, bins: int, *, truth: bool = False) -> dict[str, Naive]:
    """Return accuracy, ECE and Trust, or `ece_true`, with naive loops over draws and bins."""
    n = len(records)
    order = sorted(range(n), key=lambda i: records.ids[i])
    outcome = records.p_right if truth else records.correct
    assert outcome is not None
    c, y = records.confidence[order], outcome[order].astype(float)
    index = bin_index(c, bins)
    weights = np.random.default_rng(0).standard_exponential((DRAWS, n))
    random = np.random.default_rng([0, 1])
    extra_low, extra_high = random.beta(1, n, (2, DRAWS))
    normal = random.standard_normal((DRAWS, bins))
    members = [[i for i in range(n) if index[i] == b] for b in range(bins)]
    share = [len(m) / n for m in members]
    mean = [math.fsum(c[i] for i in m) / len(m) if m else 0.0 for m in members]
    gap = [math.fsum(c[i] - y[i] for i in m) / n for m in members]
    variance = [
        max(0.0, math.fsum((c[i] - y[i]) ** 2 for i in m) / n - g**2) / n
        for m, g in zip(members, gap, strict=True)
    ]
    null = [0.0 if truth else math.fsum(c[i] * (1 - c[i]) for i in m) / n**2 for m in members]
    error = [math.sqrt(max(v, o)) for v, o in zip(variance, null, strict=True)]
    clear = [abs(g) > 2 * e for g, e in zip(gap, error, strict=True)]
    sign = [1.0 if g >= 0 else -1.0 for g in gap]
    turned = [s if known else 1.0 for s, known in zip(sign, clear, strict=True)]
    drawn = np.array([[sum(w[i] * (c[i] - y[i]) for i in m) / sum(w) for m in members]
                      for w in weights])  # fmt: skip
    right = np.array([sum(w * y) / sum(w) for w in weights])

    def add(draws: Floats, extra: Floats, value: float) -> Floats:
        return draws if truth else (1 - extra) * draws + extra * value

    def total(signs: list[float]) -> Floats:
        sums: Floats = sum((signs[b] * drawn[:, b] for b in range(bins)), np.zeros(DRAWS))
        return sums

    least = np.zeros(DRAWS)
    for b in range(bins):
        missing = math.sqrt(max(0.0, null[b] - variance[b]))
        noise = drawn[:, b] - gap[b] + missing * normal[:, b]
        least += np.abs(drawn[:, b]) if clear[b] else abs(gap[b]) - np.abs(noise)
    ece = math.fsum(map(abs, gap))
    larger = [
        sum(share[b] * (mean[b] if s[b] > 0 else 1 - mean[b]) for b in range(bins))
        for s in (sign, turned)
    ]
    smaller = sum(
        share[b] * ((mean[b] - 1) if sign[b] > 0 else -mean[b]) for b in range(bins) if clear[b]
    )
    highs = [add(total(s), extra_high, v) for s, v in zip((sign, turned), larger, strict=True)]
    result = Naive(ece, [add(least, extra_low, smaller)], highs)
    if truth:
        return {"ece_true": result}
    before = np.var(right - total(sign))
    widest, lowest = sign, math.inf
    for number in range(2**bins):  # all choices of signs that turn under-confident bins
        turn = [bool(number >> b & 1) and sign[b] < 0 and share[b] > 0 for b in range(bins)]
        cost = sum(2 * abs(gap[b]) for b in range(bins) if turn[b])
        added = sum(4 * max(variance[b], null[b]) for b in range(bins) if turn[b])
        if (limit := cost - 1.959963984540054 * math.sqrt(before + added)) < lowest:
            widest, lowest = [1.0 if turn[b] else sign[b] for b in range(bins)], limit
    lows = [
        add(right - total(s), extra_low, -sum(s[b] * mean[b] * share[b] for b in range(bins)))
        for s in (sign, widest)
    ]
    best = sum(
        share[b] * ((2 - mean[b] if sign[b] > 0 else mean[b]) if clear[b] else 1.0)
        for b in range(bins)
    )
    trust = Naive(float(y.mean()) - ece, lows, [add(right - least, extra_high, best)])
    accuracy = Naive(float(y.mean()), [add(right, extra_low, 0)], [add(right, extra_high, 1)])
    return {"accuracy": accuracy, "ece": result, "trust": trust}


@pytest.mark.parametrize("sharpness", [0.6, 1.0, 2.5])
def test_intervals_equal_a_naive_reference(sharpness: float) -> None:
    records = some(sharpness=sharpness)
    found = intervals([records], "candidates", 5, DRAWS)
    expected = naive(records, 5) | naive(records, 5, truth=True)
    for name in ("ece", "ece_true"):
        low, high = expected[name].interval()
        assert found[name].value == pytest.approx(expected[name].value)
        assert found[name].interval == pytest.approx((max(0, low), high), abs=1e-12)
    ends = wilson(float(records.correct.mean()), 90)
    assert found["accuracy"].interval == pytest.approx(ends)
    low, high = expected["trust"].interval()
    highest = spread.mean_spreads([records], "candidates", 5, DRAWS)["confidence"].high(0.005)
    assert found["trust"].value == pytest.approx(expected["trust"].value)
    capped = (low, min(high, ends[1], highest))  # ECE >= |mean confidence - accuracy|
    assert found["trust"].interval == pytest.approx(capped, abs=1e-12)


def test_differences_equal_a_naive_reference() -> None:
    ours, theirs = some(), some(sharpness=2.5, noise=0.5)
    found = differences([ours], [theirs], "candidates", 5, DRAWS)
    assert tuple(found) == KEYS
    left, right = (naive(side, 5) | naive(side, 5, truth=True) for side in (ours, theirs))
    for name in KEYS:
        gap = left[name].minus(right[name])
        assert found[name].value == pytest.approx(gap.value)
        assert found[name].interval == pytest.approx(gap.interval(), abs=1e-12)


def sharp(confidence: list[float], right: int) -> EvalRecords:
    """Return binary questions, of which the first are answered correctly."""
    rows = [[math.log(c), math.log(1 - c)] for c in confidence]
    answers = [0 if i < right else 1 for i in range(len(rows))]
    return EvalRecords.from_log_probs([f"q{i:04}" for i in range(len(rows))], answers, rows)


def test_a_bin_without_errors_has_an_uncertain_accuracy() -> None:
    records = sharp([0.97 + 0.0002 * i for i in range(100)], 100)
    found = intervals([records], "candidates")
    assert found["ece"].value == pytest.approx(0.02, abs=0.001)
    low, high = found["ece"].interval  # one or two errors would be no surprise
    assert low == 0.0 and high == pytest.approx(found["ece"].value, abs=0.002)
    # of n right answers, the lower limit of the accuracy is 0.025 ** (1 / n) (Clopper and Pearson)
    worst = 2 * 0.025 ** (1 / 100) - 0.98
    assert found["trust"].interval.low == pytest.approx(worst, abs=0.01)


def test_an_over_confident_model_without_errors_may_have_an_ece() -> None:
    found = intervals([sharp([0.999] * 50, 50)], "candidates")
    expected = 0.999 - 0.025 ** (1 / 50)
    assert found["ece"].interval.high == pytest.approx(expected, abs=0.01)


def test_models_without_errors_cannot_be_distinguished() -> None:
    base = [0.97 + 0.0002 * i for i in range(100)]
    found = differences([sharp([c + 0.004 for c in base], 100)], [sharp(base, 100)], "candidates")
    assert found["ece"].value == pytest.approx(-0.004)
    assert not any(gap.distinguishable for gap in found.values())


def test_an_unclear_sign_of_a_gap_widens_trust() -> None:
    """Under-confident by chance: Trust is the mean confidence, or 2 accuracy - confidence."""
    n, right = 400, 212
    confidences = [0.51 + 0.00005 * i for i in range(n)]  # mean 0.52, accuracy 0.53
    trust = intervals([sharp(confidences, right)], "candidates")["trust"]
    assert trust.value == pytest.approx(0.52, abs=1e-4)
    error = math.sqrt(0.53 * 0.47 / n)
    assert trust.interval.low == pytest.approx(2 * (0.53 - 1.96 * error) - 0.52, abs=0.01)
    assert trust.interval.high == pytest.approx(0.52, abs=0.002)  # never above the confidence


def test_known_probabilities_hide_no_outcomes() -> None:
    """`ece_true` does not depend on luck: its interval is as narrow as the confidences allow."""
    records = some(400)
    assert records.p_right is not None
    narrow, wide = (intervals([records], "candidates")[key].interval for key in ("ece_true", "ece"))
    assert narrow == pytest.approx((0.0, 0.0), abs=1e-9) and wide.high > 0.02


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
    monkeypatch.setattr(spread, "_CHUNK", 200)
    spread._spreads.cache_clear()
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


def test_a_difference_has_the_p_value_of_its_interval() -> None:
    """The p-value is below 0.05 if and only if the interval excludes zero."""
    ours = some(300)
    for scale in (1.05, 1.3, 1.6, 2.0, 3.0):
        for gap in differences([ours], [some(300, scale, noise=0.3)], "candidates").values():
            assert gap.p_value is not None
            assert (gap.p_value < 0.05) == gap.distinguishable
    same = differences([ours], [ours], "candidates")
    assert {gap.p_value for gap in same.values()} == {1.0}
    # a normal difference of 1 with the standard error 0.4
    found = uncertainty._p_value(1.0, Interval(1 - 1.96 * 0.4, 1 + 1.96 * 0.4))
    assert found == pytest.approx(0.01242, abs=1e-5)
    assert uncertainty._p_value(-1.0, Interval(-9.0, -1 + 1.96 * 0.4)) == pytest.approx(found)


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # Holm 1979: 3p, 2p, p
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04] and holm([]) == []
