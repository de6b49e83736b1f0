"""The questions on which the models differ most, as in the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from firstcli.api import FloatArray, Sample
from firstcli.metrics.records import EvalRecords
from firstcli.reporting.data import ReportData

COUNT = 6  # questions per evaluation
_MAX_LENGTH = 700  # characters of a prompt; the middle of a longer one is omitted


class Answer(NamedTuple):
    """The answer of one row."""

    row: str
    text: str
    confidence: float
    in_right: float | None
    """Probability of the right answer."""
    right: bool
    truth: float | None
    """True probability of the given answer."""


class DisputedQuestion(NamedTuple):
    """A question with the answers of all rows."""

    prompt: str
    right: str
    answers: tuple[Answer, ...]


def disputed(records: Mapping[str, EvalRecords], count: int = COUNT) -> list[str]:
    """Return the ids of the questions on which the rows differ most, in descending order.

    The difference is the range of the rows' probabilities of the right answer among the
    candidates, or of their confidences if no candidate is right. Only questions that all rows
    answered are considered.
    """
    if len(records) < 2:
        return []
    by_row = [dict(zip(r.ids, _in_right(r), strict=True)) for r in records.values()]
    shared = [id for id in by_row[0] if all(id in values for values in by_row[1:])]
    values = np.array([[row[id] for id in shared] for row in by_row])  # (rows, N)
    spread = values.max(axis=0) - values.min(axis=0) if shared else np.zeros(0)
    return [shared[i] for i in np.argsort(-spread, kind="stable")[:count]]


def _in_right(records: EvalRecords) -> FloatArray:
    """Return the probability of each right answer among the candidates, or else the confidence."""
    if not records.answerable:
        return records.confidence
    return np.asarray(records.probabilities[np.arange(len(records)), records.answer])


def questions(data: ReportData, evaluation: str) -> list[DisputedQuestion]:
    """Return the chosen questions as the page shows them."""
    by_row = data.first_of(evaluation)
    index = {row: {id: i for i, id in enumerate(r.ids)} for row, r in by_row.items()}
    chosen = []
    for sample in data.questions.get(evaluation, ()):
        answers = tuple(
            _answer(row, records, index[row][str(sample.id)], sample)
            for row, records in by_row.items()
            if sample.id in index[row]
        )
        chosen.append(DisputedQuestion(cut(sample.prompt), _right(sample), answers))
    return chosen


def _right(sample: Sample) -> str:
    """Return the right answer; of a response with an explanation, what follows that."""
    if sample.candidates and sample.answer is None:
        return "none of them"
    return _without_steps(sample, sample.response)


def _candidate(sample: Sample, index: int) -> str:
    """Return a candidate; a free answer itself is not recorded."""
    return _without_steps(sample, sample.candidates[index]) if sample.candidates else "its own"


def _without_steps(sample: Sample, response: str) -> str:
    return response.rpartition(sample.steps[-1])[2].strip() if sample.steps else response.strip()


def _answer(row: str, records: EvalRecords, i: int, sample: Sample) -> Answer:
    chosen = int(records.prediction[i])
    return Answer(
        row=row,
        text=_candidate(sample, chosen),
        confidence=float(records.confidence[i]),
        in_right=float(_in_right(records)[i]) if records.answerable else None,
        right=bool(records.correct[i]),
        truth=None if records.truth is None else float(records.truth[i, chosen]),
    )


def cut(prompt: str) -> str:
    """Omit the middle of a very long prompt."""
    if len(prompt) <= _MAX_LENGTH:
        return prompt
    head, tail = 2 * _MAX_LENGTH // 3, _MAX_LENGTH // 3
    omitted = len(prompt) - head - tail
    return f"{prompt[:head]} […{omitted} characters…] {prompt[-tail:]}"
