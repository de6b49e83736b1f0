"""Intervals of accuracy, ECE and Trust, and of their differences between models.

The questions are the sample: an interval covers the values that other questions of the same kind
might give. The ECE estimate is biased upwards where bins are calibrated, because chance alone opens
gaps, and unbiased where a bin's gap is clear. The intervals concern the ECE of infinitely many
questions in the same bins and allow for both cases; `docs/metrics.md` gives the reasoning and the
measured coverage.

All computation is in float64. Shapes: N questions, B bins, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import DRAWS, SEED, bin_index, wilson
from firstcli.metrics.records import Confidence, EvalRecords
from firstcli.metrics.summary import ROUNDING

MIN_QUESTIONS = 20  # resampling fewer questions is not informative
_CLEAR_ERRORS = 2.0  # standard errors from which the sign of a bin's gap is clear
_CHUNK = 2**21  # resampled questions held in memory


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
    p_value: float | None = None

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
        draws: number of resamples.
    """
    spreads = _mean_spreads(records, confidence, bins, draws)
    limits = {"trust": (-1.0, 1.0)}
    estimates = {
        name: Estimate(spread.value, spread.interval(*limits.get(name, (0.0, 1.0))))
        for name, spread in spreads.items()
    }
    if "accuracy" in estimates:
        estimates["accuracy"] = _accuracy(records)
    if "trust" in estimates:  # ECE is never negative, so Trust cannot exceed accuracy
        trust, highest = estimates["trust"], estimates["accuracy"].interval.high
        interval = Interval(trust.interval.low, min(trust.interval.high, highest))
        estimates["trust"] = Estimate(trust.value, interval)
    return estimates


def differences(
    ours: Sequence[EvalRecords],
    theirs: Sequence[EvalRecords],
    confidence: Confidence,
    bins: int = 10,
    draws: int = DRAWS,
) -> dict[str, Difference]:
    """Return ours minus theirs for the metrics of `intervals` that both have.

    Each resample takes the same questions from all records, so that the difficulty of questions
    cancels.

    Args:
        ours: one model's records, one entry per seed.
        theirs: the other model's records of the same questions.
        confidence: the confidence that is evaluated.
        bins: number of equal-width bins.
        draws: number of resamples.
    """
    _check_same_questions([*ours, *theirs])
    left, right = (_mean_spreads(models, confidence, bins, draws) for models in (ours, theirs))
    gaps = {name: left[name] - right[name] for name in left if name in right}
    return {name: Difference(gap.value, gap.interval(-2.0, 2.0)) for name, gap in gaps.items()}


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


@dataclass(frozen=True, slots=True)
class _Spread:
    """A metric, and by how much it is larger in resamples of the questions.

    The excess is known within bounds only: `least` holds if chance opens no gaps, `most` if it
    opens as many as the data allow.
    """

    value: float
    least: FloatArray  # (D,)
    most: FloatArray  # (D,)
    questions: int

    def __sub__(self, other: _Spread) -> _Spread:
        value, least, most = self.value - other.value, self.least, self.most
        return _Spread(value, least - other.most, most - other.least, self.questions)

    def interval(self, lowest: float, highest: float) -> Interval:
        """Return the interval for infinitely many questions, clipped to the metric's range."""
        if self.questions < MIN_QUESTIONS:
            return Interval(lowest, highest)
        low = self.value - float(np.quantile(self.most, 0.975))
        high = self.value - float(np.quantile(self.least, 0.025))
        return Interval(max(lowest, low), min(highest, high))


def _mean_spreads(
    records: Sequence[EvalRecords], confidence: Confidence, bins: int, draws: int
) -> dict[str, _Spread]:
    _check_same_questions(records)
    by_seed = [_spreads(r, confidence, bins, draws) for r in records]
    means = {}
    for name in by_seed[0]:
        if all(name in spreads for spreads in by_seed):
            value = float(np.mean([spreads[name].value for spreads in by_seed]))
            least = np.mean([spreads[name].least for spreads in by_seed], axis=0)
            most = np.mean([spreads[name].most for spreads in by_seed], axis=0)
            means[name] = _Spread(value, least, most, len(records[0]))
    return means


