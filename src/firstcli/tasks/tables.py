"""Rows of data files, whatever their format; each row knows its place in its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.formats import COMPRESSIONS, ENDINGS, data_file


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of data."""

    where: str
    """Its place, for messages: `data.jsonl:3`, or `data.parquet, row 3` if a file has no lines."""
    values: Mapping[str, Any]
    file: Path | None = None
    """The file that it was read from, if any."""

    def mistake(self, complaint: str) -> UserError:
        return UserError(f"{self.where}: {complaint}")

    def value(self, column: str) -> Any:
        """Return the value of a column that the row must have.

        `question.stem` is the column of that name, or else the field `stem` of `question`.
        """
        if column in self.values:
            return self.values[column]
        outer, _, inner = column.partition(".")
        nested = self.values.get(outer) if inner else None
        if isinstance(nested, dict):
            return TableRow(f"{self.where}: column '{outer}'", nested).value(inner)
        names = list(self.values)
        raise self.mistake(
            f"there is no column '{column}'{did_you_mean(column, names)}; "
            f"the row has {shortened(names, 10) or 'none'}"
        )

    def has(self, column: str) -> bool:
        """Return whether the row has a column, or a field within a column."""
        if column in self.values:
            return True
        outer, _, inner = column.partition(".")
        nested = self.values.get(outer) if inner else None
        return isinstance(nested, dict) and TableRow(self.where, nested).has(inner)

    def text(self, column: str) -> str:
        """Return a column as text, empty if the value is missing."""
        value = self.value(column)
        return "" if value is None else self.as_text(value, column)

    def filled(self, column: str) -> str:
        """Return a column as text that must not be blank."""
        text = self.text(column)
        if not text.strip():
            raise self.mistake(f"column '{column}' is empty")
        return text

    def require_any(self, columns: Sequence[str]) -> None:
        """Refuse a row in which all of these columns are empty."""
        if not any(self.text(column).strip() for column in columns):
            raise self.mistake(f"nothing in {shortened(columns)}")

    def require(self, columns: Mapping[str, str]) -> None:
        """Refuse a row that lacks columns; names all of them at once, and what to set.

        Args:
            columns: the option that names a column, by column.
        """
        problems: dict[str, UserError] = {}
        for column in columns:
            try:
                self.value(column)
            except UserError as error:
                problems[column] = error
        if not problems:
            return
        options = _listed(list(dict.fromkeys(columns[column] for column in problems)))
        if len(problems) == 1:
            raise UserError(f"{next(iter(problems.values()))}; set {options}")
        names = list(self.values)
        missing = _listed([f"'{column}'{did_you_mean(column, names)}" for column in problems])
        raise self.mistake(
            f"there are no columns {missing}; the row has "
            f"{shortened(names, 10) or 'none'}; set {options}"
        )

    def as_text(self, value: object, column: str) -> str:
        """Return text or an integer as text; other values could be spelt in several ways."""
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.mistake(
                f"column '{column}': found {describe(value)}, expected text or a whole number"
            )
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.mistake(
                f"column '{column}' contains half of a character (an unpaired surrogate), which "
                "is not valid text; remove it"
            ) from None
        return text

    def id(self, column: str | None) -> str | None:
        """Return the row's id: from `column`, or by default from a column `id` with usable values.

        Nobody asked for the column `id`, so values that are no text or whole number, such as bytes,
        are ignored.
        """
        if column is not None:
            return self.filled(column).strip()
        if "id" not in self.values:
            return None
        try:
            return self.text("id").strip() or None
        except UserError:
            return None


def _listed(words: Sequence[str]) -> str:
    """Join words as in a sentence: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def describe(value: object) -> str:
    """Write a value for a message, in the notation of the data."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    kinds = {bool: "", type(None): "", list: "the list ", dict: "the object "}
    return kinds.get(type(value), "") + shown


def read_rows(paths: Path | Sequence[Path], notes: list[str] | None = None) -> Iterator[TableRow]:
    """Read files row by row, one after the other; their names determine the format.

    Args:
        paths: one file, or several that are read as one.
        notes: receives what the user should know about how the files were read, each note once.

    Raises:
        UserError: a file is missing, not UTF-8 or malformed, or no file has rows; names the line.
            It is raised when the iteration reaches the mistake.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    notes = [] if notes is None else notes
    empty = True
    for path in paths:
        for row in _rows_of_file(path, notes):
            empty = False
            yield row
    if empty:
        raise UserError(f"{paths[0]}: there are no rows in this file")


def _rows_of_file(path: Path, notes: list[str]) -> Iterator[TableRow]:
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file")
    file = data_file(path)
    if file is None:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        compressed = ", ".join(COMPRESSIONS)
        raise UserError(
            f"{path}: expected the path of a file that ends in {ENDINGS}, or in one of these "
            f"followed by {compressed}"
        )

    def note(text: str) -> None:
        if (line := f"{path}: {text}") not in notes:
            notes.append(line)

    try:
        for where, values in file.rows(note):
            if not isinstance(values, dict):
                raise UserError(
                    f"{where}: found {describe(values)}, expected a row as an object that names "
                    "its columns"
                )
            yield TableRow(where, values, path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
