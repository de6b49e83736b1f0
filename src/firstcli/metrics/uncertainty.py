"""How far accuracy, ECE, Trust and their differences between models can be trusted.

Questions are the sample: an interval says what other questions of the same kind might have given.
ECE estimates are biased upwards where bins are calibrated, since chance alone opens gaps, and by
nothing where a bin's gap is clear. The intervals are about the ECE of infinitely many questions in
the same bins and allow for both: `docs/metrics.md` has the reasoning and the coverage measured.

All in float64. Shapes: N questions, B bins, D draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.metrics.calibration import DRAWS, bin_index, ece_null, wilson

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray
    from firstcli.metrics.records import EvalRecords
    from firstcli.metrics.summary import Confidence

__all__ = [
    "Difference",
    "Estimate",
    "Interval",
    "differences",
    "ece_null",
    "intervals",
    "over_seeds",
]

FEWEST = 20  # questions; resampling fewer cannot say anything
_CLEAR = 2.0  # standard errors that tell the sign of a bin's gap
_ROUNDING = 1e-12  # differences below it are those of sums in another order
_CHUNK = 2**21  # resampled questions at a time


class Interval(NamedTuple):
    """Both ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and what other questions of the same kind might have given."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of ours minus that of theirs."""

    value: float
    interval: Interval
    p_value: float | None = None

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > _ROUNDING or self.interval.high < -_ROUNDING


def intervals(
    records: Sequence[EvalRecords],
    confidence: Confidence,
    bins: int = 10,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return `accuracy`, `ece`, `trust` and, with known truth, `ece_true`, as far as they exist.

    Args:
        records: of one model, one entry a seed, over the same questions; values are their means.
        confidence: which confidence is judged.
        bins: number of bins of equal width.
        draws: number of resamples.
        seed: of the resampling.
    """
    found = _mean_spreads(records, confidence, bins, draws, seed)
    limits = {"trust": (-1.0, 1.0)}
    made = {
        name: Estimate(spread.value, spread.interval(*limits.get(name, (0.0, 1.0))))
        for name, spread in found.items()
    }
    if "accuracy" in made:
        made["accuracy"] = _accuracy(np.mean([_sorted(r, r.correct) for r in records], axis=0))
    if "trust" in made:  # accuracy minus what is never negative
        trust, most = made["trust"], made["accuracy"].interval.high
        interval = Interval(trust.interval.low, min(trust.interval.high, most))
        made["trust"] = Estimate(trust.value, interval)
    return made


def differences(
    ours: Sequence[EvalRecords],
    theirs: Sequence[EvalRecords],
    confidence: Confidence,
    bins: int = 10,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Difference]:
    """Return ours minus theirs, with the same keys as `intervals`, as far as both have them.

    Each resample takes the same questions from all records, so that what makes a question hard
    for both cancels.

    Args:
        ours: of one model, one entry a seed.
        theirs: of the other model, over the same questions.
        confidence: which confidence is judged.
        bins: number of bins of equal width.
        draws: number of resamples.
        seed: of the resampling.
    """
    _check_same_questions([*ours, *theirs])
    left = _mean_spreads(ours, confidence, bins, draws, seed)
    right = _mean_spreads(theirs, confidence, bins, draws, seed)
    gaps = {name: left[name] - right[name] for name in left if name in right}
    return {name: Difference(gap.value, gap.interval(-2.0, 2.0)) for name, gap in gaps.items()}


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Return the mean difference of a metric over seeds, with Student's paired t.

    Args:
        ours: the metric, one entry a seed.
        theirs: that of the other model, for the same seeds.
    """
    from scipy.stats import t

    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"needs two seeds or more of both, not {len(ours)} and {len(theirs)}")
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
    """A metric, and by how much resamples of the questions exceed what they are resampled from.

    That is known within bounds only: `least` holds where chance opens no gaps, `most` where it
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
        """Return what the metric may be of infinitely many questions, within its range."""
        if self.questions < FEWEST:
            return Interval(lowest, highest)
        low = self.value - float(np.quantile(self.most, 0.975))
        high = self.value - float(np.quantile(self.least, 0.025))
        return Interval(max(lowest, low), min(highest, high))


def _mean_spreads(
    records: Sequence[EvalRecords], confidence: Confidence, bins: int, draws: int, seed: int
) -> dict[str, _Spread]:
    _check_same_questions(records)
    found = [_spreads(one, confidence, bins, draws, seed) for one in records]
    shared = [name for name in found[0] if all(name in one for one in found)]
    return {name: _mean([one[name] for one in found]) for name in shared}


def _mean(spreads: Sequence[_Spread]) -> _Spread:
    return _Spread(
        float(np.mean([one.value for one in spreads])),
        np.mean([one.least for one in spreads], axis=0),
        np.mean([one.most for one in spreads], axis=0),
        spreads[0].questions,
    )


@lru_cache(maxsize=128)  # a report compares every row with several others
def _spreads(
    records: EvalRecords, confidence: Confidence, bins: int, draws: int, seed: int
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
    shifts = _resampled(np.hstack(list(columns.values())), draws, seed)
    first = shifts[:, 0]
    found = {"accuracy": _Spread(float(np.mean(correct)), first, first, len(records))}
    for place, name in enumerate(list(columns)[1:]):
        noise = shifts[:, 1 + place * bins : 1 + (place + 1) * bins]  # (D, B)
        found[name] = _ece_spread(columns[name], noise)
    if "ece" in found:
        found["trust"] = found["accuracy"] - found["ece"]
    return found


def _gaps(confidence: FloatArray, outcome: FloatArray, bins: int) -> FloatArray:
    """Return confidence minus outcome in the column of each question's bin, (N, B)."""
    own = np.zeros((len(confidence), bins))
    own[np.arange(len(confidence)), bin_index(confidence, bins)] = confidence - outcome
    return own


