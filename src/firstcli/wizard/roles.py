"""What a user states about a table, and the roles that its columns have in each task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstcli.tasks.answers import Reading

Choose = Callable[[str, Sequence[str], str], str]
"""Decides between candidates: what is asked, the candidates, and the option that answers it."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user states about the columns."""

    text: tuple[str, ...] = ()
    label: str | None = None
    task: str | None = None
    answer_as: str | None = None


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """The columns of the task `classification`."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class ChoiceQuestions:
    """The columns of the task `multiple-choice`."""

    question: str
    choices: str | tuple[str, ...]
    answer: str
    reading: Reading | None = None
    """How answers are read, if the answers alone do not decide it."""
    context: str | None = None
    """A passage that precedes the question."""
    group: str | None = None
    """A column with the question's subject."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question,) if self.context is None else (self.context, self.question)

    @property
    def label(self) -> str:
        return self.answer


@dataclass(frozen=True, slots=True)
class Responses:
    """The columns of the task `instruction`."""

    texts: tuple[str, ...]
    """The columns of the prompt."""
    label: str
    """The column of the response."""


@dataclass(frozen=True, slots=True)
class Conversations(Responses):
    """The column of the task `instruction` that holds conversations: both text and response."""


@dataclass(frozen=True, slots=True)
class Prompts(Responses):
    """The columns of the task `instruction` whose rows have no response: a teacher writes them."""


Guess = LabelledTexts | ChoiceQuestions | Responses
