"""Texts with one label each, from a user's file: 2 to 1,000 labels, the same for all texts.

A table with the columns `text` and `label` needs only the option `path`. The model answers with the
label if the tokenizers tell the labels apart at one token, and else with a short code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from firstcli.api import (
    Adaptation,
    InputField,
    Label,
    ResponseTokens,
    Sample,
    Split,
    Task,
    TaskUsage,
)
from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks import tables
from firstcli.tasks.codes import Tokens, chosen_codes, clash
from firstcli.tasks.table_splits import GroupedTableOptions, TableSplits, over_files
from firstcli.tasks.tables import TableRow, describe
from firstcli.tasks.templates import Template, columns_of, fill, with_filled

MAX_LABELS = 1000
MAX_LISTED = 50
"""Labels that the default prompt lists at most."""

PLAIN = "{text}\n\nLabel:"
LISTING = "Labels:\n{labels}\n\nText: {text}\n\nLabel:"

_PROBE = "text"
"""Stands for every column when a prompt is encoded before any row is read."""


class ClassificationOptions(GroupedTableOptions):
    """The location of the data, the labels, and the format of the prompt."""

    text: str | list[str] = Field(
        "text",
        min_length=1,
        description="column of the text, or several columns, which are joined line by line as "
        "`name: value`",
    )
    label: str = Field(
        "label", description="column of the label; a row in which it is empty has no label"
    )
    labels: list[str] | dict[str, str] | None = Field(
        None,
        description="the labels, or each label with a description (default: those that occur in "
        "the split `train`, sorted)",
    )
    prompt: Template | None = Field(
        None,
        description="template of the prompt: {text} stands for the text, {labels} for the labels "
        "with their codes and descriptions, one per line, and any other {name} for the column of "
        "that name (default: the text and `Label:`; up to 50 labels with codes or descriptions "
        "are listed before it)",
    )
    answers: Literal["auto", "labels", "codes"] = Field(
        "auto",
        description="whether the model answers with the labels themselves or with short codes; "
        "`auto` uses the labels if the tokenizers of teacher and student give each of them a "
        "different first token",
    )
    codes: dict[str, str] | None = Field(
        None, description="the code of each label (default: chosen so that their tokens differ)"
    )

    @field_validator("labels", "codes", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: object) -> object:
        if isinstance(value, dict):
            return {_number_as_text(name): text for name, text in value.items()}
        return list(map(_number_as_text, value)) if isinstance(value, list) else value

    @field_validator("labels")
    @classmethod
    def _check_labels(
        cls, labels: list[str] | dict[str, str] | None
    ) -> list[str] | dict[str, str] | None:
        if labels is None:
            return None
        names = [name.strip() for name in labels]
        if not 2 <= len(names) <= MAX_LABELS:
            raise ValueError(f"found {len(names)} labels, expected 2 to {MAX_LABELS:,}")
        if not all(names):
            raise ValueError("one of the labels is empty")
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"{shortened(repeated)} is listed twice")
        if isinstance(labels, dict):
            return dict(zip(names, (text.strip() for text in labels.values()), strict=True))
        return names

    @field_validator("prompt")
    @classmethod
    def _has_a_column(cls, prompt: str | None) -> str | None:
        if prompt is not None and {*columns_of(prompt)} == {"labels"}:
            raise ValueError("expected {text} or another column in it, or all rows are the same")
        return prompt

    @field_validator("codes")
    @classmethod
    def _check_codes(
        cls, codes: dict[str, str] | None, info: ValidationInfo
    ) -> dict[str, str] | None:
        if codes is None:
            return None
        if info.data.get("answers") != "codes":
            raise ValueError("have no effect unless `answers` is codes")
        labels = info.data.get("labels")
        if labels is None or [*labels] != [*codes]:
            raise ValueError("expected one code for each of `labels`, in the same order")
        if len({*codes.values()}) < len(codes) or not all(map(str.strip, codes.values())):
            raise ValueError("expected different codes that are not empty")
        return codes

    @property
    def descriptions(self) -> dict[str, str]:
        """The listed labels and their descriptions, which may be empty."""
        labels = self.labels or []
        return labels if isinstance(labels, dict) else dict.fromkeys(labels, "")


def _number_as_text(value: object) -> object:
    return str(value) if type(value) is int else value


class Classification(Task[ClassificationOptions]):
    """Texts with one label each, from the user's files."""

    Options = ClassificationOptions

    def __init__(self, options: ClassificationOptions) -> None:
        super().__init__(options)
        self._table = TableSplits(options)
        self._with_labels = self
        """The task whose rows have labels."""

    @property
    def splits(self) -> tuple[str, ...]:
        return self._table.names

    def sources(self, split: str) -> Sequence[Path]:
        """The split's files; if the labels are not listed, also those of `train`."""
        files, labelled = self._table.files(split), self._with_labels._table.files("train")
        return files if self.options.labels is not None else (*dict.fromkeys((*files, *labelled)),)

    def usage(self) -> TaskUsage:
        labels = self.options.descriptions or self._found_labels()
        return _Prompt(self.options, labels).usage([*labels])

    def load(self, split: str) -> Split:
        """Return the rows that have a text, in the order of the file; some may have no label."""
        notes: list[str] = []
        dropped: dict[str, int] = {}
        return Split(self._samples(split, notes, dropped), dropped, notes)

    def unlabelled(self, path: Path | Sequence[Path]) -> Classification:
        """Return the task over other files, whose labels are not read."""
        task = Classification(over_files(self.options, path))
        task._with_labels = self
        return task

    def _samples(self, split: str, notes: list[str], dropped: dict[str, int]) -> Iterator[Sample]:
        """Yield the samples of a split; a row without a label has no answer.

        Args:
            split: the split.
            notes: takes notes on the files.
            dropped: counts rows without a text.
        """
        labels = self.options.descriptions or self._found_labels()
        prompt = _Prompt(self.options, labels)
        indices = {label: number for number, label in enumerate(labels)}
        candidates = tuple(f" {answer}" for answer in prompt.answers)
        for row in self._rows(split, notes):
            if prompt.is_empty(row):
                dropped["empty text"] = dropped.get("empty text", 0) + 1
                continue
            label = self._label(row)
            if not self._table.has_prompt(split, prompt.of(row, ""), labelled=label is not None):
                continue
            if label is not None and label not in indices:
                raise self._unknown(row, label, labels)
            yield Sample.question(
                prompt.of(row),
                candidates,
                None if label is None else indices[label],
                id=row.id(self.options.id_column),
                group=self.options.group_of(row),
            )

    def _rows(self, split: str, notes: list[str]) -> Iterator[TableRow]:
        """Yield the rows of a split; the first must have every column that an option names."""
        checked = False
        for row in self._table.rows(split, tables.read_rows(self._table.files(split), notes)):
            if not checked:
                self._require_columns(row)
                checked = True
            yield row

    def _require_columns(self, row: TableRow) -> None:
        options = self.options
        columns = {column: "text" for column in _text_columns(options)}
        if self._with_labels is self:
            columns[options.label] = "label"
        for name in columns_of(options.prompt or ""):
            if name not in ("text", "labels"):
                columns.setdefault(name, "prompt")
        row.require(columns)

    def _label(self, row: TableRow) -> str | None:
        """Return a row's label as text, or None if it is missing."""
        if self._with_labels is not self:
            return None
        value = row.value(self.options.label)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            # Tables with missing values hold whole numbers as 2.0, and NaN for the missing ones.
            if math.isnan(value):
                return None
            value = int(value) if value.is_integer() else value
        return (None if value is None else row.as_text(value, self.options.label).strip()) or None

    def _unknown(self, row: TableRow, label: str, labels: Mapping[str, str]) -> UserError:
        return row.mistake(
            f"column '{self.options.label}': found {describe(label)}{did_you_mean(label, labels)}, "
            f"which is none of the {len(labels)} labels {shortened([*labels], 10)}; correct it, or "
            "list all labels in the option `labels`"
        )

    def _found_labels(self) -> dict[str, str]:
        """Return the labels that occur in the training split, sorted.

        If `test` cuts a share off, its rows count too: chance decides where a rare label ends up.
        """
        if self._with_labels is not self:
            return self._with_labels._found_labels()
        found: set[str] = set()
        for row in self._rows("train", []):
            if (label := self._label(row)) is not None:
                found.add(label)
            if len(found) > MAX_LABELS:
                break
        if not 2 <= len(found) <= MAX_LABELS:
            count = f"more than {MAX_LABELS:,}" if len(found) > 2 else str(len(found))
            raise UserError(
                f"{self._table.files('train')[0]}: column '{self.options.label}': found {count} "
                f"different labels, expected 2 to {MAX_LABELS:,}; check that `label` names the "
                "column of the labels"
            )
        return dict.fromkeys(sorted(found, key=_order), "")

    def adapted(
        self, tokens: ResponseTokens, training: ClassificationOptions | None
    ) -> Adaptation[ClassificationOptions]:
        """Return the options with all labels, and whether they or codes are the answers.

        An evaluation has the labels of the training task, unless it lists its own. Labels that the
        training task knows have the same answers as there.
        """
        options = self.options
        descriptions = options.descriptions
        if not descriptions and training is not None:
            descriptions = training.descriptions
        labels = descriptions or self._found_labels()
        update: dict[str, object] = {"labels": labels if any(labels.values()) else [*labels]}
        known = training is not None and {*labels} <= {*training.descriptions}
        if training is not None and known and options.answers in ("auto", training.answers):
            codes = training.codes and {label: training.codes[label] for label in labels}
            update |= {"answers": training.answers, "codes": codes}
            return Adaptation(options.model_copy(update=update), "answers as in training")
        answers, codes, note = _decision(options.model_copy(update=update), labels, tokens)
        update |= {"answers": answers, "codes": codes}
        return Adaptation(options.model_copy(update=update), f"{len(labels)} labels, {note}")