def _ece_spread(own: FloatArray, noise: FloatArray) -> _Spread:
    """Bound by how much resampling raises an ECE.

    A resample adds noise to each bin's gap. Where the gap is clear its size grows as often as it
    shrinks; where the bin may as well be calibrated any noise makes it larger.

    Args:
        own: the gap of each question, in the column of its bin, (N, B).
        noise: by how much resampling changes the columns' means, (D, B).
    """
    n, gaps = len(own), own.mean(axis=0)  # (B,)
    error = np.sqrt(np.maximum((own**2).mean(axis=0) - gaps**2, 0.0) / n)
    clear = np.where(np.abs(gaps) > _CLEAR * error, gaps, 0.0)
    most = (np.abs(clear + noise) - np.abs(clear)).sum(axis=1)
    return _Spread(float(np.abs(gaps).sum()), noise @ np.sign(gaps), most, n)


def _resampled(columns: FloatArray, draws: int, seed: int) -> FloatArray:
    """Return the columns' means over resampled rows, minus their means over all rows, (D, K).

    The same seed and number of rows resample the same rows.
    """
    n = len(columns)
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    means: list[FloatArray] = []
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picked = random.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(picked.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(times.astype(np.float64) @ columns / n)
    return np.asarray(np.concatenate(means) - columns.mean(axis=0))


def _accuracy(shares: FloatArray) -> Estimate:
    """Return Wilson's interval of a mean of shares, (N,): how often each question was right.

    Over several seeds a question counts as much as their agreement makes it count (Kish 1965).
    """
    mean, spread = float(np.mean(shares)), float(np.var(shares))
    n = len(shares) * (mean * (1 - mean) / spread if spread > 0 else 1.0)
    return Estimate(mean, Interval(*wilson(mean, n)))


def _sorted(records: EvalRecords, values: FloatArray | BoolArray) -> FloatArray:
    """Return values in the order of the ids: the order of the questions has no influence."""
    order = sorted(range(len(records)), key=lambda i: records.ids[i])
    return np.asarray(values, dtype=np.float64)[order]


def _check_same_questions(records: Sequence[EvalRecords]) -> None:
    if not records or len({frozenset(one.ids) for one in records}) > 1:
        raise ValueError("needs records, all of them of the same questions")
