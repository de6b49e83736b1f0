"""Prompts and responses of any length from a user's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from firstcli.api import InputField, Sample, Split, Task, TaskUsage
from firstcli.tasks import tables
from firstcli.tasks.table_splits import TableOptions, TableSplits
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import Template, columns_of, fill


class InstructionOptions(TableOptions):
    """The location of the data, and the templates of prompt and response."""

    prompt: Template = Field(
        "{prompt}",
        description="template of the prompt, in which {name} stands for the column of that name, "
        'for example "Instruction: {instruction}\\nInput: {input}\\nResponse:"',
    )
    response: Template = Field(
        "{response}",
        description="template of the response; a space between prompt and response belongs here",
    )


class Instruction(Task[InstructionOptions]):
    """Pairs of prompt and response without candidates, so they cannot be evaluated."""

    Options = InstructionOptions
    has_candidates: ClassVar[bool] = False

    def __init__(self, options: InstructionOptions) -> None:
        super().__init__(options)
        self._table = TableSplits(options)

    @property
    def splits(self) -> tuple[str, ...]:
        return self._table.names

    def sources(self, split: str) -> Sequence[Path]:
        return self._table.files(split)

    def usage(self) -> TaskUsage:
        names = columns_of(self.options.prompt)
        inputs = {name: InputField(columns=(name,), required="column") for name in names}
        return TaskUsage(kind="instruction", prompt=self.options.prompt, inputs=inputs)

    def load(self, split: str) -> Split:
        """Return all rows in the order of the file; some may have no response."""
        notes: list[str] = []
        rows = self._table.rows(split, tables.read_rows(self.sources(split), notes))
        samples = map(self._sample, rows)
        kept = (sample for sample in samples if self._table.has_prompt(split, sample.prompt))
        return Split(kept, notes=notes)

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
