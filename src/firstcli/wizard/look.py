"""What a table contains: its columns, their values and lengths, and its repeated rows.

All rows are read, and none is kept: the memory depends on the number of columns only.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from firstcli.errors import UserError
from firstcli.tasks.tables import TableRow

MAX_VALUES = 1000  # different values that are counted in a column
LONGEST_VALUE = 200  # characters; a column with longer text has no labels
MAX_COLUMNS = 200  # of a row, the fields of objects included
MAX_COMPARED = 5_000_000  # rows among which repeats are counted: 16 bytes each
EXACT_LENGTHS = 1000  # greater lengths are rounded down to three digits

TEXT, WHOLE, DECIMAL, TRUTH = "text", "whole numbers", "decimal numbers", "true or false"
LIST, OBJECT, OTHER = "lists", "objects", "other values"

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?[0-9]{0,18}[.,][0-9]{1,18}(e[+-]?[0-9]{1,3})?")
_TRUTHS = frozenset({"true", "false", "yes", "no"})


@dataclass(slots=True)
class Lengths:
    """Lengths in characters: exact below 1,000, above that to three digits."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        if length > EXACT_LENGTHS:
            unit = 10 ** (len(str(length)) - 3)
            length = length // unit * unit
        self.counts[length] += 1

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the texts does not exceed."""
        needed = share * self.counts.total()
        below = 0
        for length in sorted(self.counts):
            below += self.counts[length]
            if below >= needed:
                return length
        return 0


@dataclass(slots=True)
class Column:
    """One column, or one field of a column of objects: `question.stem`."""

    name: str
    filled: int = 0
    """Number of rows with a value that is not blank."""
    kinds: Counter[str] = field(default_factory=Counter)
    native: Counter[str] = field(default_factory=Counter)
    """As `kinds`, but numbers and truth values that are written as text count as text."""
    lengths: Lengths = field(default_factory=Lengths)
    values: Counter[str] | None = field(default_factory=Counter)
    """Rows per value, as it is written; None if there are more than 1,000 or long ones."""
    example: str = ""

    def add(self, value: Any) -> None:
        """Take the value of a row into account; None and blank text are missing."""
        if value is None or (isinstance(value, float) and value != value):
            return
        if isinstance(value, str):
            if not value.strip():
                return
            native, kind, text = TEXT, _kind_of_text(value), value
        elif isinstance(value, bool):
            native, kind, text = TRUTH, TRUTH, str(value).lower()
        elif isinstance(value, int | float):
            native = WHOLE if isinstance(value, int) else DECIMAL
            # Tables with missing values hold whole numbers as 2.0.
            is_whole = isinstance(value, int) or value.is_integer()
            kind, text = (WHOLE, str(int(value))) if is_whole else (DECIMAL, str(value))
        else:
            is_list, is_object = isinstance(value, list), isinstance(value, dict)
            native = kind = LIST if is_list else OBJECT if is_object else OTHER
            text = ""
        self.filled += 1
        self.kinds[kind] += 1
        self.native[native] += 1
        self.lengths.add(len(text))
        if not self.example:
            self.example = text[:LONGEST_VALUE] if text else str(value)[:LONGEST_VALUE]
        if self.values is not None:
            self.values[text] += 1
            if not text or len(text) > LONGEST_VALUE or len(self.values) > MAX_VALUES:
                self.values = None

    @property
    def kind(self) -> str:
        """The kind of all values, or `text` if kinds are mixed and all can be written as text."""
        kinds = set(self.kinds)
        if len(kinds) < 2:
            return kinds.pop() if kinds else "empty"
        if kinds == {WHOLE, DECIMAL}:
            return DECIMAL
        return TEXT if kinds <= {TEXT, WHOLE, DECIMAL, TRUTH} else "mixed"

    @property
    def different(self) -> int | None:
        """Number of different values, or None if there are more than are counted."""
        return None if self.values is None else len(self.values)


def _kind_of_text(text: str) -> str:
    if len(text) > 30:
        return TEXT
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return WHOLE
    if _DECIMAL.fullmatch(text):
        return DECIMAL
    return TRUTH if text.lower() in _TRUTHS else TEXT


@dataclass(frozen=True, slots=True)
class Contents:
    """The columns of a table and the number of its rows."""

    rows: int
    columns: Mapping[str, Column]
    """In the order of their first occurrence; fields of objects follow their column."""

    def missing(self, name: str) -> int:
        return self.rows - self.columns[name].filled


def look(rows: Iterable[TableRow]) -> Contents:
    """Read all rows and describe the columns.

    Raises:
        UserError: a row is malformed.
    """
    columns: dict[str, Column] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in _fields(row.values):
            column = columns.get(name)
            if column is None:
                if len(columns) >= MAX_COLUMNS:
                    continue
                column = columns[name] = Column(name)
            column.add(value)
    return Contents(count, columns)


def _fields(values: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield columns and, two levels deep, the fields of objects."""
    for name, value in values.items():
        yield name, value
        if isinstance(value, dict) and depth < 2:
            yield from ((f"{name}.{key}", inner) for key, inner in _fields(value, depth + 1))


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often texts occur more than once."""

    compared: int
    """Number of rows that were compared: all, or the first 5,000,000."""
    rows: int
    """Rows whose text occurred in an earlier row."""
    conflicting_texts: int
    """Different texts that have more than one label."""
    conflicting_rows: int
    """Rows with such a text."""
    example: tuple[int, int] | None
    """Numbers of the first two rows with the same text and different labels, from 0."""


def repeats(rows: Iterable[TableRow], text: Sequence[str], label: str | None) -> Repeats:
    """Count rows whose text occurred before, and texts with different labels.

    Texts are compared by 64-bit hashes.

    Args:
        rows: the rows of the table.
        text: the columns that together are the text.
        label: the column of the label; None compares no labels.

    Raises:
        UserError: a row is malformed.
    """
    texts, labels = array("q"), array("q")
    for row in islice(rows, MAX_COMPARED):
        texts.append(hash(tuple(written(row, column) for column in text)))
        labels.append(hash(written(row, label)) if label else 0)
    return _repeats(np.array(texts, dtype=np.int64), np.array(labels, dtype=np.int64))


def _repeats(texts: Any, labels: Any) -> Repeats:
    """Count repeats; `texts` and `labels` are hashes of shape (N,)."""
    order = np.lexsort((np.arange(len(texts)), texts))  # equal texts together, in the rows' order
    starts = np.flatnonzero(np.r_[True, texts[order][1:] != texts[order][:-1]][: len(texts)])
    if len(starts) == 0:
        return Repeats(0, 0, 0, 0, None)
    sorted_labels = labels[order]
    low = np.minimum.reduceat(sorted_labels, starts)
    high = np.maximum.reduceat(sorted_labels, starts)
    sizes = np.diff(np.r_[starts, len(texts)])
    conflicting = low != high
    example = None
    if conflicting.any():
        firsts = np.where(conflicting, order[starts], len(texts))
        group = int(np.argmin(firsts))  # the group that begins first in the file
        members = order[starts[group] : starts[group] + sizes[group]]
        other = int(np.argmax(labels[members] != labels[members[0]]))
        example = int(members[0]), int(members[other])
    return Repeats(
        compared=len(texts),
        rows=int(len(texts) - len(starts)),
        conflicting_texts=int(conflicting.sum()),
        conflicting_rows=int(sizes[conflicting].sum()),
        example=example,
    )


def written(row: TableRow, column: str) -> str:
    """Return a cell as text without white space around it; empty if there is none."""
    try:
        value = row.value(column)
    except UserError:
        return ""
    return "" if value is None else str(value).strip()


def variants(labels: Iterable[str]) -> list[list[str]]:
    """Return the groups of labels that differ only in case or white space."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(" ".join(label.split()).casefold(), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def printable(text: str) -> str:
    """Return text without control characters, with which data could change a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
