"""The choices of a question, in each form in which data sets store them."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firstcli.errors import shortened
from firstcli.tasks.tables import TableRow, describe

MAX_CHOICES = 26  # the number of letters

_FIELDS = (("label", "text"), ("key", "value"))
"""Names of the fields that hold a choice's label and its text."""


@dataclass(frozen=True, slots=True)
class Choices:
    """The texts to choose from, and the labels by which the data refer to them, if any."""

    texts: Sequence[str]
    labels: Sequence[str] = ()
    """Empty, or one label per text."""

    def stripped(self) -> Choices:
        """Return the choices without white space around their texts."""
        return Choices([text.strip() for text in self.texts], self.labels)


def in_columns(row: TableRow, columns: Sequence[str]) -> Choices:
    """Return one choice per column; the last columns may be empty.

    The names of the columns are the labels: an answer may be `opb`.

    Raises:
        UserError: there are too few choices, too many, or an empty one between others.
    """
    texts = [row.text(column) for column in columns]
    while texts and not texts[-1].strip():
        texts.pop()
    return _checked(row, ", ".join(columns), Choices(texts, columns[: len(texts)]))


def in_cell(row: TableRow, column: str, separator: str | None = None, advice: str = "") -> Choices:
    """Return the choices that one column contains.

    The forms are a list of texts, `{"text": [...], "label": [...]}`, a list of `{"label": "A",
    "text": ...}`, `{"A": ..., "B": ...}`, and text that contains one of these in the notation of
    JSON or Python, as cells of CSV files do.

    Args:
        row: the row of the question.
        column: the column of the choices.
        separator: if given, text is split at it instead.
        advice: ends the message about a value in none of these forms.

    Raises:
        UserError: the value has none of these forms, or there are too few or too many choices.
    """
    value = row.value(column)
    if isinstance(value, str):
        value = value.split(separator) if separator else from_notation(value)
    fields = _fields(value)
    if fields is None:
        raise row.mistake(
            f"column '{column}': found {describe(row.value(column))}, expected a list of choices, "
            f"or a label and a text for each{advice}"
        )
    texts = [row.as_text(text, column) for text in fields[0]]
    labels = [row.as_text(label, column).strip() for label in fields[1] if label is not None]
    return _checked(row, column, Choices(texts, labels))


def from_notation(text: str) -> Any:
    """Return the list or object that a text spells in JSON or Python, or else the text itself."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    for parse in (json.loads, ast.literal_eval):  # pandas writes lists to CSV files as Python does
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


Fields = tuple[list[Any], list[Any]]
"""The texts and the labels; None stands for a missing label."""


def _fields(value: object) -> Fields | None:
    """Return texts and labels, or None if the value has none of the known forms."""
    if isinstance(value, dict):
        return _fields_of_object(value)
    if not isinstance(value, list):
        return None
    if not any(isinstance(choice, dict) for choice in value):
        return value, []
    for label, text in _FIELDS:
        if all(isinstance(choice, dict) and text in choice for choice in value):
            return [choice[text] for choice in value], [choice.get(label) for choice in value]
    return None


def _fields_of_object(value: dict[str, Any]) -> Fields | None:
    for label, text in _FIELDS:
        if text in value:  # one list per field
            texts, labels = value[text], value.get(label) or []
            return (texts, labels) if isinstance(texts, list) and isinstance(labels, list) else None
    pairs = list(value.items())  # one field per choice; a Parquet file fills up missing ones
    while pairs and pairs[-1][1] is None:
        pairs.pop()
    return [text for _, text in pairs], [label for label, _ in pairs]


def _checked(row: TableRow, name: str, choices: Choices) -> Choices:
    texts, labels = choices.texts, choices.labels
    problem = None
    if not 2 <= len(texts) <= MAX_CHOICES:
        problem = f"found {len(texts)} choices, expected 2 to {MAX_CHOICES}"
    elif not all(map(str.strip, texts)):
        number = next(number for number, text in enumerate(texts, 1) if not text.strip())
        problem = f"choice {number} of {len(texts)} is empty"
    elif len(labels) not in (0, len(texts)):
        problem = f"found {len(texts)} choices, but {len(labels)} labels"
    elif len(set(labels)) < len(labels):
        problem = f"found the labels {shortened(labels, 10)}, expected different ones"
    if problem:
        raise row.mistake(f"column '{name}': {problem}")
    return choices
