"""The part of the contract that concerns annotators: what is bought of a chosen question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from firstcli.api.contract import FloatArray, OptionsT, PluginBase, Sample


@dataclass(frozen=True, slots=True)
class ToAnnotate:
    """A chosen question, and what the student said of it."""

    sample: Sample
    """The question; its label is there only for annotators that buy it."""
    explanation: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What was bought of one question."""

    id: str
    steps: tuple[str, ...] = ()
    answer: str | None = None
    """The answer; None if only the teacher's distribution is learned."""
    distribution: FloatArray | None = None
    first_flaw: int | None = None
    tokens_read: int = 0
    tokens_written: int = 0
    attempts: int = 1


class Annotator(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.annotators`: says of a question what is bought."""

    generates: ClassVar[bool] = False
    """Whether the teacher writes text."""
    reads_explanation: ClassVar[bool] = False
    """Whether the teacher reads the student's explanation."""
    buys_label: ClassVar[bool] = False
    """Whether the label of the data is bought."""
