"""The rows that a student answers: from texts, standard input or a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Literal, TypeVar, get_args

from firstcli.api import TaskUsage
from firstcli.errors import UserError, shortened
from firstcli.tasks.tables import TableRow

Item = TypeVar("Item")
TextFormat = Literal["text", "jsonl", "csv"]
"""How lines of standard input are read: one text per line, one JSON object per line, or CSV."""
FORMATS: tuple[TextFormat, ...] = get_args(TextFormat)


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    remaining = iter(items)
    while window := list(islice(remaining, size)):
        yield window


def rows_of(usage: TaskUsage, texts: Iterable[str | Mapping[str, Any]]) -> Iterator[TableRow]:
    """Yield a row for each text or mapping; messages count them from 1.

    A text that is a JSON object with one of the student's columns is taken as a row.

    Raises:
        UserError: a bare text is given, but the student reads several columns.
    """
    if isinstance(texts, str | Mapping):
        texts = [texts]
    for number, text in enumerate(texts, 1):
        where = f"text {number}"
        if isinstance(text, Mapping):
            yield TableRow(where, text)
        else:
            values = _as_object(usage, text)
            yield TableRow(where, {text_column(usage): text} if values is None else values)


def _as_object(usage: TaskUsage, text: object) -> dict[str, Any] | None:
    """Return the row that a text spells in JSON; None if it is a plain text."""
    values = _object(text)
    outer = {column.partition(".")[0] for column in usage.columns} | {*usage.columns}
    return values if values is not None and not outer.isdisjoint(values) else None


def _object(text: object) -> dict[str, Any] | None:
    """Return the JSON object that a text spells, if it does."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def text_column(usage: TaskUsage) -> str:
    """Return the column to which a bare text belongs.

    Raises:
        UserError: a row needs more than one text.
    """
    if (column := usage.text_column) is None:
        needed = shortened(usage.columns, 10)
        raise UserError(
            f"this student reads the columns {needed}, so a text alone is not enough; give a JSON "
            f"object with them for each row, or a table with --file"
        )
    return column


def rows_of_lines(
    usage: TaskUsage, lines: Iterable[str], stated: TextFormat | None = None
) -> Iterator[TableRow]:
    r"""Yield a row for each line of standard input, or for each record if it is CSV.

    Args:
        usage: how the student is used.
        lines: the lines, with their `\n`.
        stated: how they are read; None decides by the first line: a JSON object, or a CSV header
            with the student's columns; else each line is a text.

    Raises:
        UserError: a line is not what the format says, or the first one is a JSON object without the
            student's columns and no format is stated.
    """
    remaining = iter(lines)
    first = next(remaining, None)
    if first is None:
        return
    every = chain([first.removeprefix("\ufeff")], remaining)
    kind = stated or _format_of(usage, first.removeprefix("\ufeff"))
    if kind == "csv":
        yield from _csv_rows(every)
        return
    column = text_column(usage) if kind == "text" else ""
    for number, line in enumerate(every, 1):
        where = f"line {number}"
        if kind == "text":
            yield TableRow(where, {column: line.rstrip("\r\n")})
        elif line.strip():
            yield TableRow(where, _json_object(where, line))


def _format_of(usage: TaskUsage, first: str) -> TextFormat:
    if _as_object(usage, first) is not None:
        return "jsonl"
    if _object(first) is not None:
        raise UserError(
            f"line 1: a JSON object without {shortened(usage.columns, 10)}, which the student "
            "reads; rename its columns, or state --format text if each line is a text"
        )
    header = next(csv.reader([first]), [])
    needed = [field.columns for field in usage.inputs.values() if field.required != "no"]
    if needed and all(not {*columns}.isdisjoint(header) for columns in needed):
        return "csv"
    return "text"


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not JSON ({error}); with --format text each line is a text"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: found {line.strip()[:40]}, expected a JSON object with columns")
    return values


def _csv_rows(lines: Iterable[str]) -> Iterator[TableRow]:
    reader = csv.reader(lines, strict=True)
    start = 1
    header: Sequence[str] | None = None
    try:
        for cells in reader:
            where, start = f"line {start}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
            elif len(cells) != len(header):
                raise UserError(
                    f"{where}: found {len(cells)} cells, but the header names {len(header)} columns"
                )
            else:
                yield TableRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"line {start}: not valid CSV: {error}") from error


def missing_column(usage: TaskUsage, columns: Iterable[str]) -> str | None:
    """Return a column that every row needs and no row of a table can have, given its columns."""
    outer = {*columns}
    needed = [field.columns for field in usage.inputs.values() if field.required != "no"]
    needed += [usage.choices.columns] if usage.choices else []
    for alternatives in needed:
        if outer.isdisjoint({*alternatives, *(name.partition(".")[0] for name in alternatives)}):
            return alternatives[-1] if len(alternatives) == 1 else " or ".join(alternatives)
    return None
