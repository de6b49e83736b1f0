"""What is put out for each row: the prediction, its confidence, the runners-up, or the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from firstcli.errors import UserError
from firstcli.student.answering import Predictions
from firstcli.student.generating import Generation
from firstcli.student.load import MAX_NEW_TOKENS, TrainedStudent
from firstcli.student.usage import Usage
from firstcli.tasks.tables import TableRow

Record = dict[str, Any]
"""The values that are added to a row, by column; `error` is None or says what is wrong."""


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """What determines the records of a row, besides the student and the row."""

    top: int = 2
    """Number of runners-up."""
    threshold: float | None = None
    """Confidence below which the student abstains; None if it always answers."""
    max_new_tokens: int = MAX_NEW_TOKENS
    """Tokens after which a generated text is cut off."""
    batch_size: int | None = None
    """Rows per batch; None leaves it to the student."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a student that chooses, apart from the runners-up."""
        abstained = () if self.threshold is None else ("abstained",)
        return ("prediction", "confidence", *abstained)


def columns_of(usage: Usage, settings: OutputSettings) -> tuple[str, ...]:
    """Return the columns that are added to a row.

    Args:
        usage: how the student is used.
        settings: what is put out.
    """
    if usage.kind == "instruction":
        return ("generated", "tokens", "finished", "error")
    return (*settings.columns, *(("runners_up",) if settings.top else ()), "error")


def records_of(
    student: TrainedStudent, rows: Sequence[TableRow], settings: OutputSettings
) -> list[Record]:
    """Answer a window of rows.

    Args:
        student: the student.
        rows: the rows.
        settings: what is put out.
    """
    if student.generates:
        generations = student.responses(rows, settings.max_new_tokens, settings.batch_size)
        return [_generated(generation) for generation in generations]
    predictions = student.answers(rows, settings.batch_size)
    return [_answered(predictions, number, settings) for number in range(len(rows))]


def _answered(predictions: Predictions, number: int, settings: OutputSettings) -> Record:
    """Return a row's prediction.

    If the student abstains, there is no prediction, and the most likely answer is the first of the
    runners-up.
    """
    error = predictions.errors[number]
    ranked = predictions.ranked(number) if error is None else []
    confidence = ranked[0][1] if ranked else None
    abstains = bool(ranked) and settings.threshold is not None and ranked[0][1] < settings.threshold
    record: Record = {
        "prediction": ranked[0][0] if ranked and not abstains else None,
        "confidence": confidence,
    }
    if settings.threshold is not None:
        record["abstained"] = abstains if ranked else None
    if settings.top:
        others = ranked[0 if abstains else 1 :][: settings.top]
        record["runners_up"] = [
            {"prediction": name, "confidence": probability} for name, probability in others
        ]
    return record | {"error": error}


def _generated(generation: Generation) -> Record:
    return {
        "generated": generation.text,
        "tokens": [asdict(token) for token in generation.tokens],
        "finished": generation.finished if generation.error is None else None,
        "error": generation.error,
    }


def merged(row: Mapping[str, Any], record: Record) -> dict[str, Any]:
    """Return a row's own values and what is put out for it."""
    return {**row, **record}


def check_columns(
    columns: Mapping[str, Any] | Sequence[str], added: Sequence[str], where: str
) -> None:
    """Refuse rows that already have one of the columns that are added.

    Args:
        columns: the columns of the rows.
        added: the columns that are added.
        where: where the rows come from, for the message.

    Raises:
        UserError: a column occurs in both.
    """
    if taken := [name for name in added if name in columns]:
        raise UserError(
            f"{where}: already has the column '{taken[0]}', which first predict adds; rename it"
        )


def threshold_of(usage: Usage, target: float, *, raw: bool = False) -> float:
    """Return the confidence from which a student's answers reach a target accuracy.

    Args:
        usage: how the student is used.
        target: least share of right answers.
        raw: whether the post-hoc recalibrator is left out.

    Raises:
        UserError: the folder has neither the threshold nor the validation answers, or no threshold
            reaches the target.
    """
    raw = raw and usage.posthoc is not None
    for stored in () if raw else usage.thresholds:
        if stored.target_accuracy == target:
            return _reached(stored.threshold, target)
    answers = usage.raw_validation if raw else usage.validation
    if answers is None:
        raise UserError(
            f"--target-accuracy {target:g}: the student's folder has no answers to validation "
            f"questions, from which the threshold is chosen; run `first report RECIPE "
            f"--target-accuracy {target:g}`, which writes them into it"
        )
    import numpy as np

    from firstcli.metrics.thresholds import threshold_for

    confidence = np.array(answers.confidence)
    promised = threshold_for(confidence, np.array(answers.correct), target)
    return _reached(None if promised is None else promised.threshold, target)


def _reached(threshold: float | None, target: float) -> float:
    if threshold is None:
        raise UserError(
            f"--target-accuracy {target:g}: no confidence promises this accuracy with 95 % "
            "certainty on the validation questions; lower the target, or give --abstain-below"
        )
    return threshold
