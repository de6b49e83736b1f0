"""How good the explanations of a student are, of the questions that were chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from firstcli.active.reading import Said
from firstcli.api import Annotation, Sample, Task, same_answer


class ChecksSteps(Protocol):
    """A task that knows its questions' answers and can check explanations, as `known-steps`."""

    def true_answer(self, sample: Sample, /) -> str:
        """Return the right answer of a question; only its prompt is read."""

    def check_steps(self, sample: Sample, steps: Sequence[str], /) -> tuple[bool, ...]:
        """Return which steps of an explanation are right, (S,); only the prompt is read."""


def is_correction(annotation: Annotation, said: Said) -> bool:
    """Return whether an annotation corrects a step of the student's.

    It does not if it only adds what is missing after the last step.
    """
    return annotation.first_flaw is not None and annotation.first_flaw < len(said.steps)


def corrected(annotations: Iterable[Annotation], said: Mapping[str, Said]) -> int:
    """Count the annotations that correct a step of the student's, by what it said, by id."""
    return sum(each.id in said and is_correction(each, said[each.id]) for each in annotations)


def right_for_wrong_reasons(
    task: Task[Any], questions: Iterable[Sample], said: Mapping[str, Said]
) -> int | None:
    """Count the questions to which a student gives the right answer after a wrong step.

    Args:
        task: the task of the questions.
        questions: the chosen questions.
        said: what the student says of them, by id; those of which it says nothing do not count.

    Returns:
        The number; None if the task cannot check explanations, or if the student said nothing.
    """
    names = ("true_answer", "check_steps")
    asked = [question for question in questions if question.id in said]
    if not asked or not all(callable(getattr(task, name, None)) for name in names):
        return None
    checks, count = cast(ChecksSteps, task), 0
    for question in asked:
        words = said[str(question.id)]
        is_right = same_answer(words.answer, checks.true_answer(question))
        count += is_right and not all(checks.check_steps(question, words.steps))
    return count
