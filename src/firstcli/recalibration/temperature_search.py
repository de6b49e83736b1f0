"""Search for the one temperature that makes a criterion smallest, and say how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.recalibration.criteria import (
    CRITERIA,
    Criterion,
    brier_losses,
    criterion_value,
    judged_rows,
    log_losses,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from firstcli.api import JSON, BoolArray, FloatArray

RESAMPLES = 200
BLOCKS = 1000  # rows are resampled in so many groups at most, so that many rows cost no more
FEWEST_ROWS = 10  # with fewer, resampling sees nothing of what other rows would say
SEED = 0

Curve = dict[float, float]  # temperature -> value of the criterion, ascending
Scale = Callable[["FloatArray", float], "FloatArray"]
ValueAt = Callable[[float], float]
Search = Callable[[ValueAt, bool], Curve]
"""Evaluate a criterion where its minimum may be; the flag says that it has one minimum only."""


class Rows(NamedTuple):
    """What a temperature is fitted on."""

    topk: FloatArray  # (N, k)
    is_label: BoolArray  # (N, k)
    mass: FloatArray  # (N,)

    def where(self, chosen: BoolArray) -> Rows:
        """Keep some rows."""
        return Rows(self.topk[chosen], self.is_label[chosen], self.mass[chosen])


@dataclass(frozen=True, slots=True)
class Fit:
    """The temperature that a criterion likes best, and how far it scatters."""

    temperature: float
    curve: Curve
    rows: int
    resamples: int
    """0 where there were too few rows to resample."""
    interval: tuple[float, float]
    """95 % of the resamples' temperatures, widened to hold the chosen one."""
    spread: float
    """Standard deviation of the resamples' temperatures."""
    flat: bool
    """Whether the rows hardly say which temperature is best."""

    @property
    def at_grid_end(self) -> bool:
        ends = self.curve[min(self.curve)], self.curve[max(self.curve)]
        return min(ends) <= self.curve[self.temperature]

    def state(self) -> dict[str, JSON]:
        """Return it as JSON."""
        return {
            "temperature": self.temperature,
            "interval": list(self.interval),
            "spread": self.spread,
            "curve": [[temperature, value] for temperature, value in self.curve.items()],
        }


def fits(scale: Scale, search: Search, rows: Rows, bins: int) -> dict[Criterion, Fit]:
    """Fit a temperature by every criterion that has rows to judge."""
    if not len(rows.topk):
        return {}
    resampled = Resampled(scale, rows, bins)
    found = {}
    for criterion in CRITERIA:
        used = rows.where(judged_rows(criterion, rows.is_label, rows.mass))
        if len(used.topk):
            found[criterion] = _fit(criterion, scale, search, used, bins, resampled)
    return found


def _fit(
    criterion: Criterion, scale: Scale, search: Search, used: Rows, bins: int, resampled: Resampled
) -> Fit:
    def value_at(temperature: float) -> float:
        target = scale(used.topk, temperature)
        return criterion_value(criterion, target, used.is_label, used.mass, bins)

    curve = search(value_at, criterion == "nll")
    best = best_temperature(curve)
    ends = min(curve), max(curve)
    if len(used.topk) < FEWEST_ROWS:  # then it might be anywhere
        return Fit(best, curve, len(used.topk), 0, ends, (ends[1] - ends[0]) / 12**0.5, True)
    scattered = resampled.temperatures(criterion, search)
    low = float(np.quantile(scattered, 0.025, method="lower"))  # a temperature that was found
    high = float(np.quantile(scattered, 0.975, method="higher"))
    interval = min(low, best), max(high, best)
    worst = max(curve, key=curve.__getitem__)
    rises = resampled.values(criterion, worst) - resampled.values(criterion, best)
    is_wide = _share(interval, ends) > 0.5
    flat = is_wide or bool(np.quantile(rises, 0.025) <= 0)
    spread = float(scattered.std())
    return Fit(best, curve, len(used.topk), RESAMPLES, interval, spread, flat)


def _share(interval: tuple[float, float], searched: tuple[float, float]) -> float:
    """Return how much of the searched range an interval covers, on a scale of ratios."""
    (low, high), (lowest, highest) = np.log(interval), np.log(searched)
    return float((high - low) / (highest - lowest))


