"""Questions on which the models differ most, as in the paper's Table 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.reporting import ReportData

if TYPE_CHECKING:
    from firstcli.api import FloatArray, Sample
    from firstcli.metrics.records import EvalRecords

COUNT = 6  # of an evaluation
_LONGEST = 700  # characters of a prompt; the middle of a longer one is left out


class Answer(NamedTuple):
    """What one row answered."""

    row: str
    text: str
    confidence: float
    in_right: float | None
    """Its probability of the right answer."""
    right: bool
    truth: float | None
    """The true probability of its answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its answers."""

    prompt: str
    right: str
    answers: tuple[Answer, ...]


def disputed(answered: Mapping[str, EvalRecords], count: int = COUNT) -> list[str]:
    """Return the ids of the questions that divide the rows most, the most divided first.

    What counts is how far apart, at the most, two rows' probabilities of the right answer are,
    among the candidates; where no candidate is right, their confidences. Only questions that all
    answered.
    """
    if len(answered) < 2:
        return []
    by_row = [dict(zip(r.ids, _in_right(r), strict=True)) for r in answered.values()]
    shared = [id for id in by_row[0] if all(id in one for one in by_row[1:])]
    values = np.array([[one[id] for id in shared] for one in by_row])  # (rows, N)
    spread = values.max(axis=0) - values.min(axis=0) if shared else np.zeros(0)
    return [shared[i] for i in np.argsort(-spread, kind="stable")[:count]]


def _in_right(records: EvalRecords) -> FloatArray:
    """Return the probability of each right answer among the candidates, or the confidence."""
    if not records.answerable:
        return records.confidence
    return np.asarray(records.probabilities[np.arange(len(records)), records.answer])


def questions(data: ReportData, evaluation: str) -> list[Question]:
    """Return the chosen questions as the page shows them."""
    answered = data.first_of(evaluation)
    where = {row: {id: i for i, id in enumerate(r.ids)} for row, r in answered.items()}
    return [
        Question(
            prompt=cut(sample.prompt),
            right="none of them" if _right_of(sample) is None else str(_right_of(sample)).strip(),
            answers=tuple(
                _answer(row, records, where[row][str(sample.id)], sample)
                for row, records in answered.items()
                if sample.id in where[row]
            ),
        )
        for sample in data.questions.get(evaluation, ())
    ]


def _right_of(sample: Sample) -> str | None:
    return None if sample.answer is None else sample.candidates[sample.answer]


def _answer(row: str, records: EvalRecords, at: int, sample: Sample) -> Answer:
    chosen = int(records.prediction[at])
    return Answer(
        row=row,
        text=sample.candidates[chosen].strip(),
        confidence=float(records.confidence[at]),
        in_right=float(_in_right(records)[at]) if records.answerable else None,
        right=bool(records.correct[at]),
        truth=None if records.truth is None else float(records.truth[at, chosen]),
    )


def cut(prompt: str) -> str:
    """Return a prompt without the middle where it is very long."""
    if len(prompt) <= _LONGEST:
        return prompt
    head, tail = 2 * _LONGEST // 3, _LONGEST // 3
    left_out = len(prompt) - head - tail
    return f"{prompt[:head]} […{left_out} characters…] {prompt[-tail:]}"
