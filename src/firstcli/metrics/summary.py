"""The table of all metrics, and their values for one model on one evaluation.

`docs/metrics.md` explains each metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from firstcli.metrics.calibration import (
    Parts,
    bin_index,
    ece,
    ece_classwise,
    ece_mass,
    ece_null,
    ece_parts,
    ece_smooth,
    ece_true,
    mce,
)
from firstcli.metrics.scores import (
    NLL,
    Decomposition,
    accuracy,
    accuracy_at,
    aurc,
    auroc,
    brier,
    brier_parts,
    brier_top,
    confidence_mae,
    nll,
)

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray
    from firstcli.metrics.records import EvalRecords

Confidence = Literal["candidates", "full"]

DASH = "–"  # in place of an undefined value
ROUNDING = 1e-12  # smaller differences between metrics come from rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMetrics:
    """The metrics of one model on one evaluation, in the order of `METRICS`.

    Shares are fractions, never percentages. Undefined metrics are None: most of them if no
    candidate is right, those of the confidence if the records do not contain it.
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
    """How often such a model shows an ECE at least as large."""
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
    """Return how often chance alone gives a value as large; never 0, as draws are finite."""
    reached = np.sum(null >= value - ROUNDING)
    return float((1 + reached) / (1 + len(null)))


class _Scored:
    """Predictions with a confidence, each right or wrong; caches what several metrics share."""

    def __init__(self, records: EvalRecords, confidence: FloatArray, bins: int) -> None:
        self.confidence = confidence  # (N,)
        self.correct = records.correct  # (N,)
        self.p_right = records.p_right  # (N,), None if unknown
        self.bins = bins

    @cached_property
    def ece(self) -> float:
        return ece(self.confidence, self.correct, self.bins)

    @cached_property
    def parts(self) -> Parts:
        return ece_parts(self.confidence, self.correct, self.bins)

    @cached_property
    def null(self) -> FloatArray:
        return ece_null(self.confidence, self.bins)  # (D,)

    @property
    def mean_null(self) -> float:
        return float(np.mean(self.null))

    @cached_property
    def brier(self) -> Decomposition:
        return brier_parts(self.confidence, self.correct)


class _Evaluated:
    """The input of every metric: records, the chosen confidence and the number of bins."""

    def __init__(self, records: EvalRecords, confidence: Confidence, bins: int) -> None:
        self.records = records
        self.answer = records.answer  # (N,)
        self.confidence = records.shown(confidence)  # (N,), None if unknown
        self.bins = bins
        self.scored: _Scored | None = None
        if records.answerable and self.confidence is not None:
            self.scored = _Scored(records, self.confidence, bins)

    @cached_property
    def probabilities(self) -> FloatArray:
        return self.records.probabilities  # (N, C)

    @cached_property
    def nll(self) -> NLL:
        return nll(self.probabilities, self.answer)


_Function = Callable[[_Evaluated], float | None]


def _answered(function: Callable[[_Evaluated], float]) -> _Function:
    """Restrict a metric to questions with a right candidate."""
    return lambda e: function(e) if e.records.answerable else None


def _scored(function: Callable[[_Scored], float | None]) -> _Function:
    """Restrict a metric to questions with a right candidate and a known confidence."""
    return lambda e: None if e.scored is None else function(e.scored)


def _paired(function: Callable[[FloatArray, BoolArray], float | None]) -> _Function:
    """Make a metric of a function of confidence and correctness."""
    return _scored(lambda s: function(s.confidence, s.correct))


def _binned(function: Callable[[FloatArray, BoolArray, int], float]) -> _Function:
    """Make a metric of a function of confidence, correctness and the number of bins."""
    return _scored(lambda s: function(s.confidence, s.correct, s.bins))


def _true(function: Callable[[_Scored, FloatArray], float]) -> _Function:
    """Make a metric of a function that needs the true probabilities of being right."""
    return _scored(lambda s: None if s.p_right is None else function(s, s.p_right))


