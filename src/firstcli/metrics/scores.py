"""Scores other than calibration errors: proper scores and the ranking quality of confidence.

All computation is in float64. Shapes: N questions, C the largest number of candidates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import ece, pair, unit

FLOOR = 1e-12  # smallest probability that `nll` takes the logarithm of


class NLL(NamedTuple):
    """Mean negative log-likelihood, and the number of probabilities raised to `FLOOR`."""

    value: float
    floored: int


class Decomposition(NamedTuple):
    """Brier score = miscalibration - discrimination + uncertainty."""

    miscalibration: float
    """Reduction of the score by the best monotone recalibration."""
    discrimination: float
    """Improvement of the recalibrated forecast over always predicting the base rate."""
    uncertainty: float
    """Score of always predicting the base rate (the accuracy)."""


def accuracy(correct: BoolArray) -> float:
    """Return the share of right predictions of `correct`, (N,)."""
    return float(np.mean(unit(correct, "correct")))


def trust(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return accuracy minus ECE (Eq. 2 of the paper)."""
    return accuracy(correct) - ece(confidence, correct, bins)


def mean_confidence(confidence: FloatArray) -> float:
    """Return the mean confidence."""
    return float(np.mean(unit(confidence, "confidence")))


def confidence_mae(confidence: FloatArray, p_right: FloatArray) -> float:
    """Return the mean distance between confidence and the known probability of being right.

    Unlike a calibration error, it also measures how questions within a bin differ.
    """
    confidence, p_right = pair(confidence, p_right)
    return float(np.mean(np.abs(confidence - p_right)))


def brier_top(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the mean squared distance between confidence and outcome, within [0, 1]."""
    confidence, outcome = pair(confidence, correct)
    return float(np.mean((confidence - outcome) ** 2))


def brier_parts(confidence: FloatArray, correct: BoolArray) -> Decomposition:
    """Decompose `brier_top` (CORP: Dimitriadis, Gneiting and Jordan 2021).

    Recalibration is isotonic regression of the outcomes on the confidences; it needs no bins.
    """
    from sklearn.isotonic import IsotonicRegression

    confidence, outcome = pair(confidence, correct)
    # It merges confidences that differ in the last bit, so one of them may be out of its bounds.
    regression = IsotonicRegression(out_of_bounds="clip").fit(confidence, outcome)
    recalibrated = regression.predict(confidence)
    score = np.mean((confidence - outcome) ** 2)
    best = np.mean((recalibrated - outcome) ** 2)
    uncertainty = np.mean((np.mean(outcome) - outcome) ** 2)
    return Decomposition(float(score - best), float(uncertainty - best), float(uncertainty))


def brier(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> float:
    """Return the multi-class Brier score, within [0, 2].

    Args:
        probabilities: of each candidate, (N, C), padded with zeros.
        answer: index of the right candidate, (N,).
    """
    probabilities = unit(probabilities, "probabilities")
    outcome = np.zeros_like(probabilities)
    outcome[np.arange(len(answer)), answer] = 1.0
    return float(np.mean(np.sum((probabilities - outcome) ** 2, axis=1)))


def nll(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> NLL:
    """Return the mean of -log p(answer), with p raised to at least `FLOOR`.

    Args:
        probabilities: of each candidate, (N, C).
        answer: index of the right candidate, (N,).
    """
    probabilities = unit(probabilities, "probabilities")
    right = probabilities[np.arange(len(answer)), answer]  # (N,)
    value = -np.mean(np.log(np.maximum(right, FLOOR)))
    return NLL(float(value) + 0.0, int(np.sum(right < FLOOR)))  # + 0.0: no negative zero


def auroc(confidence: FloatArray, correct: BoolArray) -> float | None:
    """Return how often a right prediction is more confident than a wrong one; ties count half.

    Return None if all predictions are right or all are wrong.
    """
    from sklearn.metrics import roc_auc_score

    confidence, outcome = pair(confidence, correct)
    if outcome.min() == outcome.max():
        return None
    return float(roc_auc_score(outcome, confidence))


def risk_coverage(confidence: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return the coverages 1/N, 2/N, ..., 1 and the accuracy of the most confident part, both (N,).

    Questions of equal confidence each count with their mean accuracy, the expectation over their
    random orders. The order of the questions therefore does not matter.
    """
    confidence, outcome = pair(confidence, correct)
    levels, level = np.unique(-confidence, return_inverse=True)  # most confident first
    sizes = np.bincount(level, minlength=len(levels))
    shares = np.bincount(level, weights=outcome, minlength=len(levels)) / sizes
    kept = np.arange(1, len(outcome) + 1)
    return kept / len(outcome), np.cumsum(np.repeat(shares, sizes)) / kept


def aurc(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the area under the risk-coverage curve, the mean error rate over all coverages."""
    return float(np.mean(1.0 - risk_coverage(confidence, correct)[1]))


def accuracy_at(coverage: float, confidence: FloatArray, correct: BoolArray) -> float:
    """Return the accuracy of the most confident share of questions; their number is rounded up."""
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"coverage must be within (0, 1], not {coverage}")
    kept = math.ceil(coverage * len(confidence) - 1e-9)  # 0.9 * 10 must give 9
    return float(risk_coverage(confidence, correct)[1][kept - 1])
