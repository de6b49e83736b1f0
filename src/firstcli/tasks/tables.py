"""Rows of JSONL, JSON, CSV and Parquet files, each of which knows where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.json_window import Malformed, Window

SPLITS = ("train", "validation", "test")
_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of data."""

    where: str
    """For messages: `data.jsonl:3`, or `data.parquet, row 3` where a file has no lines."""
    values: Mapping[str, Any]

    def mistake(self, complaint: str) -> UserError:
        return UserError(f"{self.where}: {complaint}")

    def value(self, column: str) -> Any:
        """Return the value of a column that the row must have."""
        if column not in self.values:
            names = list(self.values)
            raise self.mistake(
                f"there is no column '{column}'{did_you_mean(column, names)}; "
                f"the row has {shortened(names, 10) or 'none'}"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """Return a column as text, empty for a missing value."""
        value = self.value(column)
        return "" if value is None else self.as_text(value, column)

    def filled(self, column: str) -> str:
        """Return a column as text that is more than blanks."""
        text = self.text(column)
        if not text.strip():
            raise self.mistake(f"column '{column}' is empty")
        return text

    def require_any(self, columns: Sequence[str]) -> None:
        """Refuse a row in which all of these columns are empty."""
        if not any(self.text(column).strip() for column in columns):
            raise self.mistake(f"nothing in {shortened(columns)}")

    def as_text(self, value: object, column: str) -> str:
        """Return text or a whole number as text; anything else can be spelt in several ways."""
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.mistake(
                f"column '{column}': found {describe(value)}, expected text or a whole number"
            )
        text = str(value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise self.mistake(
                    f"column '{column}' holds half of a character (an unpaired surrogate), "
                    "which no text can hold; remove it"
                ) from None
        return text

    def id(self, column: str | None) -> str | None:
        """Return the row's own id: from `column`, or by default from `id` where the data has it."""
        if column is None:
            return self.text("id").strip() or None if "id" in self.values else None
        return self.filled(column).strip()


def describe(value: object) -> str:
    """Say what a value is, the way a user would write it."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    kinds = {bool: "", type(None): "", list: "the list ", dict: "the object "}
    return kinds.get(type(value), "") + shown


def splits_at(path: Path) -> tuple[str, ...]:
    """Name the splits at a path: a folder's files, or the usual three, each of which a file is."""
    if not path.is_dir():
        return SPLITS
    files = _split_files(path)
    return (*(split for split in SPLITS if split in files), *sorted(files.keys() - {*SPLITS}))


def read_split(path: Path, split: str) -> Iterator[Row]:
    """Read a split, row by row, from a folder's file of that name, or from the file itself.

    Raises:
        UserError: no such file, or it cannot be read as rows.
    """
    if not path.is_dir():
        return read_rows(path)
    files = _split_files(path)
    if split not in files:
        raise UserError(
            f"{path}: no file for the split '{split}'{did_you_mean(split, files)}; "
            f"there is {shortened(list(files))}"
        )
    return read_rows(files[split])


def _split_files(folder: Path) -> dict[str, Path]:
    """Map each split to its file: the file's name without its ending, `dev` being validation."""
    files: dict[str, Path] = {}
    try:
        listed = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    for file in listed:
        if file.suffix.lower() not in _READERS or file.name.startswith("."):
            continue
        split = _ALIASES.get(file.stem, file.stem)
        if split in files:
            raise UserError(
                f"{folder}: both '{files[split].name}' and '{file.name}' can be the split "
                f"'{split}'; keep one, or give the path of a file instead of a folder"
            )
        files[split] = file
    if not files:
        raise UserError(f"{folder}: there is no file that ends in {_ENDINGS} in this folder")
    return files


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file row by row; its ending says what it is.

    Raises:
        UserError: the file is missing, empty, no UTF-8 or malformed; names the line. Mistakes
            within the file come when they are reached.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file")
    read = _READERS.get(path.suffix.lower())
    if read is None:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        raise UserError(f"{path}: expected the path of a file that ends in {_ENDINGS}")
    return _rows(path, read)


def _rows(path: Path, read: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    empty = True
    try:
        for row in read(path):
            empty = False
            yield row
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if empty:
        raise UserError(f"{path}: there are no rows in this file")


def _jsonl(path: Path) -> Iterator[Row]:
    # Only \n ends a line: a JSON string may hold other line ends, such as U+2028, as they are.
    with _text(path, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(f"{path}:{number}", _parsed(path, line.removesuffix("\n"), number))


def _json(path: Path) -> Iterator[Row]:
    with _text(path, newline="\n") as file:
        window = Window(file)
        if window.peek() == "[":
            try:
                for number, value in enumerate(window.array(), 1):
                    yield _row(f"{path}, row {number}", value)
            except Malformed as error:
                raise _no_json(path, error.line, error.column, error.message) from error
            except UnicodeDecodeError:
                raise
            except (ValueError, RecursionError) as error:  # endless digits or brackets
                raise UserError(f"{path}:{window.line}: not valid JSON: {error}") from error
            return
    yield from _jsonl(path)  # as many tools write it


def _csv(path: Path) -> Iterator[Row]:
    with _text(path, newline="") as file:
        yield from _csv_lines(path, file)


def _csv_lines(path: Path, file: TextIO) -> Iterator[Row]:
    lines = csv.reader(file, strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in lines:
            where = f"{path}:{start}"
            start = lines.line_num + 1  # a quoted cell may span lines
            if not cells:
                continue
            if not header:
                header = _header(where, cells)
            elif len(cells) != len(header):
                raise UserError(
                    f"{where}: found {len(cells)} cells, but the header names {len(header)} "
                    "columns; cells with commas or line ends need quotes"
                )
            else:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV: {error}") from error


def _header(where: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: the header names {shortened(twice)} more than once")
    return names


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        try:
            # Through a buffer, or the whole column of a row group would be read at once.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            _header(str(path), parquet.schema_arrow.names)
            number = 0
            for batch in parquet.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", values)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: a text column is not UTF-8: {error}") from error
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a readable Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
_ENDINGS = ".jsonl, .json, .csv or .parquet"


def _text(path: Path, newline: str) -> TextIO:
    return path.open(encoding="utf-8-sig", newline=newline)  # Excel writes a byte order mark


def _not_utf8(path: Path) -> UserError:
    """Find the byte that could not be read; while reading in chunks, its place is not known."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return UserError(
                    f"{path}:{number}: not UTF-8 text (byte 0x{line[error.start]:02x} at offset "
                    f"{offset + error.start}); save the file as UTF-8"
                )
            offset += len(line)
    return UserError(f"{path}: not UTF-8 text, or it changed while it was read")


def _parsed(path: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _no_json(path, line + error.lineno - 1, error.colno, error.msg) from error
    except (ValueError, RecursionError) as error:  # endless digits or brackets
        raise UserError(f"{path}:{line}: not valid JSON: {error}") from error


def _no_json(path: Path, line: int, column: int, message: str) -> UserError:
    return UserError(f"{path}:{line}: not valid JSON at column {column}: {message}")


def _row(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: found {describe(value)}, expected a row as an object that names its columns"
        )
    return Row(where, value)
