"""The temperature that minimises a criterion, with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from firstcli.api import FitInputs, FloatArray
from firstcli.metrics import FLOOR
from firstcli.metrics.calibration import bin_index
from firstcli.recalibration.criteria import (
    CRITERIA,
    LOSSES,
    Criterion,
    criterion_value,
    outcome_probability,
    scored_rows,
)

RESAMPLES = 200
MAX_BLOCKS = 1000  # rows are resampled in at most this many blocks, which bounds the cost
MIN_ROWS_TO_RESAMPLE = 10  # resamples of fewer rows say nothing about other rows
SEED = 0

CriterionValues = dict[float, float]  # temperature -> value of the criterion, ascending
Scale = Callable[[FloatArray, float], FloatArray]
ValueAt = Callable[[float], float]
Search = Callable[[ValueAt, bool], CriterionValues]
"""Evaluate a criterion where its minimum may be; the flag promises that there is only one."""


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """The temperature that minimises a criterion, with its bootstrap interval."""

    temperature: float
    curve: list[list[float]]  # [temperature, value of the criterion], by ascending temperature
    at_grid_end: bool  # whether an end of the searched range is as good
    rows: int
    floored: int  # number of outcomes whose probability the criterion `nll` raises to `FLOOR`
    resamples: int  # 0 if there are too few rows
    interval: list[float]  # 95 % of the resampled temperatures, widened to contain the chosen one
    spread: float  # standard deviation of the resampled temperatures
    flat: bool  # whether the rows hardly determine the temperature


def fit_temperatures(
    scale: Scale, search: Search, rows: FitInputs, bins: int
) -> dict[Criterion, TemperatureFit]:
    """Fit one temperature per criterion; a criterion without rows to score is left out.

    Args:
        scale: applies a temperature to (N, k) probabilities.
        search: evaluates a criterion where its minimum may be.
        rows: all rows; order does not matter.
        bins: number of bins of the ECE.
    """
    if not len(rows.topk):
        return {}
    resampled = Resampled(scale, rows, bins)
    scored = {criterion: rows.rows(scored_rows(criterion, rows)) for criterion in CRITERIA}
    return {
        criterion: _fit_temperature(criterion, search, used, resampled)
        for criterion, used in scored.items()
        if len(used.topk)
    }


def _fit_temperature(
    criterion: Criterion, search: Search, used: FitInputs, resampled: Resampled
) -> TemperatureFit:
    def value_at(temperature: float) -> float:
        target = resampled.scale(used.topk, temperature)
        return criterion_value(criterion, target, used.is_label, used.mass, resampled.bins)

    curve = search(value_at, criterion == "nll")
    best, ends = best_temperature(curve), [min(curve), max(curve)]
    at_end = min(curve[end] for end in ends) <= curve[best]
    likelihood = outcome_probability(resampled.scale(used.topk, best), used.is_label, used.mass)
    floored = int((likelihood < FLOOR).sum()) if criterion == "nll" else 0
    points = [[temperature, value] for temperature, value in curve.items()]
    fit = partial(TemperatureFit, best, points, at_end, len(used.topk), floored)
    if len(used.topk) < MIN_ROWS_TO_RESAMPLE:  # the spread is that of a uniform distribution
        return fit(0, ends, (ends[1] - ends[0]) / 12**0.5, flat=True)
    temperatures = resampled.temperatures(criterion, search)
    low = float(np.quantile(temperatures, 0.025, method="lower"))
    high = float(np.quantile(temperatures, 0.975, method="higher"))
    interval = [min(low, best), max(high, best)]
    worst = max(curve, key=curve.__getitem__)
    rises = resampled.values(criterion, worst) - resampled.values(criterion, best)
    covered = np.diff(np.log(interval)) / np.diff(np.log(ends))  # share of the searched range
    flat = bool(covered > 0.5 or np.quantile(rises, 0.025) <= 0)
    return fit(RESAMPLES, interval, float(temperatures.std()), flat)


class Resampled:
    """The criteria over bootstrap resamples: blocks of rows, drawn with replacement.

    Criteria are sums over rows. Each block is summed once per temperature, and a resample is a
    weighted sum of at most `MAX_BLOCKS` blocks. Rows are assigned to blocks at random, so a
    resampled sum has the same variance as with single rows.
    """

    def __init__(self, scale: Scale, rows: FitInputs, bins: int) -> None:
        """Assign all rows, in any order, to blocks and draw the resamples."""
        self.scale, self.bins = scale, bins
        order = np.lexsort((*rows.topk.T, *rows.is_label.T, rows.mass))
        self._rows = rows.rows(order)
        count, generator = len(order), np.random.default_rng(SEED)
        blocks = min(count, MAX_BLOCKS)
        self._block = generator.permutation(count) % blocks  # (N,)
        share = np.full(blocks, 1 / blocks)
        self._times = generator.multinomial(blocks, share, RESAMPLES).astype(np.float64)  # (R, G)
        self._values: dict[float, dict[Criterion, FloatArray]] = {}  # by temperature

    def values(self, criterion: Criterion, temperature: float) -> FloatArray:
        """Return the criterion of every resample, (R,), up to a factor independent of T."""
        if temperature not in self._values:
            self._values[temperature] = self._all_values(temperature)
        return self._values[temperature][criterion]

    def temperatures(self, criterion: Criterion, search: Search) -> FloatArray:
        """Return the temperature that minimises the criterion on each resample, (R,)."""
        values = cache(lambda temperature: self.values(criterion, temperature).tolist())

        def best(resample: int) -> float:
            curve = search(lambda temperature: values(temperature)[resample], False)
            return vertex(curve) if criterion == "nll" else best_temperature(curve)

        return np.array([best(resample) for resample in range(RESAMPLES)])

    def _all_values(self, temperature: float) -> dict[Criterion, FloatArray]:
        topk, is_label, mass, _ = self._rows
        target = self.scale(topk, temperature)
        confidence = mass * target[:, 0]
        bin_of = bin_index(confidence, self.bins)
        gaps = self._sums(confidence - is_label[:, 0], bin_of, self.bins)  # (R, bins)
        values: dict[Criterion, FloatArray] = {"ece": np.abs(gaps).sum(axis=1) / len(topk)}
        for criterion, losses in LOSSES.items():
            used = scored_rows(criterion, self._rows)
            sums = self._sums(losses(target, is_label, mass) * used)
            values[criterion] = sums[:, 0] / max(int(used.sum()), 1)
        return values

    def _sums(
        self, values: FloatArray, column: npt.NDArray[np.intp] | int = 0, columns: int = 1
    ) -> FloatArray:
        """Sum the values of each resample by column, (R, columns)."""
        blocks = self._times.shape[1]
        flat = np.bincount(self._block * columns + column, values, blocks * columns)
        return np.asarray(self._times @ flat.reshape(blocks, columns))


def best_temperature(curve: CriterionValues) -> float:
    """Return the T of the smallest value; ties go to the larger T, which is less confident."""
    return min(curve, key=lambda temperature: (curve[temperature], -temperature))


def vertex(curve: CriterionValues) -> float:
    """Return the vertex of the parabola over log T through the minimum and its neighbours.

    For smooth criteria, so that the spread of the result does not depend on the grid.
    """
    best = best_temperature(curve)
    temperatures = list(curve)
    index = temperatures.index(best)
    if index in (0, len(temperatures) - 1):
        return best
    left, middle, right = temperatures[index - 1 : index + 2]
    x, z = np.log(left / middle), np.log(right / middle)
    fall, rise = curve[left] - curve[middle], curve[right] - curve[middle]
    divisor = 2 * (z * fall - x * rise)
    if divisor <= 0:
        return best
    shift = (z * z * fall - x * x * rise) / divisor
    return float(middle * np.exp(np.clip(shift, x, z)))


def search_hundredths(value_at: ValueAt, unimodal: bool = False) -> CriterionValues:
    """Search (0, 1] in steps of 0.10, then of 0.02 around the best (paper, section 5.5).

    T is counted in integer hundredths, so that 0.3 is always exactly 0.3.
    """
    coarse = {count / 100: value_at(count / 100) for count in range(10, 101, 10)}
    best = round(100 * best_temperature(coarse))
    around = range(max(best - 10, 2), min(best + 10, 100) + 1, 2)
    fine = {count / 100: value_at(count / 100) for count in around}
    return dict(sorted((coarse | fine).items()))


def search_log_spaced(value_at: ValueAt, unimodal: bool) -> CriterionValues:
    """Search [0.1, 10] at 40 log-spaced values, then between the neighbours of the best.

    A unimodal criterion is minimised there numerically. The ECE jumps where a row changes its bin
    and the Brier score is not convex, so they are evaluated on a finer grid instead.
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
    return [float(temperature) for temperature in np.geomspace(low, high, 40)]


def _minimum(value_at: ValueAt, low: float, high: float) -> float:
    """Return the T between two temperatures that minimises a unimodal criterion."""
    from scipy.optimize import minimize_scalar

    result = minimize_scalar(
        lambda log_temperature: value_at(float(np.exp(log_temperature))),
        bounds=(np.log(low), np.log(high)),
        options={"xatol": 1e-10},
    )
    return float(np.exp(result.x))
