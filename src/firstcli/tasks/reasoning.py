r"""Questions from a user's file that are answered step by step.

`reasoning` is for free answers, such as numbers, and `reasoning-choice` for questions with choices.
A row of GSM8K, `{"question": ..., "answer": "3 times 4 is <<3*4=12>>12.\n#### 12"}`, needs:

    path: gsm8k                       # a folder with train.jsonl and test.jsonl
    steps_column: answer
    remove: <<[^>]*>>
    answer_in: "####\s*(.+)"
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from firstcli.api import ExplanationForm, InputField, Sample, Split, Task, TaskUsage, render
from firstcli.tasks import tables
from firstcli.tasks.choices import Choices
from firstcli.tasks.explained import ExplanationOptions, checked, kept
from firstcli.tasks.multiple_choice import MultipleChoice, MultipleChoiceOptions
from firstcli.tasks.table_splits import GroupedTableOptions, TableSplits
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import Template, columns_of, fill


class ReasoningOptions(ExplanationOptions, GroupedTableOptions):
    """The location of the data, the meaning of their columns, and the format of the texts."""

    prompt: Template = Field(
        "Question: {question}\nAnswer:",
        description="template of the prompt, in which {name} stands for the column of that name",
    )
    answer_column: str = Field(
        "answer", description="column of the answer; a row in which it is empty has no label"
    )
    answer_in: str | None = Field(
        None,
        description="regular expression, with one group, that finds the answer in its column; what "
        "it matches does not belong to the explanation. Default: the whole column",
    )

    @field_validator("answer_in")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "()").groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"found {groups} groups, expected one: the answer")
        return pattern

    @model_validator(mode="after")
    def _answer_is_no_step(self) -> ReasoningOptions:
        if self.answer_column in self.steps_columns and self.answer_in is None:
            raise ValueError(
                f"column '{self.answer_column}' contains explanation and answer, so `answer_in` "
                "must say where the answer is, for example '#### (.+)'"
            )
        return self


class Reasoning(Task[ReasoningOptions]):
    """Questions with an explanation and a free answer, from the user's files."""

    Options = ReasoningOptions
    has_candidates: ClassVar[bool] = False

    def __init__(self, options: ReasoningOptions) -> None:
        super().__init__(options)
        self._table = TableSplits(options)

    @property
    def splits(self) -> tuple[str, ...]:
        return self._table.names

    def sources(self, split: str) -> Sequence[Path]:
        return self._table.files(split)

    def explanations(self) -> ExplanationForm:
        return self.options.form()

    def usage(self) -> TaskUsage:
        names = columns_of(self.options.prompt)
        inputs = {name: InputField(columns=(name,), required="column") for name in names}
        return TaskUsage(kind="instruction", prompt=self.options.prompt, inputs=inputs)

    def load(self, split: str) -> Split:
        """Return the questions in the order of the file; without an answer there is no response.

        Samples are dropped whose explanation states an answer other than their own.
        """
        notes: list[str] = []
        dropped: dict[str, int] = {}
        samples = kept(self._samples(split, notes), self.options.form(), dropped)
        return Split(samples, dropped, notes)

    def _samples(self, split: str, notes: list[str]) -> Iterator[Sample]:
        for row in self._table.rows(split, tables.read_rows(self.sources(split), notes)):
            sample = self._sample(row)
            if self._table.has_prompt(split, sample.prompt, labelled=bool(sample.response)):
                yield sample

    def _sample(self, row: TableRow) -> Sample:
        options = self.options
        named = dict.fromkeys(columns_of(options.prompt), "prompt")
        named |= {options.answer_column: "answer_column"}
        row.require(named | dict.fromkeys(options.steps_columns, "steps_column"))
        row.require_any(columns_of(options.prompt))
        answer = self._answer(row)
        taken = {options.answer_column: options.answer_in} if options.answer_in else {}
        steps = options.steps(row, taken) if answer else ()
        sample = Sample(
            prompt=fill(options.prompt, row.text),
            response=render(steps, answer, options.form()) if answer else "",
            id=row.id(options.id_column),
            group=options.group_of(row),
            steps=steps,
        )
        return checked(row, sample, options.form())

    def _answer(self, row: TableRow) -> str:
        """Return the answer of a row on one line; empty without one."""
        column, pattern = self.options.answer_column, self.options.answer_in
        value = row.value(column)
        text = str(value) if isinstance(value, float | Decimal) else row.text(column)
        if pattern is not None and text.strip():
            found = re.search(pattern, text)
            if found is None:
                raise row.mistake(
                    f"column '{column}': `answer_in` ({pattern}) finds no answer in "
                    f"{tables.describe(text)}; correct the row or the expression"
                )
            text = found[1] or ""
        return " ".join(text.split())


class ReasoningChoiceOptions(ExplanationOptions, MultipleChoiceOptions):
    """The location of the data, the meaning of their columns, and the format of the texts."""

    response: Literal["{answer}"] = Field(
        "{answer}", description="no effect here: `answer_format` makes the response"
    )
    remove_from_choices: str | None = Field(
        None,
        description="regular expression of what is removed from the choices, such as the letters "
        "of AQuA: `^[A-E]\\)`",
    )

    @field_validator("remove_from_choices")
    @classmethod
    def _is_an_expression_too(cls, pattern: str | None) -> str | None:
        return cls._is_an_expression(pattern)


class ReasoningChoice(MultipleChoice):
    """Questions with an explanation and 2 to 26 choices each, from the user's files."""

    Options = ReasoningChoiceOptions
    options: ReasoningChoiceOptions

    def explanations(self) -> ExplanationForm:
        return self.options.form()

    def usage(self) -> TaskUsage | None:  # type: ignore[override]
        """Return how a prompt is made, unless each row has its own choices."""
        usage = super().usage()
        if usage.choices is not None:
            return None
        return TaskUsage(kind="instruction", prompt=usage.prompt, inputs=usage.inputs)

    def load(self, split: str) -> Split:
        """Return the questions in the order of the file; an empty answer is no label.

        Samples are dropped whose explanation states an answer other than their own.
        """
        found, dropped = super().load(split), dict[str, int]()
        return Split(kept(found.samples, self.options.form(), dropped), dropped, found.notes)

    def unlabelled(self, path: Path | Sequence[Path]) -> None:  # type: ignore[override]
        """Return None: what students learn of an unlabelled question has no explanation."""
        return None

    def _choices(self, row: TableRow) -> Choices:
        found, pattern = super()._choices(row), self.options.remove_from_choices
        if pattern is None:
            return found
        texts = [re.sub(pattern, "", text).strip() for text in found.texts]
        if not all(texts):
            raise row.mistake("`remove_from_choices` leaves a choice empty; correct the expression")
        return Choices(texts, found.labels)

    def _sample(self, row: TableRow, texts: Sequence[str], answer: int | None) -> Sample:
        sample, options = super()._sample(row, texts, answer), self.options
        row.require(dict.fromkeys(options.steps_columns, "steps_column"))
        form = options.form()
        steps = () if answer is None else options.steps(row)
        candidates = tuple(render(steps, name, form) for name in sample.candidates)
        response = "" if answer is None else candidates[answer]
        explained = replace(sample, candidates=candidates, response=response, steps=steps)
        return checked(row, explained, form)
