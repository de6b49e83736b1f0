"""Draws of a metric's value for infinitely many questions.

A draw gives each question a random weight (the Bayesian bootstrap; Rubin 1981). Two things need
more than that:

- **Unseen outcomes.** A bin without errors has no variance to draw from. Each draw therefore
  includes one more question with the outcome that moves the limit furthest, which makes the limits
  of a share those of Clopper and Pearson (1934).
- **Unclear signs.** An ECE is a sum of absolute gaps: the largest sum of the gaps over all choices
  of their signs. Trust, accuracy minus ECE, is a smallest sum. The wrong signs of unclear gaps bias
  the estimate, and hide how much a sum with the right signs would vary.

All computation is in float64. Shapes: N questions, B bins, D draws, C choices of signs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import SEED, Z95, bin_gaps, bin_index
from firstcli.metrics.records import Confidence, EvalRecords

_CLEAR_ERRORS = 2.0  # standard errors from which the sign of a bin's gap is clear
_CHUNK = 2**21  # weights held in memory


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric's value, and draws from which its limits are read.

    Each row of `lows` and `highs` is one choice of unclear signs. The lower limit is the lowest
    quantile of the rows of `lows`, the upper limit the highest of the rows of `highs`.
    """

    value: float
    lows: FloatArray  # (C, D)
    highs: FloatArray  # (C, D)

    def __sub__(self, other: Spread) -> Spread:
        lows, highs = _less(self.lows, other.highs), _less(self.highs, other.lows)
        return Spread(self.value - other.value, lows, highs)

    def low(self, level: float) -> float:
        """Return the limit below which the true value is with probability `level`."""
        return min(self.value, float(np.quantile(self.lows, level, axis=1).min()))

    def high(self, level: float) -> float:
        """Return the limit above which the true value is with probability `level`."""
        return max(self.value, float(np.quantile(self.highs, 1 - level, axis=1).max()))


def mean_spreads(
    records: Sequence[EvalRecords], confidence: Confidence, bins: int, draws: int
) -> dict[str, Spread]:
    """Return the spreads of accuracy, confidence, ECE, Trust and `ece_true`, where defined.

    Args:
        records: one model's records, one entry per seed, all with the same questions.
        confidence: the confidence that is evaluated.
        bins: number of equal-width bins.
        draws: number of draws; draw i weights the questions alike in all records.
    """
    by_seed = [_spreads(r, confidence, bins, draws) for r in records]
    names = [name for name in by_seed[0] if all(name in spreads for spreads in by_seed)]
    return {name: _mean(spreads[name] for spreads in by_seed) for name in names}


def by_id(records: EvalRecords, values: FloatArray | BoolArray) -> FloatArray:
    """Return the values sorted by question id, so that the order of questions does not matter."""
    order = sorted(range(len(records)), key=lambda i: records.ids[i])
    return np.asarray(values, dtype=np.float64)[order]


@lru_cache(maxsize=128)  # a report compares each row with several baselines
def _spreads(
    records: EvalRecords, confidence: Confidence, bins: int, draws: int
) -> dict[str, Spread]:
    if not records.answerable:
        return {}
    right, shown = by_id(records, records.correct), records.shown(confidence)
    unseen = _unseen(len(records), bins, draws)
    if shown is None:
        return {"accuracy": _accuracy(right, _weighted(right[:, None], draws)[:, 0], unseen)}
    shown = by_id(records, shown)
    outcomes = {"ece": right}
    if records.p_right is not None:
        outcomes["ece_true"] = by_id(records, records.p_right)
    columns = [right[:, None], *(_gaps(shown, outcome, bins) for outcome in outcomes.values())]
    drawn = _weighted(np.hstack(columns), draws)  # (D, 1 + B or 1 + 2 B)
    parts = {name: drawn[:, 1 + i * bins :][:, :bins] for i, name in enumerate(outcomes)}
    model = _Binned(shown, right, parts["ece"], unseen)
    means = (drawn[:, 0] + parts["ece"].sum(axis=1))[None]  # (1, D) of the confidence
    spreads = {
        "accuracy": _accuracy(right, drawn[:, 0], unseen),
        "confidence": Spread(float(np.mean(shown)), means, means),
        "ece": model.ece(),
        "trust": model.trust(drawn[:, 0]),
    }
    if "ece_true" in outcomes:  # known probabilities hide no outcomes
        known = _Binned(shown, outcomes["ece_true"], parts["ece_true"], unseen=None)
        spreads["ece_true"] = known.ece()
    return spreads