def _order(label: str) -> tuple[bool, int, str]:
    """Sort numbers by value, before other labels."""
    is_number = label.isascii() and label.isdecimal() and len(label) < 19
    return not is_number, int(label) if is_number else 0, label


def _text_columns(options: ClassificationOptions) -> list[str]:
    """Return the columns of the text, if the prompt contains it."""
    if "text" not in columns_of(options.prompt or PLAIN):
        return []
    return [options.text] if isinstance(options.text, str) else options.text


class _Prompt:
    """The prompts of a task whose labels are known."""

    def __init__(self, options: ClassificationOptions, labels: Mapping[str, str]) -> None:
        codes = options.codes
        self.answers: Sequence[str] = [*(codes or dict(zip(labels, labels, strict=True))).values()]
        listed = (codes or any(labels.values())) and len(labels) <= MAX_LISTED
        self._template = options.prompt or (LISTING if listed else PLAIN)
        # The prompt by which rows are divided must not change when a label is added.
        self._without_labels = options.prompt or PLAIN
        self._text = options.text
        self._columns = [name for name in columns_of(self._template) if name != "labels"]
        lines = []
        for answer, (label, description) in zip(self.answers, labels.items(), strict=True):
            named = f"{answer}. {label}" if codes else f"- {label}"
            lines.append(f"{named}: {description}" if description else named)
        self._lines = "\n".join(lines)

    def of(self, row: TableRow, labels: str | None = None) -> str:
        """Return the prompt of a row; with `labels`, the one by which the row is divided."""
        if labels is None:
            return fill(self._template, lambda name: self._value(row, name, self._lines))
        return fill(self._without_labels, lambda name: self._value(row, name, labels))

    def is_empty(self, row: TableRow) -> bool:
        return not any(self._value(row, name, "").strip() for name in self._columns)

    def _value(self, row: TableRow, name: str, labels: str) -> str:
        if name == "labels":
            return labels
        if name != "text":
            return row.text(name)
        if isinstance(self._text, str):
            return row.text(self._text).strip()
        texts = [(column, row.text(column).strip()) for column in self._text]
        return "\n".join(f"{column}: {text}" for column, text in texts if text)

    def usage(self, labels: Sequence[str]) -> TaskUsage:
        """Return how these prompts are made, as data; `labels` has the order of the answers."""
        text = self._text
        columns = (text,) if isinstance(text, str) else tuple(text)
        joined = None if isinstance(text, str) else "\n"
        pairs = zip(labels, self.answers, strict=True)
        return TaskUsage(
            kind="classification",
            prompt=with_filled(self._template, {"labels": self._lines}),
            inputs={
                name: InputField(columns=(name,), required="column")
                if name != "text"
                else InputField(
                    columns=columns,
                    required="column",
                    strip=True,
                    join=joined,
                    named=joined is not None,
                )
                for name in self._columns
            },
            labels=tuple(Label(name=name, response=f" {answer}") for name, answer in pairs),
        )

    @property
    def probe(self) -> str:
        """The prompt of an imagined row."""
        return fill(self._template, lambda name: self._lines if name == "labels" else _PROBE)


