"""Probabilities as small whole numbers: what knowledge costs on disk, and what it loses.

At one position there are k + 1 outcomes, the k tokens and the rest ("tail"). Their probabilities
sum to 1, so the larger of the first token's and the tail's is not stored: it is what the others
leave, and small tails keep their digits. The others become levels that are evenly spaced in
sqrt(p), because KL(p, p~) is about 2 * sum (sqrt(p) - sqrt(p~))^2: an even spacing there costs
every outcome alike. Below `linear` levels the spacing is even in log(p), with the same slope where
the two meet, so that a tail of 1e-9 stays one of 1e-9.

The tokens are sorted, so their levels are stored as differences to the next token's, which are
small and cannot be negative: ranks are kept by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["standard", "compact"]
Steps = npt.NDArray[np.int16]
Log = npt.NDArray[np.float32]

REST = 0  # a step: this outcome is what the others leave
NOTHING = 1  # the level of probability 0
LOWEST = 1e-38  # smaller probabilities become this one; the smallest normal float32


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels of one precision."""

    levels: int
    """Levels between sqrt(p) = 0 and 1 if all were evenly spaced."""
    linear: int
    """From this level up they are; below it, one is a factor of exp(1 / linear) in sqrt(p)."""

    @property
    def offset(self) -> int:
        """What is added to a level so that that of LOWEST is stored as NOTHING + 1."""
        return NOTHING + 1 - int(np.rint(self._level(np.log(LOWEST) / 2)))

    def _level(self, log_root: npt.ArrayLike) -> npt.NDArray[np.float64]:
        log_scaled = np.asarray(log_root, np.float64) + np.log(self.levels / self.linear)
        even = self.linear * np.exp(np.maximum(log_scaled, 0.0))
        return np.asarray(np.where(log_scaled >= 0, even, self.linear * (1 + log_scaled)))

    def stored(self, log_p: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the stored levels of log-probabilities, of the same shape."""
        log_p = np.asarray(log_p, np.float64)
        level = np.rint(self._level(np.maximum(log_p, np.log(LOWEST)) / 2)).astype(np.int64)
        return np.where(np.isneginf(log_p), NOTHING, level + self.offset)

    def probabilities(self, stored: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return what stored levels stand for; `stored` inverted, up to rounding."""
        level = np.asarray(stored, np.float64) - self.offset
        below = self.linear * np.exp(np.minimum(level / self.linear - 1, 0.0))
        root = np.where(level >= self.linear, level, below) / self.levels
        return np.where(np.asarray(stored) == NOTHING, 0.0, root**2)


GRIDS: dict[Precision, Grid] = {"standard": Grid(500, 4), "compact": Grid(110, 1)}
"""The levels for up to `FEW` tokens."""

FEW = 5


BOUNDS: dict[Precision, float] = {"standard": 0.005, "compact": 0.025}
"""By how much a stored probability is off at most."""


def grid_of(precision: Precision, top_k: int) -> Grid:
    """Return the levels for k tokens: finer for many, whose roundings add up in what they leave.

    At worst that is off by sum sqrt(p) / levels, which is at most sqrt(k) / levels.
    """
    grid = GRIDS[precision]
    finer = max(1.0, top_k / FEW) ** 0.5
    return Grid(round(finer * grid.levels), round(finer * grid.linear))


def encode(log_probs: Log, log_tail: Log, grid: Grid) -> Steps:
    """Return the steps to store, (N, k + 1): one a token, most likely first, and the tail's level.

    `log_probs` (N, k) must not increase along a row; `log_tail` (N,) is the log of what they leave.
    """
    levels = grid.stored(log_probs)  # (N, k)
    steps = np.concatenate([levels, grid.stored(log_tail)[:, None]], axis=1)  # (N, k + 1)
    steps[:, :-2] -= levels[:, 1:]
    steps[:, 0] += 1  # 0 is REST
    first_is_rest = log_probs[:, 0] >= log_tail
    steps[:, 0][first_is_rest] = REST
    steps[:, -1][~first_is_rest] = REST
    return steps.astype(np.int16)


def decode(steps: Steps, grid: Grid) -> tuple[Log, Log]:
    """Return log-probabilities (N, k) and log tails (N,) of steps (N, k + 1)."""
    levels = steps.astype(np.int64)
    first_is_rest = levels[:, 0] == REST
    levels[:, 0] -= 1
    levels[:, :-1] = levels[:, -2::-1].cumsum(axis=1)[:, ::-1]
    at = np.where(first_is_rest, 0, levels.shape[1] - 1)  # which outcome is the rest
    rows = np.arange(len(levels))
    p = grid.probabilities(levels)
    p[rows, at] = 0.0
    # It was the largest of all; where the others' rounding has left it less, it ties.
    p[rows, at] = np.maximum(1.0 - p.sum(axis=1), p.max(axis=1))
    with np.errstate(divide="ignore"):
        log_p = np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return log_p[:, :-1], log_p[:, -1]


def errors(log_probs: Log, log_tail: Log, stored_probs: Log, stored_tail: Log) -> dict[str, float]:
    """Return what storing has cost: of probabilities, of the top-k mass, and as mean KL."""
    exact = np.concatenate([log_probs, log_tail[:, None]], axis=1).astype(np.float64)
    stored = np.concatenate([stored_probs, stored_tail[:, None]], axis=1).astype(np.float64)
    off = np.abs(np.exp(exact) - np.exp(stored))  # (N, k + 1)
    with np.errstate(invalid="ignore"):
        # The last two terms are 0 where both sum to 1; with them rounding cannot make it negative.
        terms = np.exp(exact) * (exact - stored) - np.exp(exact) + np.exp(stored)
    kl = np.where(np.isneginf(exact), np.exp(stored), terms).sum(axis=1)
    figures = {
        "mean_top_k_mass": -np.expm1(exact[:, -1]).mean(),
        "max_probability_error": off[:, :-1].max(),
        "mean_probability_error": off[:, :-1].mean(),
        "max_mass_error": off[:, -1].max(),
        "mean_mass_error": off[:, -1].mean(),
        "mean_kl": kl.mean(),
    }
    # Fewer digits than processors might disagree on: the same input gives the same bytes.
    return {name: float(f"{value:.6g}") for name, value in figures.items()}
