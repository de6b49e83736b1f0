"""Calibration errors of predicted probabilities, and their distribution under perfect calibration.

All functions share one binning: `bins` intervals (lo, hi] of equal width over [0, 1] with the edges
of `np.linspace`; the first bin also contains 0. All computation is in float64. Shapes: N questions,
C the largest number of candidates of a question, B bins, D draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray

DRAWS = 1000  # simulated or resampled evaluations
SEED = 0  # of simulations and resampling
Z95 = 1.959963984540054  # normal quantile of a 95 % interval
_GRID_CELLS = 2**13  # for smooth ECE; ten times finer than the errors it can resolve
_CHUNK = 2**21  # random numbers held in memory, 16 MiB


class ReliabilityBin(NamedTuple):
    """One bar of a reliability diagram; an empty bin has its range and `n` = 0 only."""

    lo: float
    hi: float
    n: int
    confidence: float | None
    accuracy: float | None
    low: float | None
    """Lower end of the accuracy's 95 % Wilson interval."""
    high: float | None
    band_low: float | None
    """Lower end of the range that holds the bin's accuracy for 95 % of calibrated models."""
    band_high: float | None


def ece(confidence: FloatArray, outcome: FloatArray | BoolArray, bins: int = 10) -> float:
    """Return the expected calibration error (Eq. 1 of the paper; Guo et al. 2017).

    Args:
        confidence: probability of each prediction, (N,), within [0, 1].
        outcome: whether each prediction is right, or the known probability that it is, (N,).
        bins: number of equal-width bins.
    """
    return float(np.sum(np.abs(bin_gaps(confidence, outcome, bins))))


