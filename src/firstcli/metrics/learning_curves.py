"""Learning curves: a metric against what annotations cost, over several seeds.

Shapes: S seeds, P points of a curve, X places at which curves are compared. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firstcli.api import FloatArray

LEVEL = 0.975
"""Quantile of Student's t that limits a two-sided interval of 95 %."""


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """A metric after every round of one seed."""

    places: FloatArray
    """(P,) what was spent by then, ascending: annotations, tokens or money."""
    values: FloatArray
    """(P,) the metric."""

    def at(self, places: FloatArray) -> FloatArray:
        """Return the metric at some places, (X,), linear between the rounds; NaN outside them."""
        return np.interp(places, self.places, self.values, left=np.nan, right=np.nan)

    def needed(self, level: float) -> float | None:
        """Return what has to be spent until the metric first reaches a level; None if it never is.

        Between two rounds the metric is taken to change linearly.
        """
        if self.values[0] >= level:
            return float(self.places[0])
        reached = np.flatnonzero(self.values >= level)
        if not reached.size:
            return None
        after = int(reached[0])
        before = after - 1
        share = (level - self.values[before]) / (self.values[after] - self.values[before])
        return float(self.places[before] + share * (self.places[after] - self.places[before]))


@dataclass(frozen=True, slots=True)
class MeanOverSeeds:
    """A mean and its 95 % interval over seeds (Student's t); with one seed there is none."""

    value: float
    half_width: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanOverSeeds:
        """Return the mean of at least one value per seed."""
        count = len(values)
        mean = float(np.mean(values))
        if count < 2:
            return cls(mean, None, count)
        from scipy.stats import t

        error = float(np.std(values, ddof=1)) / count**0.5
        return cls(mean, float(t.ppf(LEVEL, count - 1)) * error, count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The lower and the upper limit."""
        half = self.half_width
        return None if half is None else (self.value - half, self.value + half)


@dataclass(frozen=True, slots=True)
class NotReached:
    """Some seeds never reach their level, so that there is no mean."""

    missing: int
    """How many do not."""
    seeds: int
    """Of how many."""


def mean_curve(curves: Sequence[LearningCurve]) -> list[tuple[float, MeanOverSeeds]]:
    """Return the mean over seeds at every place that lies within the curves of all seeds.

    Places are those of any seed's rounds; seeds that have no round there are interpolated.
    """
    places = np.unique(np.concatenate([curve.places for curve in curves]))
    values = np.stack([curve.at(places) for curve in curves])  # (S, X)
    inside = np.flatnonzero(np.isfinite(values).all(axis=0))
    return [(float(places[i]), MeanOverSeeds.of(values[:, i].tolist())) for i in inside]


def needed_by_all(
    curves: Sequence[LearningCurve], levels: Sequence[float]
) -> MeanOverSeeds | NotReached:
    """Return what has to be spent until every seed has reached its level.

    Args:
        curves: one curve per seed, of at least one.
        levels: the level of each seed.
    """
    needed = [curve.needed(level) for curve, level in zip(curves, levels, strict=True)]
    reached = [value for value in needed if value is not None]
    if missing := len(needed) - len(reached):
        return NotReached(missing, len(needed))
    return MeanOverSeeds.of(reached)


def needed_difference(
    ours: Sequence[LearningCurve], theirs: Sequence[LearningCurve], levels: Sequence[float]
) -> MeanOverSeeds | NotReached:
    """Return how much more has to be spent with ours than with theirs, paired by seed.

    Args:
        ours: one curve per seed, of at least one.
        theirs: the curves of the same seeds, in the same order.
        levels: the level of each seed.

    Returns:
        The mean of the seeds' differences, unless one of the two does not reach a level.
    """
    differences = []
    for our, their, level in zip(ours, theirs, levels, strict=True):
        pair = our.needed(level), their.needed(level)
        if pair[0] is not None and pair[1] is not None:
            differences.append(pair[0] - pair[1])
    if missing := len(levels) - len(differences):
        return NotReached(missing, len(levels))
    return MeanOverSeeds.of(differences)
