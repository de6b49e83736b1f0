"""The part of the contract that concerns annotators: what a student is taught about a question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from firstcli.api.augmenters import WritingSettings
from firstcli.api.contract import FloatArray, OptionsT, PluginBase, Sample, Task


@dataclass(frozen=True, slots=True)
class ToAnnotate:
    """A question to annotate, and what the student says about it."""

    sample: Sample
    """The question, with an id. Its label is hidden unless the annotator declares `buys_label`."""
    explanation: tuple[str, ...] = ()
    """The student's steps, one line each."""
    answer: str = ""
    """The student's answer; empty if its text has none."""
    choices: tuple[str, ...] = ()
    """The answers that the candidates give, in their order; empty without candidates."""
    right_answer: str | None = None
    """The right answer, if the label is known."""


@dataclass(frozen=True, slots=True)
class Explained:
    """What a student is to learn about a question, as an annotator returns it."""

    steps: tuple[str, ...]
    """The explanation, one line of text per step; empty if only the answer is learned."""
    answer: str
    """The answer; if there are choices, one of them, unchanged."""
    first_flaw: int | None = None
    """Index of the first of the student's steps that is wrong. The steps before it are the
    student's own. The number of the student's steps if these are right, but not enough; None if
    nothing is wrong, or if the annotator does not read the student's explanation."""
    question: str | None = None
    """The text of a new question that steps and answer belong to; None for the given one."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation and what it took."""

    id: str
    """The id of the annotated sample."""
    steps: tuple[str, ...]
    answer: str
    distribution: FloatArray | None = None
    """The teacher's probability of each candidate, (C,), which sum to 1; None without it."""
    first_flaw: int | None = None
    tokens_read: int = 0
    """Tokens of the teacher's prompts, over all attempts."""
    tokens_written: int = 0
    """Tokens that the teacher wrote, over all attempts."""
    attempts: int = 0
    """How often the teacher wrote a text: 0, 1, or 2 if the first text could not be parsed."""
    question: str | None = None


class Unparsable(Exception):
    """A teacher's text is not in the form that an annotator expects; the message says why."""


class Annotator(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.annotators`: says what a student learns about a question.

    An annotator that `generates` has `prompt` and `parse`, all others have `annotate`. Each result
    depends on nothing but the arguments, the options and the task.
    """

    generates: ClassVar[bool] = False
    """Whether the teacher writes text."""
    scores_candidates: ClassVar[bool] = False
    """Whether questions with candidates are answered by the teacher's probabilities of these. An
    annotator that does so and does not generate can annotate no other questions."""
    reads_explanation: ClassVar[bool] = False
    """Whether the student's explanation and answer are read. If False, the student need not write
    any before its questions are annotated."""
    buys_label: ClassVar[bool] = False
    """Whether the label is needed, which then counts as bought."""
    writes_questions: ClassVar[bool] = False
    """Whether annotations may have questions of their own."""

    @property
    def writing(self) -> WritingSettings:
        """How the teacher writes."""
        return WritingSettings(temperature=0.0, max_new_tokens=512)

    def prepare(self, task: Task[Any]) -> None:
        """Take what is needed of the task of the questions, once before the first one.

        Raises:
            UserError: the annotator cannot be used with this task.
        """
        return None

    def prompt(self, item: ToAnnotate) -> str:
        """Return the text that the teacher continues; it contains the question."""
        raise NotImplementedError

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        """Read what the teacher wrote and ended by itself.

        Raises:
            Unparsable: the text does not have the expected form. The teacher is asked once more; a
                second such text is a counted failure.
        """
        raise NotImplementedError

    def annotate(self, item: ToAnnotate) -> Explained:
        """Annotate a question without a text by the teacher.

        Raises:
            Unparsable: there is nothing to learn, which is a counted failure.
        """
        raise NotImplementedError