def ece_parts(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> tuple[float, float]:
    """Return the contributions of the over- and of the under-confident bins to the ECE."""
    gaps = bin_gaps(confidence, correct, bins)
    return float(np.sum(gaps[gaps > 0])), float(-np.sum(gaps[gaps < 0])) + 0.0


def mce(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return the largest gap between confidence and accuracy over the non-empty bins."""
    gaps = np.abs(bin_gaps(confidence, correct, bins)) * len(confidence)
    counts = np.bincount(bin_index(np.asarray(confidence), bins), minlength=bins)
    return float(np.max(gaps[counts > 0] / counts[counts > 0]))


def ece_mass(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return the ECE over equal-mass bins, which hold the same number of questions.

    The sorted confidences are cut into `bins` runs of N / bins; the first runs are longer by one
    where N is not a multiple of `bins`. Equal confidences share the lowest bin that holds one of
    them; bins that become empty are dropped.
    """
    confidence, outcome = pair(confidence, correct)
    n, bins = len(confidence), min(bins, len(confidence))
    last = np.cumsum([len(run) for run in np.array_split(np.arange(n), bins)]) - 1
    highest = np.sort(confidence)[last]  # (B,) of each run
    index = np.searchsorted(highest, confidence, side="left")
    return float(np.sum(np.abs(np.bincount(index, weights=confidence - outcome))) / n)


def ece_classwise(
    probabilities: FloatArray,
    answer: npt.NDArray[np.int32],
    count: npt.NDArray[np.int32],
    bins: int = 10,
) -> float:
    """Return the mean ECE of the probabilities at each candidate position.

    The ECE of a position is computed over the questions that have it and weighted by their number.
    If all questions have the same number of candidates, this is the classwise ECE of Kull et al.
    2019.

    Args:
        probabilities: of each candidate, (N, C).
        answer: index of the right candidate, (N,).
        count: number of candidates, (N,).
        bins: number of equal-width bins.
    """
    total = 0.0
    for c in range(probabilities.shape[1]):
        present = count > c
        total += int(present.sum()) * ece(probabilities[present, c], answer[present] == c, bins)
    return total / int(count.sum())


def ece_smooth(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the smooth calibration error, which needs no bins (Blasiok and Nakkiran 2023).

    The residuals confidence - outcome are smoothed over [0, 1] by a Gaussian of standard deviation
    s, reflected at 0 and 1. The error is the s that equals the integral of the absolute smoothed
    residuals. This smoothing is heat flow in a closed rod: it multiplies the k-th cosine
    coefficient by exp(-(k pi s)^2 / 2). The integral shrinks as s grows, so the solution is unique.
    """
    from scipy.fft import dct

    confidence, outcome = pair(confidence, correct)
    position = confidence * _GRID_CELLS
    cell = np.minimum(np.floor(position).astype(np.intp), _GRID_CELLS - 1)
    residual, share = (confidence - outcome) / len(confidence), position - cell
    signed: FloatArray = np.zeros(_GRID_CELLS + 1)
    np.add.at(signed, cell, residual * (1 - share))
    np.add.at(signed, cell + 1, residual * share)
    signed[1:-1] /= 2  # the transform counts all points but the ends twice
    cosines = dct(signed, type=1)
    frequency = np.pi * np.arange(_GRID_CELLS + 1)

    def smoothed(width: float) -> float:
        density = np.abs(dct(cosines * np.exp(-((frequency * width) ** 2) / 2), type=1))
        return float(np.sum(density) - (density[0] + density[-1]) / 2) / _GRID_CELLS

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    return low


def reliability_bins(
    confidence: FloatArray, correct: BoolArray, bins: int = 10
) -> list[ReliabilityBin]:
    """Return the bins of `ece`, including empty ones."""
    confidence, outcome = pair(confidence, correct)
    index = bin_index(confidence, bins)
    counts = np.bincount(index, minlength=bins)
    confidences = np.bincount(index, weights=confidence, minlength=bins)
    outcomes = np.bincount(index, weights=outcome, minlength=bins)
    bands = np.quantile(null_outcomes(confidence, bins), [0.025, 0.975], axis=0)  # (2, B)
    edges = bin_edges(bins)
    result = []
    for b, n in enumerate(map(int, counts)):
        values: tuple[float | None, ...] = (None,) * 6
        if n:
            accuracy = float(outcomes[b] / n)
            band = (float(bands[0, b] / n), float(bands[1, b] / n))
            values = (float(confidences[b] / n), accuracy, *wilson(accuracy, n), *band)
        result.append(ReliabilityBin(float(edges[b]), float(edges[b + 1]), n, *values))
    return result


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share observed in n trials (Wilson 1927)."""
    scale = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / n + (Z95 / (2 * n)) ** 2) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def null_outcomes(confidence: FloatArray, bins: int = 10, draws: int = DRAWS) -> FloatArray:
    """Simulate how many questions of each bin a calibrated model gets right, (D, B).

    Each prediction is right with a probability equal to its confidence (Bröcker and Smith 2007).
    """
    confidence = np.sort(unit(confidence, "confidence"))  # the order of questions has no effect
    counts = np.bincount(bin_index(confidence, bins), minlength=bins)
    filled = counts > 0
    starts = (np.cumsum(counts) - counts)[filled]
    random = np.random.default_rng(SEED)
    right = np.zeros((draws, bins))
    step = max(1, _CHUNK // len(confidence))
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        hit = random.random((rows, len(confidence))) < confidence  # (rows, N)
        right[first : first + rows, filled] = np.add.reduceat(hit, starts, axis=1, dtype=np.int64)
    return right


def ece_null(confidence: FloatArray, bins: int = 10, draws: int = DRAWS) -> FloatArray:
    """Simulate the ECE of a calibrated model with these confidences, one value per draw, (D,)."""
    confidence = np.sort(unit(confidence, "confidence"))
    expected = np.bincount(bin_index(confidence, bins), weights=confidence, minlength=bins)
    right = null_outcomes(confidence, bins, draws)
    return np.asarray(np.abs(right - expected).sum(axis=1) / len(confidence))


def bin_gaps(confidence: FloatArray, outcome: FloatArray | BoolArray, bins: int) -> FloatArray:
    """Return mean confidence minus mean outcome of each bin, times its share of questions, (B,)."""
    confidence, outcome = pair(confidence, outcome)
    # summing differences avoids a division by the bin's count, which may be zero
    index = bin_index(confidence, bins)
    gaps = np.bincount(index, weights=confidence - outcome, minlength=bins)  # (B,)
    return np.asarray(gaps / len(confidence))


def bin_edges(bins: int) -> FloatArray:
    """Return the edges of the bins, (B + 1,)."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    return np.linspace(0.0, 1.0, bins + 1)


def bin_index(confidence: FloatArray, bins: int) -> npt.NDArray[np.intp]:
    """Return the bin of each confidence; an edge belongs to the bin below it."""
    return np.searchsorted(bin_edges(bins)[1:-1], confidence, side="left")


def pair(confidence: FloatArray, outcome: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return confidences and outcomes in float64, after checking shapes and values."""
    if np.shape(confidence) != np.shape(outcome):
        raise ValueError(
            f"confidence has shape {np.shape(confidence)} but outcome {np.shape(outcome)}"
        )
    return unit(confidence, "confidence"), unit(outcome, "outcome")


def unit(values: FloatArray | BoolArray, name: str) -> FloatArray:
    """Return the values in float64; raise ValueError if empty, NaN or outside [0, 1]."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.all((array >= 0.0) & (array <= 1.0)):  # false for NaN as well
        raise ValueError(f"{name} must be within [0, 1], not {array.min()} to {array.max()}")
    return array
