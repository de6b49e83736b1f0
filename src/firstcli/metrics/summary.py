"""Every metric of one model on one evaluation; `docs/metrics.md` says what each of them means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from firstcli.metrics.calibration import (
    ReliabilityBin,
    bin_index,
    ece,
    ece_classwise,
    ece_mass,
    ece_null,
    ece_parts,
    ece_smooth,
    ece_true,
    mce,
    reliability_bins,
)
from firstcli.metrics.scores import (
    FLOOR,
    NLL,
    accuracy,
    accuracy_at,
    aurc,
    auroc,
    brier,
    brier_parts,
    brier_top,
    confidence_mae,
    mean_confidence,
    nll,
    risk_coverage,
)

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray
    from firstcli.metrics.records import EvalRecords

__all__ = [
    "FLOOR",
    "NLL",
    "Confidence",
    "EvalMetrics",
    "ReliabilityBin",
    "accuracy",
    "accuracy_at",
    "aurc",
    "auroc",
    "brier",
    "brier_parts",
    "brier_top",
    "confidence_mae",
    "ece",
    "ece_classwise",
    "ece_mass",
    "ece_parts",
    "ece_smooth",
    "ece_true",
    "mce",
    "mean_confidence",
    "nll",
    "p_value",
    "reliability_bins",
    "risk_coverage",
    "summarize",
    "trust",
]

Confidence = Literal["candidates", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMetrics:
    """What one model achieved on one evaluation; shares are fractions, never percent.

    None is what has no meaning: nearly all where no candidate is right, and what is about the shown
    confidence where the records do not hold it.
    """

    n: int
    accuracy: float | None = None
    ece: float | None = None
    trust: float | None = None
    confidence: float | None = None
    nll: float | None = None
    brier: float | None = None
    brier_top: float | None = None
    candidate_mass: float | None = None
    ties: int
    nll_floored: int | None = None
    bins_used: int | None = None
    ece_true: float | None = None
    confidence_mae: float | None = None
    ece_null: float | None = None
    """Mean ECE of a calibrated model with these confidences."""
    ece_p: float | None = None
    """How often such a model shows an ECE as large as this."""
    ece_debiased: float | None = None
    ece_mass: float | None = None
    ece_classwise: float | None = None
    ece_smooth: float | None = None
    mce: float | None = None
    over_confidence: float | None = None
    under_confidence: float | None = None
    brier_miscalibration: float | None = None
    brier_discrimination: float | None = None
    brier_uncertainty: float | None = None
    auroc: float | None = None
    aurc: float | None = None
    accuracy_at_50: float | None = None
    accuracy_at_80: float | None = None
    accuracy_at_90: float | None = None
    chance: float
    """Mean of 1 / number of candidates."""


def trust(confidence: FloatArray, correct: BoolArray, bins: int = 10) -> float:
    """Return accuracy minus ECE (Eq. 2 of the paper)."""
    return accuracy(correct) - ece(confidence, correct, bins)


def p_value(value: float, null: FloatArray) -> float:
    """Return how often chance alone makes a value as large, never quite 0 as draws are finite."""
    reached = np.sum(null >= value - 1e-12)  # sums in another order differ by rounding
    return float((1 + reached) / (1 + len(null)))


def summarize(records: EvalRecords, confidence: Confidence, bins: int) -> EvalMetrics:
    """Return every metric of one model on one evaluation.

    Args:
        records: one row a question.
        confidence: whether it is the prediction's probability among the `candidates` or in the
            `full` vocabulary.
        bins: number of bins of the calibration errors.
    """
    shown = records.shown(confidence)
    mass = records.candidate_mass
    found: dict[str, Any] = {
        "confidence": None if shown is None else mean_confidence(shown),
        "candidate_mass": None if mass is None else float(np.mean(mass)),
    }
    if records.answerable:
        found |= _of_probabilities(records, bins)
        if shown is not None:
            found |= _of_ece(shown, records.correct, bins)
            found |= _of_confidence(shown, records.correct, bins)
            found |= _of_truth(shown, records.p_right, bins)
    return EvalMetrics(
        n=len(records),
        ties=int(np.sum(records.tie)),
        chance=float(np.mean(1.0 / records.count)),
        **found,
    )


def _of_probabilities(records: EvalRecords, bins: int) -> dict[str, float]:
    probabilities = records.probabilities
    likelihood = nll(probabilities, records.answer)
    return {
        "accuracy": accuracy(records.correct),
        "nll": likelihood.value,
        "nll_floored": likelihood.floored,
        "brier": brier(probabilities, records.answer),
        "ece_classwise": ece_classwise(probabilities, records.answer, records.count, bins),
    }


def _of_ece(shown: FloatArray, correct: BoolArray, bins: int) -> dict[str, float]:
    value, parts = ece(shown, correct, bins), ece_parts(shown, correct, bins)
    null = ece_null(shown, bins)
    return {
        "ece": value,
        "trust": trust(shown, correct, bins),
        "bins_used": len(np.unique(bin_index(shown, bins))),
        "ece_null": float(np.mean(null)),
        "ece_p": p_value(value, null),
        "ece_debiased": max(0.0, value - float(np.mean(null))),
        "over_confidence": parts.over,
        "under_confidence": parts.under,
    }


def _of_confidence(shown: FloatArray, correct: BoolArray, bins: int) -> dict[str, float | None]:
    parts = brier_parts(shown, correct)
    return {
        "ece_mass": ece_mass(shown, correct, bins),
        "ece_smooth": ece_smooth(shown, correct),
        "mce": mce(shown, correct, bins),
        "brier_top": brier_top(shown, correct),
        "brier_miscalibration": parts.miscalibration,
        "brier_discrimination": parts.discrimination,
        "brier_uncertainty": parts.uncertainty,
        "auroc": auroc(shown, correct),
        "aurc": aurc(shown, correct),
        "accuracy_at_50": accuracy_at(0.5, shown, correct),
        "accuracy_at_80": accuracy_at(0.8, shown, correct),
        "accuracy_at_90": accuracy_at(0.9, shown, correct),
    }


def _of_truth(shown: FloatArray, p_right: FloatArray | None, bins: int) -> dict[str, float]:
    if p_right is None:
        return {}
    return {
        "ece_true": ece_true(shown, p_right, bins),
        "confidence_mae": confidence_mae(shown, p_right),
    }