class _Unseen(NamedTuple):
    """The chance of outcomes that the questions do not show."""

    low: FloatArray  # (D,) weight of one more question, for lower limits
    high: FloatArray  # (D,) the same for upper limits; independent, as differences use both
    normal: FloatArray  # (D, B)


def _unseen(n: int, bins: int, draws: int) -> _Unseen:
    random = np.random.default_rng([SEED, 1])
    low, high = random.beta(1, n, (2, draws))
    return _Unseen(low, high, random.standard_normal((draws, bins)))


class _Binned:
    """The gaps of one model's bins, as observed and in each draw."""

    def __init__(
        self, confidence: FloatArray, outcome: FloatArray, drawn: FloatArray, unseen: _Unseen | None
    ) -> None:
        """Compare confidences with outcomes.

        Args:
            confidence: of each prediction, (N,).
            outcome: whether it is right, or the known probability that it is, (N,).
            drawn: each bin's gap times its share of the questions in each draw, (D, B).
            unseen: None if the outcomes are known probabilities.
        """
        n, bins = len(confidence), drawn.shape[1]
        index = bin_index(confidence, bins)
        self._drawn, self._unseen = drawn, unseen
        self._outcome = float(np.mean(outcome))
        self._share = np.bincount(index, minlength=bins) / n  # (B,)
        sums = np.bincount(index, weights=confidence, minlength=bins) / n
        self._confidence = sums / np.maximum(self._share, 1 / n)  # (B,), 0 if empty
        self._gap = bin_gaps(confidence, outcome, bins)
        squares = np.bincount(index, weights=(confidence - outcome) ** 2, minlength=bins) / n
        self._variance = np.maximum(squares - self._gap**2, 0.0) / n  # (B,) of the gap
        self._null = np.zeros(bins)  # (B,) the same if the bin is calibrated
        if unseen is not None:
            chance = confidence * (1 - confidence)
            self._null = np.bincount(index, weights=chance, minlength=bins) / n**2
        self._sign = np.where(self._gap >= 0, 1.0, -1.0)
        error = np.sqrt(np.maximum(self._variance, self._null))
        self._clear = np.abs(self._gap) > _CLEAR_ERRORS * error

    def ece(self) -> Spread:
        """Return the spread of the ECE, the largest sum of the gaps over all signs."""
        widest = np.where(self._clear, self._sign, 1.0)  # errors are rarer than right answers
        highs = [
            self._one_more_high(self._drawn @ sign, self._gap_if(sign < 0) @ (sign * self._share))
            for sign in (self._sign, widest)
        ]
        smaller = self._gap_if(self._sign > 0) * self._sign * self._clear @ self._share
        low = self._one_more_low(self._least_ece, smaller)
        return Spread(float(np.abs(self._gap).sum()), low[None], np.stack(highs))

    def trust(self, accuracy: FloatArray) -> Spread:
        """Return the spread of Trust, the smallest of accuracy - sum of the gaps over all signs.

        Any choice of signs gives a lower limit that is low enough if the choice is right. The
        lowest of these limits therefore holds whatever the true signs are.
        """
        lows = [
            self._one_more_low(
                accuracy - self._drawn @ sign, -(sign * self._confidence) @ self._share
            )
            for sign in (self._sign, self._widest_trust(accuracy))
        ]
        favourable = np.where(self._sign > 0, 2 - self._confidence, self._confidence)
        best = np.where(self._clear, favourable, 1.0) @ self._share
        high = self._one_more_high(accuracy - self._least_ece, best)
        value = self._outcome - float(np.abs(self._gap).sum())
        return Spread(value, np.stack(lows), high[None])

    @cached_property
    def _least_ece(self) -> FloatArray:
        """Draws of the ECE if bins with an unclear gap are calibrated, (D,).

        Chance opened their gaps; how far, the spread of a calibrated bin tells.
        """
        noise = self._drawn - self._gap
        if self._unseen is not None:
            missing = np.sqrt(np.maximum(self._null - self._variance, 0.0))
            noise = noise + missing * self._unseen.normal
        unclear = np.abs(self._gap) - np.abs(noise)
        gaps: FloatArray = np.where(self._clear, np.abs(self._drawn), unclear)
        least: FloatArray = gaps.sum(axis=1)
        return least

    def _widest_trust(self, accuracy: FloatArray) -> FloatArray:
        """Return the signs of the lowest limit of Trust, (B,), by a normal approximation.

        A bin adds mean confidence to Trust if it is under-confident, and 2 accuracy - confidence
        otherwise, which varies more. To take an observed sign as wrong raises the sum by twice the
        gap. Bins are turned in the order of this cost per additional variance.
        """
        sign = self._sign.copy()
        bins = np.flatnonzero((sign < 0) & (self._share > 0))
        costs = 2 * np.abs(self._gap[bins])
        gains = 4 * np.maximum(np.maximum(self._variance, self._null)[bins], np.finfo(float).tiny)
        order = np.argsort(costs / gains, kind="stable")
        before = np.var(accuracy - self._drawn @ sign)
        variance = before + np.cumsum(np.r_[0.0, gains[order]])
        limits = np.cumsum(np.r_[0.0, costs[order]]) - Z95 * np.sqrt(variance)
        sign[bins[order[: np.argmin(limits)]]] = 1.0
        return sign

    def _gap_if(self, right: BoolArray) -> FloatArray:
        """Return the gap of one more question in each bin, answered right or wrong, (B,)."""
        return self._confidence - right

    def _one_more_low(self, draws: FloatArray, value: float | FloatArray) -> FloatArray:
        return draws if self._unseen is None else _mixed(draws, value, self._unseen.low)

    def _one_more_high(self, draws: FloatArray, value: float | FloatArray) -> FloatArray:
        return draws if self._unseen is None else _mixed(draws, value, self._unseen.high)


