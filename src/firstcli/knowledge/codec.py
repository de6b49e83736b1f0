"""Encode probabilities as small integers: the size of knowledge on disk, and its error.

A position has k + 1 outcomes, the k tokens and all other tokens (the "tail"). Their probabilities
sum to 1, so the larger of the first token's and the tail's is not stored: it is 1 minus the sum of
the rest, and small tails keep their precision. The other outcomes are rounded to levels that are
evenly spaced in sqrt(p), because KL(p, p~) is about 2 * sum (sqrt(p) - sqrt(p~))^2: with even
spacing, all outcomes contribute equally to the error. Below the level `linear` the spacing is even
in log(p), with the same slope where the two meet, so that a tail of 1e-9 keeps its magnitude.

The tokens are sorted, so each level is stored as the difference from the next token's level. These
differences are small and never negative, so the order is preserved by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Precision = Literal["standard", "compact"]
Steps = npt.NDArray[np.int16]
Log = npt.NDArray[np.float32]

REST = 0  # a step: this outcome is 1 minus the sum of the other outcomes
NOTHING = 1  # the level of probability 0
LOWEST = 1e-38  # smaller probabilities are raised to it; about the smallest normal float32


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels of one precision."""

    levels: int
    """Number of levels between sqrt(p) = 0 and 1 if all were evenly spaced."""
    linear: int
    """Levels from this one up are evenly spaced; below, each is a factor exp(1 / linear)."""

    @property
    def offset(self) -> int:
        """The number added to every level, so that LOWEST is stored as NOTHING + 1."""
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
        """Return the probabilities of stored levels, the inverse of `stored` up to rounding."""
        level = np.asarray(stored, np.float64) - self.offset
        below = self.linear * np.exp(np.minimum(level / self.linear - 1, 0.0))
        root = np.where(level >= self.linear, level, below) / self.levels
        return np.where(np.asarray(stored) == NOTHING, 0.0, root**2)


GRIDS: dict[Precision, Grid] = {"standard": Grid(500, 4), "compact": Grid(110, 1)}
"""The levels for up to `GRID_TOKENS` tokens."""

GRID_TOKENS = 5

BOUNDS: dict[Precision, float] = {"standard": 0.005, "compact": 0.025}
"""The largest error of a stored probability."""


def grid_of(precision: Precision, top_k: int) -> Grid:
    """Return the levels for k tokens: finer for large k, because rounding errors add up.

    The outcome that is not stored is off by at most sum sqrt(p) / levels <= sqrt(k) / levels.
    """
    grid = GRIDS[precision]
    factor = max(1.0, top_k / GRID_TOKENS) ** 0.5
    return Grid(round(factor * grid.levels), round(factor * grid.linear))


def encode(log_probs: Log, log_tail: Log, grid: Grid) -> Steps:
    """Return the steps to store, (N, k + 1): one per token, most likely first, and the tail's.

    Args:
        log_probs: (N, k), not increasing along a row.
        log_tail: (N,), the log-probability of all other tokens.
        grid: the levels.
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
    outcome = np.where(first_is_rest, 0, levels.shape[1] - 1)  # (N,) the one that is not stored
    rest = np.arange(len(levels)), outcome
    p = grid.probabilities(levels)
    p[rest] = 0.0
    # It was the largest outcome; if rounding made it smaller than another one, they tie.
    p[rest] = np.maximum(1.0 - p.sum(axis=1), p.max(axis=1))
    with np.errstate(divide="ignore"):
        log_p = np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)
    return log_p[:, :-1], log_p[:, -1]


def errors(log_probs: Log, log_tail: Log, stored_probs: Log, stored_tail: Log) -> dict[str, float]:
    """Return the error of storing: of probabilities, of the top-k mass, and as mean KL.

    Args:
        log_probs: the exact log-probabilities, (N, k).
        log_tail: (N,).
        stored_probs: the decoded log-probabilities, (N, k).
        stored_tail: (N,).
    """
    exact = np.concatenate([log_probs, log_tail[:, None]], axis=1).astype(np.float64)
    stored = np.concatenate([stored_probs, stored_tail[:, None]], axis=1).astype(np.float64)
    off = np.abs(np.exp(exact) - np.exp(stored))  # (N, k + 1)
    with np.errstate(invalid="ignore"):
        # The last two terms cancel over a row; with them, rounding cannot make KL negative.
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
    # Processors may disagree on more digits, but the same input must give the same bytes.
    return {name: float(f"{value:.6g}") for name, value in figures.items()}