class Resampled:
    """The criteria over resamples of the rows: groups of rows, drawn with replacement.

    Criteria are made of sums over rows, so each group is added up once for each temperature, and
    a resample is a weighted sum of at most `BLOCKS` groups. Rows of one group are a random choice
    of all rows, which leaves the variance of a resampled sum what it is with single rows.
    """

    def __init__(self, scale: Scale, rows: Rows, bins: int) -> None:
        """Take all rows; in which order is of no account."""
        order = np.lexsort((*rows.topk.T, *rows.is_label.T, rows.mass))
        self._rows = Rows(rows.topk[order], rows.is_label[order], rows.mass[order])
        _, is_label, mass = self._rows
        self._used = {name: judged_rows(name, is_label, mass) for name in CRITERIA}
        self._scale, self._bins = scale, bins
        self._edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]  # bins (lo, hi], as in `metrics.ece`
        count, generator = len(order), np.random.default_rng(SEED)
        blocks = min(count, BLOCKS)
        self._block = generator.permutation(count) % blocks  # (N,)
        share = np.full(blocks, 1 / blocks)
        self._times = generator.multinomial(blocks, share, RESAMPLES).astype(np.float64)  # (R, G)
        self._known: dict[float, dict[Criterion, FloatArray]] = {}

    def values(self, criterion: Criterion, temperature: float) -> FloatArray:
        """Return the criterion of every resample, (R,), up to a factor that no T changes."""
        if temperature not in self._known:
            self._known[temperature] = self._all_values(temperature)
        return self._known[temperature][criterion]

    def temperatures(self, criterion: Criterion, search: Search) -> FloatArray:
        """Return the temperature that each resample likes best, (R,)."""
        known: dict[float, list[float]] = {}

        def values(temperature: float) -> list[float]:
            if temperature not in known:
                known[temperature] = self.values(criterion, temperature).tolist()
            return known[temperature]

        def best(resample: int) -> float:
            curve = search(lambda temperature: values(temperature)[resample], False)
            return vertex(curve) if criterion == "nll" else best_temperature(curve)

        return np.array([best(resample) for resample in range(RESAMPLES)])

    def _all_values(self, temperature: float) -> dict[Criterion, FloatArray]:
        topk, is_label, mass = self._rows
        target = self._scale(topk, temperature)
        confidence = mass * target[:, 0]
        bin_of = np.searchsorted(self._edges, confidence, side="left")  # (N,)
        gaps = self._sums(confidence - is_label[:, 0], bin_of, self._bins)  # (R, bins)
        return {
            "ece": np.abs(gaps).sum(axis=1) / len(topk),
            "nll": self._mean("nll", log_losses(target, is_label, mass)),
            "brier": self._mean("brier", brier_losses(target, is_label, mass)),
        }

    def _mean(self, criterion: Criterion, losses: FloatArray) -> FloatArray:
        sums = self._sums(losses * self._used[criterion], np.zeros(len(losses), np.intp), 1)
        return np.asarray(sums[:, 0] / max(int(self._used[criterion].sum()), 1))

    def _sums(self, values: FloatArray, column: npt.NDArray[np.intp], columns: int) -> FloatArray:
        """Add the rows of every resample up, in each column by itself, (R, columns)."""
        blocks = self._times.shape[1]
        flat = np.bincount(self._block * columns + column, values, blocks * columns)
        return np.asarray(self._times @ flat.reshape(blocks, columns))


def best_temperature(curve: Curve) -> float:
    """Return the T of the smallest value; of equal ones the larger T, which is less confident."""
    return min(curve, key=lambda temperature: (curve[temperature], -temperature))


def vertex(curve: Curve) -> float:
    """Return where a parabola through the smallest value and its neighbours, over log T, is least.

    For criteria that are smooth, so that no grid shows in how they scatter.
    """
    best = best_temperature(curve)
    temperatures = list(curve)
    at = temperatures.index(best)
    if at in (0, len(temperatures) - 1):
        return best
    left, middle, right = (temperatures[at + step] for step in (-1, 0, 1))
    x, z = np.log(left / middle), np.log(right / middle)
    fall, rise = curve[left] - curve[middle], curve[right] - curve[middle]
    divisor = 2 * (z * fall - x * rise)
    if divisor <= 0:
        return best
    shift = (z * z * fall - x * x * rise) / divisor
    return float(middle * np.exp(np.clip(shift, x, z)))


def search_hundredths(value_at: ValueAt) -> Curve:
    """Search (0, 1] in steps of 0.10, then of 0.02 around the best (paper, section 5.5).

    T is counted in integer hundredths, so that 0.3 is 0.3 however it was reached.
    """
    coarse = {count / 100: value_at(count / 100) for count in range(10, 101, 10)}
    best = round(100 * best_temperature(coarse))
    fine = {
        count / 100: value_at(count / 100)
        for count in range(best - 10, best + 11, 2)
        if 0 < count <= 100
    }
    return dict(sorted((coarse | fine).items()))


def search_log_spaced(value_at: ValueAt, unimodal: bool) -> Curve:
    """Search [0.1, 10] at 40 log-spaced values, then between the neighbours of the best.

    A criterion with one minimum is minimised there; the ECE jumps where a row changes its bin and
    the Brier score is not convex, so they are evaluated at finer values instead.
    """
    grid = _log_spaced(0.1, 10)
    coarse = {temperature: value_at(temperature) for temperature in grid}
    best = grid.index(best_temperature(coarse))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    inner = [_minimum(value_at, low, high)] if unimodal else _log_spaced(low, high)[1:-1]
    fine = {temperature: value_at(temperature) for temperature in inner}
    return dict(sorted((coarse | fine).items()))


@cache
def _log_spaced(low: float, high: float) -> list[float]:
    spaced: list[float] = np.geomspace(low, high, 40).tolist()
    return spaced


def _minimum(value_at: ValueAt, low: float, high: float) -> float:
    """Minimise over log T between two temperatures."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_temperature: value_at(float(np.exp(log_temperature))),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(found.x))
