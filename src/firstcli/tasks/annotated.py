"""The samples of one round of `first select`, in JSON Lines files that it has written itself.

Each row holds the fields of a `firstcli.api.Sample` that have no default value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from firstcli.api import DataPath, ExplanationForm, PluginOptions, Sample, Split, Task, TaskUsage
from firstcli.errors import UserError

HELD_OUT = "held-out"
"""The split of the samples on which no model is trained."""


class AnnotatedOptions(PluginOptions):
    """The files of a round."""

    path: DataPath = Field(description="the samples to learn: the first ones and the annotated")
    held_out: DataPath | None = Field(
        None, description="labelled samples on which no model is trained"
    )
    unseen: bool = Field(
        False, description="whether the teacher was not trained on the held-out samples either"
    )
    form: dict[str, Any] | None = Field(
        None, description="how responses are made of steps and answer, if samples have steps"
    )
    usage: dict[str, Any] | None = Field(
        None, description="how the task of the questions makes prompts and candidates of new rows"
    )


class Annotated(Task[AnnotatedOptions]):
    """What `first select` has bought so far; it writes recipes with this task itself."""

    Options = AnnotatedOptions
    held_out_split: ClassVar[str | None] = HELD_OUT

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", HELD_OUT) if self.options.held_out else ("train",)

    def sources(self, split: str) -> Sequence[Path]:
        own = [self.options.held_out] if self.options.held_out else []
        return own if split == HELD_OUT else [self.options.path, *own]

    def usage(self) -> TaskUsage | None:
        usage = self.options.usage
        return None if usage is None else TaskUsage.model_validate(usage)

    def explanations(self) -> ExplanationForm | None:
        return None if self.options.form is None else ExplanationForm(**self.options.form)

    def load(self, split: str) -> Split:
        path = self.options.held_out if split == HELD_OUT else self.options.path
        assert path is not None
        return Split(_samples(path))


class AnnotatedTexts(Annotated):
    """The same for samples without candidates."""

    has_candidates: ClassVar[bool] = False


def _samples(path: Path) -> Iterator[Sample]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield from_row(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: not a sample that `first select` has written; delete "
                        "the file, and run `first select` again"
                    ) from error
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run `first select` again") from None


def to_row(sample: Sample) -> dict[str, Any]:
    """Return the fields of a sample that have no default value, as JSON values."""
    values = {field: getattr(sample, field.name) for field in fields(sample)}
    return {
        field.name: value
        for field, value in values.items()
        if field.default is MISSING or value != field.default
    }


def from_row(row: Mapping[str, Any]) -> Sample:
    """Return the sample whose fields `to_row` returned.

    Raises:
        TypeError: a field is missing or unknown.
    """
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    return Sample(**values)
