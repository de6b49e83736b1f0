"""The table of all metrics, and their values for one model on one evaluation.

`docs/metrics.md` explains each metric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics import calibration, scores
from firstcli.metrics.records import Confidence, EvalRecords

DASH = "–"  # in place of an undefined value
ROUNDING = 1e-12  # smaller differences between metrics come from rounding


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
        return calibration.ece(self.confidence, self.correct, self.bins)

    @cached_property
    def null(self) -> FloatArray:
        return calibration.ece_null(self.confidence, self.bins)  # (D,)

    @cached_property
    def mean_null(self) -> float:
        return float(np.mean(self.null))

    @cached_property
    def brier(self) -> scores.Decomposition:
        return scores.brier_parts(self.confidence, self.correct)


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


_Value = float | None
_Function = Callable[[_Evaluated], _Value]


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
        if not float(text):  # a tiny value is not 0.0, unless rounding made it
            tiny = signed or value < ROUNDING
            return text if tiny else f"<{10.0**-digits:.{digits}f}"
        return f"+{text}" if signed and shown > 0 else text


def _metric(
    title: str,
    short: str,
    unit: Literal["share", "score", "p-value", "count"],
    better: Literal["lower", "higher"] | None,
    function: _Function,
) -> Any:
    """Declare a field of `EvalMetrics` with its entry in `METRICS`."""
    return field(metadata={"metric": (title, short, unit, better, function)})


# fmt: off
# ruff: noqa: RUF009 (`_metric` returns a field)
@dataclass(frozen=True, slots=True, kw_only=True)
class EvalMetrics:
    """The metrics of one model on one evaluation.

    Shares are fractions, never percentages. Undefined metrics are None: most of them if no
    candidate is right, those of the confidence if the records do not contain it.
    """

    n: int = _metric("questions", "n", "count", None, lambda e: len(e.records))
    accuracy: _Value = _metric("accuracy", "Acc", "share", "higher",
        _answered(lambda e: scores.accuracy(e.records.correct)))
    ece: _Value = _metric("ECE", "ECE", "share", "lower", _scored(lambda s: s.ece))
    trust: _Value = _metric("Trust", "Trust", "share", "higher", _binned(scores.trust))
    confidence: _Value = _metric("mean confidence", "Conf.", "share", None,
        lambda e: _mean(e.confidence))
    nll: _Value = _metric("NLL", "NLL", "score", "lower",
        _answered(lambda e: scores.nll(e.probabilities, e.answer).value))
    brier: _Value = _metric("Brier, multi-class", "Brier", "score", "lower",
        _answered(lambda e: scores.brier(e.probabilities, e.answer)))
    brier_top: _Value = _metric("Brier, top label", "Brier top", "score", "lower",
        _paired(scores.brier_top))
    candidate_mass: _Value = _metric("candidate mass", "Mass", "share", None,
        lambda e: _mean(e.records.candidate_mass))
    ties: int = _metric("ties", "Ties", "count", None, lambda e: int(np.sum(e.records.tie)))
    nll_floored: int | None = _metric("floored probabilities", "Floored", "count", None,
        _answered(lambda e: scores.nll(e.probabilities, e.answer).floored))
    bins_used: int | None = _metric("bins in use", "Bins", "count", None,
        _scored(lambda s: len(np.unique(calibration.bin_index(s.confidence, s.bins)))))
    ece_true: _Value = _metric("ECE against the truth", "ECE true", "share", "lower",
        _true(lambda s, p_right: calibration.ece(s.confidence, p_right, s.bins)))
    confidence_mae: _Value = _metric(
        "confidence MAE against the truth", "Conf. MAE", "share", "lower",
        _true(lambda s, p_right: scores.confidence_mae(s.confidence, p_right)))
    ece_null: _Value = _metric("ECE, null", "Null", "share", None, _scored(lambda s: s.mean_null))
    """Mean ECE of a calibrated model with these confidences."""
    ece_p: _Value = _metric("ECE, p", "p", "p-value", None,
        _scored(lambda s: p_value(s.ece, s.null)))
    """How often such a model shows an ECE at least as large."""
    ece_debiased: _Value = _metric("ECE, debiased", "Debiased", "share", "lower",
        _scored(lambda s: max(0.0, s.ece - s.mean_null)))
    ece_mass: _Value = _metric("ECE, equal-mass bins", "Equal mass", "share", "lower",
        _binned(calibration.ece_mass))
    ece_classwise: _Value = _metric("ECE, classwise", "Classwise", "share", "lower",
        _answered(lambda e: calibration.ece_classwise(
            e.probabilities, e.answer, e.records.count, e.bins)))
    ece_smooth: _Value = _metric("ECE, smooth", "Smooth", "share", "lower",
        _paired(calibration.ece_smooth))
    mce: _Value = _metric("MCE", "Max.", "share", "lower", _binned(calibration.mce))
    over_confidence: _Value = _metric("ECE, over-confident bins", "Over", "share", "lower",
        _binned(lambda *args: calibration.ece_parts(*args)[0]))
    under_confidence: _Value = _metric("ECE, under-confident bins", "Under", "share", "lower",
        _binned(lambda *args: calibration.ece_parts(*args)[1]))
    brier_miscalibration: _Value = _metric("Brier, miscalibration", "Miscal.", "score", "lower",
        _scored(lambda s: s.brier.miscalibration))
    brier_discrimination: _Value = _metric("Brier, discrimination", "Discr.", "score", "higher",
        _scored(lambda s: s.brier.discrimination))
    brier_uncertainty: _Value = _metric("Brier, uncertainty", "Uncert.", "score", None,
        _scored(lambda s: s.brier.uncertainty))
    auroc: _Value = _metric("AUROC of confidence", "AUROC", "score", "higher",
        _paired(scores.auroc))
    aurc: _Value = _metric("AURC", "AURC", "score", "lower", _paired(scores.aurc))
    accuracy_at_50: _Value = _metric("accuracy at 50 % coverage", "Acc at 50 %", "share", "higher",
        _paired(partial(scores.accuracy_at, 0.5)))
    accuracy_at_80: _Value = _metric("accuracy at 80 % coverage", "at 80 %", "share", "higher",
        _paired(partial(scores.accuracy_at, 0.8)))
    accuracy_at_90: _Value = _metric("accuracy at 90 % coverage", "at 90 %", "share", "higher",
        _paired(partial(scores.accuracy_at, 0.9)))
    chance: float = _metric("chance", "1 / n", "share", None,
        lambda e: 0.0 if e.records.stated else float(np.mean(1.0 / e.records.count)))
    """Mean of 1 / number of candidates; 0 for free answers."""
# fmt: on

METRICS = {key.name: Metric(key.name, *key.metadata["metric"]) for key in fields(EvalMetrics)}
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