Decision = tuple[Literal["labels", "codes"], dict[str, str] | None, str]
"""The kind of answers, the codes if any, and a note."""


def _decision(
    options: ClassificationOptions, labels: Mapping[str, str], tokens: ResponseTokens
) -> Decision:
    """Decide on the answers.

    Args:
        options: the options, with `labels`.
        labels: the labels with their descriptions.
        tokens: encodes responses with each tokenizer.

    Raises:
        UserError: the tokenizers do not tell the answers apart.
    """

    def responses(answers: Sequence[str]) -> Sequence[Sequence[Tokens | None]]:
        return tokens(prompt.probe, [f" {answer}" for answer in answers])

    names, codes = [*labels], options.codes
    prompt = _Prompt(options, labels)
    if options.answers != "codes":
        alike = _alike(names, responses(names))
        if not alike:
            return "labels", None, "answered as words"
        if options.answers == "labels":
            raise UserError(
                f"answers: the labels {alike} begin with the same token; set `answers` to codes or "
                "auto"
            )
        reason = f", because the labels {alike} begin with the same token"
    else:
        reason = ""
    if codes is None:
        prompt = _Prompt(options.model_copy(update={"codes": {n: n for n in names}}), labels)
        found = chosen_codes(len(names), responses)
        if len(found) < len(names):
            raise UserError(
                f"answers: the tokenizers tell only {len(found)} codes apart, but there are "
                f"{len(names)} labels; choose a model with a larger vocabulary"
            )
        codes = dict(zip(names, found, strict=True))
    elif alike := _alike([*codes.values()], responses([*codes.values()])):
        raise UserError(f"codes: {alike} begin with the same token; choose different codes")
    first, last = codes[names[0]], codes[names[-1]]
    return "codes", codes, f"answered as the codes {first} to {last}{reason}"


def _alike(answers: Sequence[str], encoded: Sequence[Sequence[Tokens | None]]) -> str:
    """Return two answers that a tokenizer does not tell apart, or an empty text.

    Answers that change the tokens of the prompt are reported when the samples are encoded.
    """
    for sequences in encoded:
        known = [tokens for tokens in sequences if tokens is not None]
        if len(known) == len(answers) and (pair := clash(known)):
            return " and ".join(f"'{answers[number]}'" for number in pair)
    return ""
