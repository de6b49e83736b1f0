"""Accuracy, calibration error and other scores of predicted probabilities, in float64.

One convention holds everywhere: `bins` intervals (lo, hi] of equal width over [0, 1], the first one
closed at 0, with the edges of `np.linspace`. Shapes: N questions, C the largest number of
candidates of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from firstcli.api import BoolArray, FloatArray
    from firstcli.records import EvalRecords

Confidence = Literal["candidates", "full"]

FLOOR = 1e-12  # smallest probability that `nll` takes the logarithm of


class ReliabilityBin(NamedTuple):
    """One bar of a reliability diagram; an empty bin has neither confidence nor accuracy."""

    lo: float
    hi: float
    n: int
    confidence: float | None
    accuracy: float | None


class NLL(NamedTuple):
    """A mean negative log-likelihood, and how many probabilities were raised to the floor."""

    value: float
    floored: int


@dataclass(frozen=True, slots=True)
class EvalMetrics:
    """What one model achieved on one evaluation; shares are fractions, never percent."""

    n: int
    accuracy: float
    ece: float
    trust: float
    confidence: float
    nll: float
    brier: float
    brier_top: float
    candidate_mass: float
    ties: int
    nll_floored: int
    bins_used: int
    ece_true: float | None
    confidence_mae: float | None


def accuracy(correct: BoolArray) -> float:
    """Return the share of right predictions."""
    return float(np.mean(_unit(correct, "correct")))


def mean_confidence(confidence: FloatArray) -> float:
    """Return the mean confidence."""
    return float(np.mean(_unit(confidence, "confidence")))


def ece(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return the expected calibration error (Eq. 1 of the paper; Guo et al. 2017).

    Args:
        confidence: probability of each prediction, (N,), within [0, 1].
        correct: whether each prediction is right, (N,).
        bins: number of bins of equal width.
    """
    return _calibration_error(confidence, correct, bins)


def trust(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return accuracy minus ECE (Eq. 2 of the paper)."""
    return accuracy(correct) - ece(confidence, correct, bins)


def ece_true(confidence: FloatArray, p_right: FloatArray, bins: int = 10) -> float:
    """Return the ECE against known probabilities of being right, (N,): free of label noise."""
    return _calibration_error(confidence, p_right, bins)


def confidence_mae(confidence: FloatArray, p_right: FloatArray) -> float:
    """Return the mean distance of confidence and the known probability of being right.

    Unlike a calibration error it also counts that questions of one bin differ.
    """
    confidence, p_right = _pair(confidence, p_right)
    return float(np.mean(np.abs(confidence - p_right)))


def brier_top(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the mean squared distance of confidence and outcome, within [0, 1]."""
    confidence, outcome = _pair(confidence, correct)
    return float(np.mean((confidence - outcome) ** 2))


def brier(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> float:
    """Return the multi-class Brier score, within [0, 2].

    Args:
        probabilities: of every candidate, (N, C), zero where a question has fewer.
        answer: index of the right candidate, (N,).
    """
    probabilities = _unit(probabilities, "probabilities")
    outcome = np.zeros_like(probabilities)
    outcome[np.arange(len(answer)), answer] = 1.0
    return float(np.mean(np.sum((probabilities - outcome) ** 2, axis=1)))


def nll(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> NLL:
    """Return the mean of -log p(answer), with p no smaller than `FLOOR`.

    Args:
        probabilities: of every candidate, (N, C).
        answer: index of the right candidate, (N,).
    """
    probabilities = _unit(probabilities, "probabilities")
    right = probabilities[np.arange(len(answer)), answer]  # (N,)
    value = -np.mean(np.log(np.maximum(right, FLOOR)))
    return NLL(float(value) + 0.0, int(np.sum(right < FLOOR)))  # + 0.0: no negative zero


def reliability_bins(
    confidence: FloatArray, correct: BoolArray, bins: int = 10
) -> list[ReliabilityBin]:
    """Return the bins that `ece` adds up, the empty ones included."""
    confidence, outcome = _pair(confidence, correct)
    index = _bin_index(confidence, bins)
    counts = np.bincount(index, minlength=bins)
    confidences = np.bincount(index, weights=confidence, minlength=bins)
    outcomes = np.bincount(index, weights=outcome, minlength=bins)
    edges = _edges(bins)
    return [
        ReliabilityBin(
            lo=float(edges[b]),
            hi=float(edges[b + 1]),
            n=int(counts[b]),
            confidence=float(confidences[b] / counts[b]) if counts[b] else None,
            accuracy=float(outcomes[b] / counts[b]) if counts[b] else None,
        )
        for b in range(bins)
    ]


def summarize(records: EvalRecords, confidence: Confidence, bins: int) -> EvalMetrics:
    """Return every metric of one model on one evaluation.

    Args:
        records: one row a question.
        confidence: whether it is the prediction's probability among the `candidates` or in the
            `full` vocabulary.
        bins: number of bins of the calibration errors.
    """
    shown = records.shown(confidence)
    likelihood = nll(records.probabilities, records.answer)
    p_right = records.p_right
    return EvalMetrics(
        n=len(records),
        accuracy=accuracy(records.correct),
        ece=ece(shown, records.correct, bins),
        trust=trust(shown, records.correct, bins),
        confidence=mean_confidence(shown),
        nll=likelihood.value,
        brier=brier(records.probabilities, records.answer),
        brier_top=brier_top(shown, records.correct),
        candidate_mass=float(np.mean(records.candidate_mass)),
        ties=int(np.sum(records.tie)),
        nll_floored=likelihood.floored,
        bins_used=len(np.unique(_bin_index(shown, bins))),
        ece_true=None if p_right is None else ece_true(shown, p_right, bins),
        confidence_mae=None if p_right is None else confidence_mae(shown, p_right),
    )


def _calibration_error(confidence: FloatArray, outcome: FloatArray | BoolArray, bins: int) -> float:
    confidence, outcome = _pair(confidence, outcome)
    # sum |mean confidence - mean outcome| * n_b / N, without dividing by the n_b of empty bins
    gaps = np.bincount(_bin_index(confidence, bins), weights=confidence - outcome)
    return float(np.sum(np.abs(gaps)) / len(confidence))


def _edges(bins: int) -> FloatArray:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    return np.linspace(0.0, 1.0, bins + 1)


def _bin_index(confidence: FloatArray, bins: int) -> npt.NDArray[np.intp]:
    return np.searchsorted(_edges(bins)[1:-1], confidence, side="left")  # an edge belongs below it


def _pair(confidence: FloatArray, outcome: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    if np.shape(confidence) != np.shape(outcome):
        raise ValueError(
            f"confidence has shape {np.shape(confidence)} but outcome {np.shape(outcome)}"
        )
    return _unit(confidence, "confidence"), _unit(outcome, "outcome")


def _unit(values: FloatArray | BoolArray, name: str) -> FloatArray:
    """Return the values in float64, refusing none at all, NaN and anything outside [0, 1]."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.all((array >= 0.0) & (array <= 1.0)):  # false for NaN as well
        raise ValueError(f"{name} must lie within [0, 1], found {array.min()} to {array.max()}")
    return array