@lru_cache(maxsize=128)  # a report compares each row with several baselines
def _spreads(
    records: EvalRecords, confidence: Confidence, bins: int, draws: int
) -> dict[str, _Spread]:
    if not records.answerable:
        return {}
    correct = _sorted(records, records.correct)
    columns = {"accuracy": correct[:, None]}
    if (shown := records.shown(confidence)) is not None:
        shown = _sorted(records, shown)
        columns["ece"] = _gaps(shown, correct, bins)
        if (p_right := records.p_right) is not None:
            columns["ece_true"] = _gaps(shown, _sorted(records, p_right), bins)
    shifts = _resampled(np.hstack(list(columns.values())), draws)
    first = shifts[:, 0]
    spreads = {"accuracy": _Spread(float(np.mean(correct)), first, first, len(records))}
    for i, name in enumerate(list(columns)[1:]):
        noise = shifts[:, 1 + i * bins : 1 + (i + 1) * bins]  # (D, B)
        spreads[name] = _ece_spread(columns[name], noise)
    if "ece" in spreads:
        spreads["trust"] = spreads["accuracy"] - spreads["ece"]
    return spreads


def _gaps(confidence: FloatArray, outcome: FloatArray, bins: int) -> FloatArray:
    """Return confidence minus outcome in the column of each question's bin, (N, B)."""
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), bin_index(confidence, bins)] = confidence - outcome
    return gaps


def _ece_spread(question_gaps: FloatArray, noise: FloatArray) -> _Spread:
    """Bound the increase of an ECE by resampling.

    A resample adds `noise`, (D, B), to the gap of each bin, the mean of a column of
    `question_gaps`, (N, B). If the gap is clear, its size grows as often as it shrinks; if the bin
    may be calibrated, any noise makes the gap larger.
    """
    n, gaps = len(question_gaps), question_gaps.mean(axis=0)  # (B,)
    error = np.sqrt(np.maximum((question_gaps**2).mean(axis=0) - gaps**2, 0.0) / n)
    clear = np.where(np.abs(gaps) > _CLEAR_ERRORS * error, gaps, 0.0)
    most = (np.abs(clear + noise) - np.abs(clear)).sum(axis=1)
    return _Spread(float(np.abs(gaps).sum()), noise @ np.sign(gaps), most, n)


def _resampled(columns: FloatArray, draws: int) -> FloatArray:
    """Return the column means of resampled rows minus the column means of all rows, (D, K).

    The same number of rows gives the same resamples.
    """
    n = len(columns)
    random = np.random.default_rng(SEED)
    step = max(1, _CHUNK // n)
    means: list[FloatArray] = []
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picked = random.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(times.astype(np.float64) @ columns / n)
    return np.asarray(np.concatenate(means) - columns.mean(axis=0))


def _accuracy(records: Sequence[EvalRecords]) -> Estimate:
    """Return the mean accuracy with its Wilson interval.

    Over several seeds, the effective number of questions depends on how far the seeds agree (Kish
    1965).
    """
    shares = np.mean([_sorted(r, r.correct) for r in records], axis=0)  # (N,), over the seeds
    mean, spread = float(np.mean(shares)), float(np.var(shares))
    n = len(shares) * (mean * (1 - mean) / spread if spread > 0 else 1.0)
    return Estimate(mean, Interval(*wilson(mean, n)))


def _sorted(records: EvalRecords, values: FloatArray | BoolArray) -> FloatArray:
    """Return the values sorted by question id, so that the order of questions does not matter."""
    order = sorted(range(len(records)), key=lambda i: records.ids[i])
    return np.asarray(values, dtype=np.float64)[order]


def _check_same_questions(records: Sequence[EvalRecords]) -> None:
    if not records or len({frozenset(r.ids) for r in records}) > 1:
        raise ValueError("needs one or more records, all of the same questions")
