"""Prompts and responses of any length, or conversations, from a user's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from firstcli.api import InputField, Sample, Split, Task, TaskUsage
from firstcli.errors import did_you_mean
from firstcli.tasks import conversations, tables
from firstcli.tasks.conversations import Supervise
from firstcli.tasks.table_splits import TableOptions, TableSplits
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import Template, columns_of, fill


class InstructionOptions(TableOptions):
    """The location of the data, and the templates of prompt and response or the conversations."""

    prompt: Template = Field(
        "{prompt}",
        description="template of the prompt, in which {name} stands for the column of that name, "
        'for example "Instruction: {instruction}\\nInput: {input}\\nResponse:"',
    )
    response: Template | Literal[""] = Field(
        "{response}",
        description="template of the response; a space between prompt and response belongs here",
    )
    messages: str | None = Field(
        None,
        min_length=1,
        description="column with a conversation, a list of messages with `role` and `content` or "
        "with `from` and `value` (default: `messages` or `conversations`, in rows without the "
        "columns of prompt and response)",
    )
    supervise: Supervise = Field(
        "all", description="which turns of the assistant are learned in a conversation: all or last"
    )

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> InstructionOptions:
        templates = {"prompt", "response"} & self.model_fields_set
        if self.messages is not None and templates:
            raise ValueError(
                f"`messages` names a column with whole conversations, so `{min(templates)}` has no "
                "meaning; remove one"
            )
        return self


class Instruction(Task[InstructionOptions]):
    """Prompts with responses, or conversations, without candidates: they cannot be evaluated."""

    Options = InstructionOptions
    has_candidates: ClassVar[bool] = False

    def __init__(self, options: InstructionOptions) -> None:
        super().__init__(options)
        self._table = TableSplits(options)
        self._may_be_conversations = not {"prompt", "response"} & options.model_fields_set

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
        dropped: dict[str, int] = {}
        rows = self._table.rows(split, tables.read_rows(self.sources(split), notes))

        def kept() -> Iterator[Sample]:
            for row in rows:
                sample = self._sample(row)
                if isinstance(sample, str):
                    dropped[sample] = dropped.get(sample, 0) + 1
                elif self._table.has_prompt(split, sample.prompt):
                    yield sample

        return Split(kept(), dropped, notes)

    def _sample(self, row: TableRow) -> Sample | str:
        """Return a row's sample, or why it is left out."""
        options = self.options
        id = row.id(options.id_column)
        if column := self._conversation(row):
            return conversations.sample_of(row, column, options.supervise, id)
        named = dict.fromkeys(columns_of(options.prompt), "prompt")
        response = columns_of(options.response)
        if _is_prompt_alone(row, [*named], response):
            response = []
        row.require(dict.fromkeys(response, "response") | named)
        row.require_any(columns_of(options.prompt))
        answered = any(row.text(column).strip() for column in response)
        return Sample(
            prompt=fill(options.prompt, row.text),
            response=fill(options.response, row.text) if answered else "",
            id=id,
        )

    def _conversation(self, row: TableRow) -> str | None:
        """Return the column that holds a row's conversation; None if it has a prompt."""
        options = self.options
        if options.messages is not None:
            row.require({options.messages: "messages"})
            return options.messages
        if self._may_be_conversations and not (row.has("prompt") and row.has("response")):
            return conversations.column_of(row)
        return None


def _is_prompt_alone(row: TableRow, prompt: Sequence[str], response: Sequence[str]) -> bool:
    """Return whether a row has a prompt and no response, also under no mistyped name.

    Args:
        row: the row.
        prompt: the columns of the prompt.
        response: the columns of the response.
    """
    others = [name for name in row.values if name not in prompt]
    absent = not any(row.has(name) or did_you_mean(name, others) for name in response)
    return absent and all(map(row.has, prompt))
