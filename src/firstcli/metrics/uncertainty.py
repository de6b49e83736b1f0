"""Intervals of accuracy, ECE and Trust, and of their differences between models.

The questions are the sample: an interval covers the values that other questions of the same kind
might give. The ECE estimate is biased upwards where bins are calibrated, because chance alone opens
gaps, and unbiased where a bin's gap is clear. The intervals concern the ECE of infinitely many
questions in the same bins and allow for both cases; `docs/metrics.md` gives the reasoning and the
measured coverage.

All computation is in float64. Shapes: N questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from firstcli.metrics.calibration import DRAWS, Z95, wilson
from firstcli.metrics.records import Confidence, EvalRecords
from firstcli.metrics.spread import Spread, by_id, mean_spreads
from firstcli.metrics.summary import ROUNDING

LEVEL = 0.05  # error of an interval and of a test
MIN_QUESTIONS = 20  # fewer are not informative
_RANGES = {"accuracy": (0.0, 1.0), "ece": (0.0, 1.0), "trust": (-1.0, 1.0), "ece_true": (0.0, 1.0)}
"""The metrics with intervals, and what they can be."""
_CEILING_LEVEL = 0.005  # a second upper limit, so far out that it costs hardly any coverage


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The value of a metric and its interval over questions of the same kind."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of one model minus that of the other, with its interval."""

    value: float
    interval: Interval
    p_value: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > ROUNDING or self.interval.high < -ROUNDING


def intervals(
    records: Sequence[EvalRecords], confidence: Confidence, bins: int = 10, draws: int = DRAWS
) -> dict[str, Estimate]:
    """Return the estimates of `accuracy`, `ece`, `trust` and `ece_true`, where they are defined.

    Args:
        records: one model's records, one entry per seed, all with the same questions; the values
            are means over the seeds.
        confidence: the confidence that is evaluated.
        bins: number of equal-width bins.
        draws: number of draws.
    """
    _check_same_questions(records)
    n, spreads = len(records[0]), mean_spreads(records, confidence, bins, draws)
    estimates = {
        name: Estimate(spreads[name].value, _interval(spreads[name], n, *limits))
        for name, limits in _RANGES.items()
        if name in spreads
    }
    if "accuracy" in estimates:
        estimates["accuracy"] = _accuracy(records)
    if "trust" in estimates:  # ECE is at least the distance of accuracy and mean confidence
        trust, ceiling = estimates["trust"], estimates["accuracy"].interval.high
        if n >= MIN_QUESTIONS:  # Wilson's limit of accuracy is too low if errors are few
            mean_confidence = spreads["confidence"].high(_CEILING_LEVEL)
            ceiling = min(spreads["accuracy"].high(LEVEL / 2), mean_confidence)
        low, high = trust.interval
        estimates["trust"] = Estimate(trust.value, Interval(low, min(high, ceiling)))
    return estimates


def differences(
    ours: Sequence[EvalRecords],
    theirs: Sequence[EvalRecords],
    confidence: Confidence,
    bins: int = 10,
    draws: int = DRAWS,
) -> dict[str, Difference]:
    """Return ours minus theirs for the metrics of `intervals` that both have.

    Each draw weights the questions alike in all records, so that the difficulty of questions
    cancels.

    Args:
        ours: one model's records, one entry per seed.
        theirs: the other model's records of the same questions.
        confidence: the confidence that is evaluated.
        bins: number of equal-width bins.
        draws: number of draws.
    """
    _check_same_questions([*ours, *theirs])
    left, right = (mean_spreads(models, confidence, bins, draws) for models in (ours, theirs))
    gaps = {name: left[name] - right[name] for name in _RANGES if name in left and name in right}
    found = {}
    for name, gap in gaps.items():
        interval = _interval(gap, len(ours[0]), -2.0, 2.0)
        found[name] = Difference(gap.value, interval, _p_value(gap.value, interval))
    return found


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return the mean difference of a metric over seeds, with the interval of Student's paired t.

    Args:
        ours: one model's values, one per seed.
        theirs: the other model's values for the same seeds.
    """
    from scipy.stats import t

    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"needs two or more seeds of both, not {len(ours)} and {len(theirs)}")
    gaps = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps)))
    if error == 0.0:
        return Difference(mean, Interval(mean, mean), float(mean == 0.0))
    freedom = len(gaps) - 1
    half = float(t.ppf(0.975, freedom)) * error
    p_value = float(2 * t.sf(abs(mean) / error, freedom))
    return Difference(mean, Interval(mean - half, mean + half), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in the same order.

    If those below 0.05 are taken as real, the chance of a single false one among them is 5 %.
    """
    count, corrected, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _interval(spread: Spread, questions: int, lowest: float, highest: float) -> Interval:
    """Return the 95 % interval, clipped to the metric's range."""
    if questions < MIN_QUESTIONS:
        return Interval(lowest, highest)
    return Interval(max(lowest, spread.low(LEVEL / 2)), min(highest, spread.high(LEVEL / 2)))


def _p_value(value: float, interval: Interval) -> float:
    """Return the p-value of a difference from its interval (Altman and Bland 2011).

    It is below 0.05 if the interval excludes zero. The limit towards zero counts, and is taken as a
    normal one: draws alone cannot tell the small p-values that a correction needs.
    """
    half = value - interval.low if value > 0 else interval.high - value
    if half <= ROUNDING:
        return float(abs(value) <= ROUNDING)
    return math.erfc(Z95 * abs(value) / half / math.sqrt(2))


def _accuracy(records: Sequence[EvalRecords]) -> Estimate:
    """Return the mean accuracy with its Wilson interval.

    Over several seeds, the effective number of questions depends on how far the seeds agree (Kish
    1965).
    """
    shares = np.mean([by_id(r, r.correct) for r in records], axis=0)  # (N,), over the seeds
    mean, spread = float(np.mean(shares)), float(np.var(shares))
    n = len(shares) * (mean * (1 - mean) / spread if spread > 0 else 1.0)
    return Estimate(mean, Interval(*wilson(mean, n)))


def _check_same_questions(records: Sequence[EvalRecords]) -> None:
    if not records or len({frozenset(r.ids) for r in records}) > 1:
        raise ValueError("needs one or more records, all of the same questions")