def _accuracy(right: FloatArray, drawn: FloatArray, unseen: _Unseen) -> Spread:
    low, high = _mixed(drawn, 0.0, unseen.low), _mixed(drawn, 1.0, unseen.high)
    return Spread(float(np.mean(right)), low[None], high[None])


def _mixed(draws: FloatArray, value: float | FloatArray, weight: FloatArray) -> FloatArray:
    """Return the draws with one more question of this value, (D,)."""
    return draws + weight * (value - draws)


def _gaps(confidence: FloatArray, outcome: FloatArray, bins: int) -> FloatArray:
    """Return confidence minus outcome in the column of each question's bin, (N, B)."""
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), bin_index(confidence, bins)] = confidence - outcome
    return gaps


def _weighted(columns: FloatArray, draws: int) -> FloatArray:
    """Return the column means under random weights of the rows, (D, K).

    The same number of rows gives the same weights.
    """
    n = len(columns)
    if n * draws <= _CHUNK:
        return np.asarray(_few_weights(n, draws) @ columns)
    random, step = np.random.default_rng(SEED), max(1, _CHUNK // n)
    chunks = (min(step, draws - first) for first in range(0, draws, step))
    return np.concatenate([_weights(random, rows, n) @ columns for rows in chunks])


@lru_cache(maxsize=1)  # models that answered the same questions follow one another
def _few_weights(n: int, draws: int) -> FloatArray:
    return _weights(np.random.default_rng(SEED), draws, n)


def _weights(random: np.random.Generator, rows: int, n: int) -> FloatArray:
    weights = random.standard_exponential((rows, n))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _less(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Return each row of `ours` minus each row of `theirs`, (C, D)."""
    return (ours[:, None] - theirs[None]).reshape(-1, ours.shape[1])


def _mean(spreads: Iterable[Spread]) -> Spread:
    values, lows, highs = zip(*((s.value, s.lows, s.highs) for s in spreads), strict=True)
    return Spread(float(np.mean(values)), np.mean(lows, axis=0), np.mean(highs, axis=0))
