"""Prompts and responses of any length from a user's own file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from pydantic import Field

from firstcli.api import DataPath, PluginOptions, Sample, Split, Task
from firstcli.tasks import tables
from firstcli.tasks.tables import Row
from firstcli.tasks.templates import Template, columns_of, fill


class InstructionOptions(PluginOptions):
    """Where the data are, and how a row becomes a prompt and a response."""

    path: DataPath = Field(
        description="a .jsonl, .json, .csv or .parquet file, taken for whichever split is asked "
        "for, or a folder with a file for each split, such as train.jsonl"
    )
    prompt: Template = Field(
        "{prompt}",
        description="the prompt, in which {name} is the column of that name, for example "
        '"Instruction: {instruction}\\nInput: {input}\\nResponse:"',
    )
    response: Template = Field(
        "{response}",
        description="the response, likewise; a space between prompt and response belongs here",
    )
    id_column: str | None = Field(
        None, description="column with an id for each row (default: `id`, if there is one)"
    )


class Instruction(Task[InstructionOptions]):
    """Pairs of prompt and response; there is nothing to choose among, so it is no evaluation."""

    Options = InstructionOptions
    has_candidates: ClassVar[bool] = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The folder's files, or the usual three."""
        return tables.splits_at(self.options.path)

    def load(self, split: str) -> Split:
        """Return the rows that have a response, in the order of the file."""
        rows = tables.read_split(self.options.path, split)
        return with_responses(map(self._sample, rows), "empty response")

    def _sample(self, row: Row) -> Sample:
        options = self.options
        row.require_any(columns_of(options.prompt))
        answered = any(row.text(column).strip() for column in columns_of(options.response))
        return Sample(
            prompt=fill(options.prompt, row.text),
            response=fill(options.response, row.text) if answered else "",
            id=row.id(options.id_column),
        )


def with_responses(samples: Iterable[Sample], reason: str) -> Split:
    """Leave out the samples with an empty response, and count them."""
    dropped: dict[str, int] = {}

    def kept() -> Iterator[Sample]:
        for sample in samples:
            if sample.response.strip():
                yield sample
            else:
                dropped[reason] = dropped.get(reason, 0) + 1

    return Split(kept(), dropped)
