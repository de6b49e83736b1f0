"""Prompts and responses of any length from a user's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from firstcli.api import DataPaths, PluginOptions, Sample, Split, Task
from firstcli.tasks import layout, tables
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import Template, columns_of, fill


class InstructionOptions(PluginOptions):
    """The location of the data, and the templates of prompt and response."""

    path: DataPaths = Field(description=layout.PATH_HELP)
    prompt: Template = Field(
        "{prompt}",
        description="template of the prompt, in which {name} stands for the column of that name, "
        'for example "Instruction: {instruction}\\nInput: {input}\\nResponse:"',
    )
    response: Template = Field(
        "{response}",
        description="template of the response; a space between prompt and response belongs here",
    )
    id_column: str | None = Field(
        None, description="column with an id for each row (default: `id`, if it exists)"
    )


class Instruction(Task[InstructionOptions]):
    """Pairs of prompt and response without candidates, so they cannot be evaluated."""

    Options = InstructionOptions
    has_candidates: ClassVar[bool] = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of a folder, or train, validation and test for files."""
        return layout.splits_at(self.options.path)

    def sources(self, split: str) -> Sequence[Path]:
        return layout.split_files(self.options.path, split)

    def load(self, split: str) -> Split:
        """Return the rows that have a response, in the order of the file."""
        notes: list[str] = []
        rows = tables.read_rows(self.sources(split), notes)
        return with_responses(Split(map(self._sample, rows), notes=notes), "empty response")

    def _sample(self, row: TableRow) -> Sample:
        options = self.options
        named = dict.fromkeys(columns_of(options.prompt), "prompt")
        row.require(dict.fromkeys(columns_of(options.response), "response") | named)
        row.require_any(columns_of(options.prompt))
        answered = any(row.text(column).strip() for column in columns_of(options.response))
        return Sample(
            prompt=fill(options.prompt, row.text),
            response=fill(options.response, row.text) if answered else "",
            id=row.id(options.id_column),
        )


def with_responses(split: Split, reason: str) -> Split:
    """Drop the samples with an empty response, and count them under `reason`."""
    dropped: dict[str, int] = {}

    def kept() -> Iterator[Sample]:
        for sample in split.samples:
            if sample.response.strip():
                yield sample
            else:
                dropped[reason] = dropped.get(reason, 0) + 1

    return Split(kept(), dropped, split.notes)
