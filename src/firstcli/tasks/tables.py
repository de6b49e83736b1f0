"""Rows of JSONL, JSON, CSV and Parquet files, each of which knows where it stands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstcli.errors import UserError, did_you_mean, shortened

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


def read_split(path: Path, split: str) -> list[Row]:
    """Read a split from a folder's file of that name, or from the file itself.

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


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file, whose ending says what it is.

    Raises:
        UserError: the file is missing, empty, no UTF-8 or malformed; names the line.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file")
    read = _READERS.get(path.suffix.lower())
    if read is None:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        raise UserError(f"{path}: expected the path of a file that ends in {_ENDINGS}")
    try:
        rows = list(read(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise UserError(f"{path}: there are no rows in this file")
    return rows


def _jsonl(path: Path) -> Iterator[Row]:
    return _json_lines(path, _text(path))


def _json(path: Path) -> Iterator[Row]:
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _json_lines(path, text)  # as many tools write it
    values = _parsed(path, text)
    return (_row(f"{path}, row {number}", value) for number, value in enumerate(values, 1))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines: a JSON string may hold other line ends, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _row(f"{path}:{number}", _parsed(path, line, number))


def _csv(path: Path) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
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
            table = pq.ParquetFile(file).read()
            _header(str(path), table.column_names)
            rows = table.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: a text column is not UTF-8: {error}") from error
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    for number, values in enumerate(rows, 1):
        yield Row(f"{path}, row {number}", values)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
_ENDINGS = ".jsonl, .json, .csv or .parquet"


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff")  # a byte order mark, as Excel writes it
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x} at offset "
            f"{error.start}); save the file as UTF-8"
        ) from error


def _parsed(path: Path, text: str, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise UserError(f"{place}: not valid JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # endless digits or brackets
        raise UserError(f"{path}:{line}: not valid JSON: {error}") from error


def _row(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: found {describe(value)}, expected a row as an object that names its columns"
        )
    return Row(where, value)
