"""The rows of JSON text: JSON Lines, an array, rows under a key, columns, or indented objects."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from firstcli.errors import UserError, shortened

Rows = Iterator[tuple[str, Any]]
"""Rows, each after its place in the file."""
Note = Callable[[str], None]
"""Receives what the user should know about how a file was read."""

_DECODER = json.JSONDecoder()
_CONTENT = re.compile(r"[^ \t\r\n]")


def of_lines(path: Path, text: IO[str], note: Note) -> Rows:
    """Read one value per line, or an array or indented objects in spite of the file's name.

    Raises:
        UserError: a line is not valid JSON, or an array does not fit into memory.
    """
    blanks, line = _first_line(text)
    if line.lstrip().startswith("[") or line.strip() == "{":
        note("this file holds an array or indented objects instead of one JSON object per line")
        yield from _document(path, ["\n" * blanks, line], text, note)
    else:
        yield from _lines(path, chain([line], text), first=blanks + 1)


def of_document(path: Path, text: IO[str], note: Note) -> Rows:
    """Read an array or an object that holds rows, or, as many tools write them, JSON lines.

    Raises:
        UserError: it is not valid JSON, does not fit into memory, or has rows under several keys.
    """
    blanks, line = _first_line(text)
    more_blanks, second = _first_line(text)
    if second and _is_object(line):  # one object may hold rows, but several objects are rows
        lines = chain([line], ["\n"] * more_blanks, [second], text)
        yield from _lines(path, lines, first=blanks + 1)
    else:
        start = ["\n" * blanks, line, "\n" * more_blanks, second]
        yield from _document(path, start, text, note)


def _first_line(text: IO[str]) -> tuple[int, str]:
    """Return the number of blank lines before the next line with content, and that line."""
    blanks = 0
    while (line := text.readline()) and not line.strip():
        blanks += 1
    return blanks, line


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path, lines: Iterable[str], first: int) -> Rows:
    for number, line in enumerate(lines, first):
        if line.strip():
            with _mistakes_located(path, number, at_end="; each line must hold one complete row"):
                value = json.loads(line.removesuffix("\n"))
            yield f"{path}:{number}", value


def _document(path: Path, start: Iterable[str], rest: IO[str], note: Note) -> Rows:
    """Yield the rows that the only value holds, or else every value as a row."""
    try:
        values = _values(path, "".join([*start, rest.read()]))
        first_two = list(islice(values, 2))
    except MemoryError:
        raise UserError(
            f"{path}: this JSON does not fit into memory; save the data as .jsonl with one row on "
            "each line, which is read line by line"
        ) from None
    if len(first_two) == 1:
        yield from _held(path, *first_two[0], note)
        return
    for line, value in chain(first_two, values):
        yield f"{path}:{line}", value


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a text, each after the line where it begins."""
    line, position = 1, 0
    while content := _CONTENT.search(text, position):
        line += text.count("\n", position, content.start())
        with _mistakes_located(path, 1):
            value, position = _DECODER.raw_decode(text, content.start())
        yield line, value
        line += text.count("\n", content.start(), position)


@contextmanager
def _mistakes_located(path: Path, line: int, at_end: str = "") -> Iterator[None]:
    """Name the place of a mistake in a text that begins in this line of the file.

    Args:
        path: the file.
        line: the line of the text's first character.
        at_end: what to add if the text ends too early.
    """
    try:
        yield
    except json.JSONDecodeError as error:
        hint = at_end if error.pos >= len(error.doc.rstrip()) else ""
        raise UserError(
            f"{path}:{line + error.lineno - 1}: not valid JSON at column {error.colno}: "
            f"{error.msg}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # too many digits or nested brackets
        raise UserError(f"{path}:{line}: not valid JSON: {error}") from error


def _held(path: Path, line: int, value: Any, note: Note) -> Rows:
    """Yield the rows of a file's only value: an array, an object that holds rows, or one row."""
    if isinstance(value, list):
        yield from _numbered(f"{path}, row", value)
    elif not isinstance(value, dict):
        yield f"{path}:{line}", value
    elif key := _key_of_rows(path, value):
        note(f"its rows are those under the key '{key}'")
        yield from _numbered(f"{path}, '{key}', row", value[key])
    elif columns := _columns(path, value):
        note("it holds the values of each column together (column-oriented JSON)")
        rows = zip(*columns.values(), strict=True)
        yield from _numbered(f"{path}, row", (dict(zip(columns, row, strict=True)) for row in rows))
    else:
        yield f"{path}:{line}", value


def _numbered(place: str, rows: Iterable[Any]) -> Rows:
    for number, row in enumerate(rows, 1):
        yield f"{place} {number}", row


def _key_of_rows(path: Path, value: dict[str, Any]) -> str | None:
    """Return the key of an object that holds a list of rows, such as `data`.

    Lists of equal length are columns, even if some of them hold objects.

    Raises:
        UserError: several keys hold rows.
    """
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    keys = [key for key, items in lists.items() if items and all(map(_is_dict, items))]
    equally_long = len({len(items) for items in lists.values()}) == 1
    if len(keys) < len(lists) == len(value) and equally_long:
        return None
    if len(keys) > 1:
        raise UserError(
            f"{path}: there are rows under several keys: {shortened(keys)}; save the rows of each "
            "key in a file of that name"
        )
    return keys[0] if keys else None


def _columns(path: Path, value: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Return the columns of an object: lists, or as pandas writes them, values by row number.

    Raises:
        UserError: the columns are lists of different lengths.
    """
    columns = value
    if value and all(map(_is_dict, value.values())):
        keys = {tuple(column) for column in value.values()}
        if len(keys) == 1 and all(key.isdigit() for key in keys.pop()):
            columns = {name: list(column.values()) for name, column in value.items()}
    if not columns or not all(isinstance(column, list) for column in columns.values()):
        return None
    lengths = {name: len(column) for name, column in columns.items()}
    shortest, longest = (
        min(lengths, key=lambda n: lengths[n]),
        max(lengths, key=lambda n: lengths[n]),
    )
    if lengths[shortest] < lengths[longest]:
        raise UserError(
            f"{path}: the columns have different lengths: '{shortest}' has {lengths[shortest]} "
            f"values, '{longest}' has {lengths[longest]}"
        )
    return columns


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)
