"""Whether a model answers better than somebody who has not read the questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firstcli.metrics.calibration import wilson
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import MIN_QUESTIONS


@dataclass(frozen=True, slots=True)
class Guessing:
    """The better of two ways to answer without reading the question."""

    accuracy: float
    """The expected share of right answers."""
    is_constant: bool
    """Whether the most frequent answer is always given, rather than a random candidate."""

    def explains(self, accuracy: float, questions: int) -> bool:
        """Return whether the 95 % Wilson interval of an accuracy reaches down to that of guessing.

        Args:
            accuracy: the model's share of right answers.
            questions: their number.
        """
        return wilson(accuracy, questions)[0] <= self.accuracy

    def __str__(self) -> str:
        return "always the most frequent answer" if self.is_constant else "a random candidate"


def guessing(records: EvalRecords) -> Guessing:
    """Return how often guessing is right: at random, or always with the most frequent answer.

    The most frequent answer is the position that is right most often: the label, where all
    questions have the same candidates.

    Args:
        records: answers to questions that have right ones.
    """
    random = float(np.mean(1 / records.count))
    constant = float(np.bincount(records.answer).max() / len(records))
    return Guessing(max(random, constant), constant > random)


def explains_all(records: Sequence[EvalRecords]) -> Guessing | None:
    """Return the guessing that a row of models does not clearly exceed on average, or None.

    Nothing is said of fewer than `MIN_QUESTIONS` questions, whose intervals are wide, and of free
    answers.

    Args:
        records: the answers of each model to the same questions.
    """
    if len(records[0]) < MIN_QUESTIONS or records[0].stated:
        return None
    guess = guessing(records[0])
    accuracy = float(np.mean([each.correct.mean() for each in records]))
    return guess if guess.explains(accuracy, len(records[0])) else None
