"""Scores of predictions beyond their calibration: proper scores, and how well confidence ranks.

All in float64. Shapes: N questions, C the largest number of candidates of any of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.metrics.calibration import pair, unit

if TYPE_CHECKING:
    import numpy.typing as npt

    from firstcli.api import BoolArray, FloatArray

FLOOR = 1e-12  # smallest probability that `nll` takes the logarithm of


class NLL(NamedTuple):
    """A mean negative log-likelihood, and how many probabilities were raised to the floor."""

    value: float
    floored: int


class Decomposition(NamedTuple):
    """A Brier score is miscalibration - discrimination + uncertainty."""

    miscalibration: float
    """What a monotone recalibration would take off the score."""
    discrimination: float
    """What is then still better than to say the accuracy each time."""
    uncertainty: float
    """The score of saying the accuracy each time."""


def accuracy(correct: BoolArray) -> float:
    """Return the share of right predictions."""
    return float(np.mean(unit(correct, "correct")))


def mean_confidence(confidence: FloatArray) -> float:
    """Return the mean confidence."""
    return float(np.mean(unit(confidence, "confidence")))


def confidence_mae(confidence: FloatArray, p_right: FloatArray) -> float:
    """Return the mean distance of confidence and the known probability of being right.

    Unlike a calibration error it also counts that questions of one bin differ.
    """
    confidence, p_right = pair(confidence, p_right)
    return float(np.mean(np.abs(confidence - p_right)))


def brier_top(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the mean squared distance of confidence and outcome, within [0, 1]."""
    confidence, outcome = pair(confidence, correct)
    return float(np.mean((confidence - outcome) ** 2))


def brier_parts(confidence: FloatArray, correct: BoolArray) -> Decomposition:
    """Return the parts of `brier_top` (CORP: Dimitriadis, Gneiting and Jordan 2021).

    Recalibration is isotonic regression of the outcomes on the confidences, so no bins are needed.
    """
    from sklearn.isotonic import IsotonicRegression

    confidence, outcome = pair(confidence, correct)
    recalibrated = IsotonicRegression().fit(confidence, outcome).predict(confidence)
    score = np.mean((confidence - outcome) ** 2)
    best = np.mean((recalibrated - outcome) ** 2)
    uncertainty = np.mean((np.mean(outcome) - outcome) ** 2)
    return Decomposition(float(score - best), float(uncertainty - best), float(uncertainty))


def brier(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> float:
    """Return the multi-class Brier score, within [0, 2].

    Args:
        probabilities: of every candidate, (N, C), zero where a question has fewer.
        answer: index of the right candidate, (N,).
    """
    probabilities = unit(probabilities, "probabilities")
    outcome = np.zeros_like(probabilities)
    outcome[np.arange(len(answer)), answer] = 1.0
    return float(np.mean(np.sum((probabilities - outcome) ** 2, axis=1)))


def nll(probabilities: FloatArray, answer: npt.NDArray[np.int32]) -> NLL:
    """Return the mean of -log p(answer), with p no smaller than `FLOOR`.

    Args:
        probabilities: of every candidate, (N, C).
        answer: index of the right candidate, (N,).
    """
    probabilities = unit(probabilities, "probabilities")
    right = probabilities[np.arange(len(answer)), answer]  # (N,)
    value = -np.mean(np.log(np.maximum(right, FLOOR)))
    return NLL(float(value) + 0.0, int(np.sum(right < FLOOR)))  # + 0.0: no negative zero


def auroc(confidence: FloatArray, correct: BoolArray) -> float | None:
    """Return how often a right prediction is more confident than a wrong one, ties counting half.

    None where all are right or all are wrong.
    """
    from sklearn.metrics import roc_auc_score

    confidence, outcome = pair(confidence, correct)
    if outcome.min() == outcome.max():
        return None
    return float(roc_auc_score(outcome, confidence))


def risk_coverage(confidence: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return coverages 1/N, 2/N, ..., 1 and the accuracy of so many of the most confident, (N,).

    Among equal confidences each has their mean accuracy, which is what a random order of them
    would give on average: the order of the questions has no influence.
    """
    confidence, outcome = pair(confidence, correct)
    levels, level = np.unique(-confidence, return_inverse=True)  # the most confident first
    sizes = np.bincount(level, minlength=len(levels))
    shares = np.bincount(level, weights=outcome, minlength=len(levels)) / sizes
    kept = np.arange(1, len(outcome) + 1)
    return kept / len(outcome), np.cumsum(np.repeat(shares, sizes)) / kept


def aurc(confidence: FloatArray, correct: BoolArray) -> float:
    """Return the area under the risk-coverage curve: the mean error rate over all coverages."""
    return float(np.mean(1.0 - risk_coverage(confidence, correct)[1]))


def accuracy_at(coverage: float, confidence: FloatArray, correct: BoolArray) -> float:
    """Return the accuracy of the most confident share of questions, rounded up to whole ones."""
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"coverage must lie within (0, 1], not {coverage}")
    kept = math.ceil(coverage * len(confidence) - 1e-9)  # 0.9 * 10 is 9
    return float(risk_coverage(confidence, correct)[1][kept - 1])