def _mean(values: FloatArray | None) -> float | None:
    return None if values is None else float(np.mean(values))


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its field in `EvalMetrics`, how it is shown and how it is computed."""

    name: str
    title: str
    short: str
    """Heading of a column."""
    unit: Literal["share", "score", "p-value", "count"]
    better: Literal["lower", "higher"] | None
    """The better direction, where there is one."""
    function: _Function

    @property
    def heading(self) -> str:
        """The short title with an arrow in the better direction."""
        return self.short + {"lower": " ↓", "higher": " ↑", None: ""}[self.better]

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """Format a value, shares in percent; `signed` shows the sign of a difference."""
        if value is None:
            return DASH
        if self.unit == "count":  # a mean over seeds may be fractional
            return f"{value:.6g}" if value % 1 else f"{value:.0f}"
        shown, digits = (100 * value, 1) if self.unit == "share" else (value, 3)
        text = f"{shown:z.{digits}f}"
        if not float(text):  # a tiny share is shown as 0.01, not as 0.0, unless rounding made it
            return text if signed or abs(value) < ROUNDING else f"{shown:.1g}"
        return f"+{text}" if signed and shown > 0 else text


# fmt: off
_TABLE = (
    Metric("n", "questions", "n", "count", None, lambda e: len(e.records)),
    Metric("accuracy", "accuracy", "Acc", "share", "higher",
           _answered(lambda e: accuracy(e.records.correct))),
    Metric("ece", "ECE", "ECE", "share", "lower", _scored(lambda s: s.ece)),
    Metric("trust", "Trust", "Trust", "share", "higher", _binned(trust)),
    Metric("confidence", "mean confidence", "Conf.", "share", None, lambda e: _mean(e.confidence)),
    Metric("nll", "NLL", "NLL", "score", "lower", _answered(lambda e: e.nll.value)),
    Metric("brier", "Brier, multi-class", "Brier", "score", "lower",
           _answered(lambda e: brier(e.probabilities, e.answer))),
    Metric("brier_top", "Brier, top label", "Brier top", "score", "lower", _paired(brier_top)),
    Metric("candidate_mass", "candidates' mass", "Mass", "share", None,
           lambda e: _mean(e.records.candidate_mass)),
    Metric("ties", "ties", "Ties", "count", None, lambda e: int(np.sum(e.records.tie))),
    Metric("nll_floored", "floored probabilities", "Floored", "count", None,
           _answered(lambda e: e.nll.floored)),
    Metric("bins_used", "bins in use", "Bins", "count", None,
           _scored(lambda s: len(np.unique(bin_index(s.confidence, s.bins))))),
    Metric("ece_true", "ECE against the truth", "ECE true", "share", "lower",
           _true(lambda s, p_right: ece_true(s.confidence, p_right, s.bins))),
    Metric("confidence_mae", "confidence MAE against the truth", "Conf. MAE", "share", "lower",
           _true(lambda s, p_right: confidence_mae(s.confidence, p_right))),
    Metric("ece_null", "ECE, null", "Null", "share", None, _scored(lambda s: s.mean_null)),
    Metric("ece_p", "ECE, p", "p", "p-value", None, _scored(lambda s: p_value(s.ece, s.null))),
    Metric("ece_debiased", "ECE, debiased", "Debiased", "share", "lower",
           _scored(lambda s: max(0.0, s.ece - s.mean_null))),
    Metric("ece_mass", "ECE, equal-mass bins", "Equal mass", "share", "lower", _binned(ece_mass)),
    Metric("ece_classwise", "ECE, classwise", "Classwise", "share", "lower",
           _answered(lambda e: ece_classwise(e.probabilities, e.answer, e.records.count, e.bins))),
    Metric("ece_smooth", "ECE, smooth", "Smooth", "share", "lower", _paired(ece_smooth)),
    Metric("mce", "MCE", "Max.", "share", "lower", _binned(mce)),
    Metric("over_confidence", "ECE, over-confident bins", "Over", "share", "lower",
           _scored(lambda s: s.parts.over)),
    Metric("under_confidence", "ECE, under-confident bins", "Under", "share", "lower",
           _scored(lambda s: s.parts.under)),
    Metric("brier_miscalibration", "Brier, miscalibration", "Miscal.", "score", "lower",
           _scored(lambda s: s.brier.miscalibration)),
    Metric("brier_discrimination", "Brier, discrimination", "Discr.", "score", "higher",
           _scored(lambda s: s.brier.discrimination)),
    Metric("brier_uncertainty", "Brier, uncertainty", "Uncert.", "score", None,
           _scored(lambda s: s.brier.uncertainty)),
    Metric("auroc", "AUROC of confidence", "AUROC", "score", "higher", _paired(auroc)),
    Metric("aurc", "AURC", "AURC", "score", "lower", _paired(aurc)),
    Metric("accuracy_at_50", "accuracy at 50 % coverage", "Acc at 50 %", "share", "higher",
           _paired(partial(accuracy_at, 0.5))),
    Metric("accuracy_at_80", "accuracy at 80 % coverage", "at 80 %", "share", "higher",
           _paired(partial(accuracy_at, 0.8))),
    Metric("accuracy_at_90", "accuracy at 90 % coverage", "at 90 %", "share", "higher",
           _paired(partial(accuracy_at, 0.9))),
    Metric("chance", "chance", "1 / n", "share", None,
           lambda e: float(np.mean(1.0 / e.records.count))),
)
# fmt: on
METRICS = {metric.name: metric for metric in _TABLE}
"""All metrics by name, in the order of the fields of `EvalMetrics`."""


def summarize(records: EvalRecords, confidence: Confidence, bins: int) -> EvalMetrics:
    """Return every metric of one model on one evaluation.

    Args:
        records: one row per question.
        confidence: the prediction's probability among the `candidates` or in the `full` vocabulary.
        bins: number of bins of the calibration errors.
    """
    evaluated = _Evaluated(records, confidence, bins)
    values: dict[str, Any] = {name: m.function(evaluated) for name, m in METRICS.items()}
    return EvalMetrics(**values)
