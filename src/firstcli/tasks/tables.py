"""Rows of JSONL, JSON, CSV and Parquet files; each row knows its place in the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from firstcli.errors import UserError, did_you_mean, shortened

SPLITS = ("train", "validation", "test")
_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of data."""

    where: str
    """Its place, for messages: `data.jsonl:3`, or `data.parquet, row 3` if a file has no lines."""
    values: Mapping[str, Any]

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
        """Return the row's id: from `column`, or by default from the column `id` if it exists."""
        if column is None:
            return self.text("id").strip() or None if "id" in self.values else None
        return self.filled(column).strip()


def describe(value: object) -> str:
    """Write a value for a message, in the notation of the data."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    kinds = {bool: "", type(None): "", list: "the list ", dict: "the object "}
    return kinds.get(type(value), "") + shown


def splits_at(path: Path) -> tuple[str, ...]:
    """Return the splits of a folder, one per file; a single file serves as any usual split."""
    files = _split_files(path)
    return (*(split for split in SPLITS if split in files), *sorted(files.keys() - {*SPLITS}))


def split_file(path: Path, split: str) -> Path:
    """Return the file of a split: the folder's file of that name, or `path` itself.

    Raises:
        UserError: there is no such file or split.
    """
    files = _split_files(path)
    if split not in files:
        raise UserError(
            f"{path}: no file for the split '{split}'{did_you_mean(split, files)}; "
            f"there is {shortened(list(files))}"
        )
    return files[split]


def _split_files(folder: Path) -> dict[str, Path]:
    """Map each split to its file; the file name without its extension names the split."""
    if not folder.is_dir():
        return dict.fromkeys(SPLITS, folder)
    files: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    for path in paths:
        if path.suffix.lower() not in _READERS or path.name.startswith("."):
            continue
        split = _ALIASES.get(path.stem, path.stem)
        if split in files:
            raise UserError(
                f"{folder}: both '{files[split].name}' and '{path.name}' can be the split "
                f"'{split}'; keep one, or give the path of a file instead of a folder"
            )
        files[split] = path
    if not files:
        raise UserError(f"{folder}: there is no file that ends in {_ENDINGS} in this folder")
    return files


def read_rows(path: Path) -> Iterator[TableRow]:
    """Read a file row by row; its extension determines the format.

    Raises:
        UserError: the file is missing, empty, not UTF-8 or malformed; names the line. It is
            raised when the iteration reaches the mistake.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, expected a file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder")
        raise UserError(f"{path}: expected the path of a file that ends in {_ENDINGS}")
    empty = True
    try:
        for where, values in reader(path):  # a row after its place in the file
            if not isinstance(values, dict):
                raise UserError(
                    f"{where}: found {describe(values)}, expected a row as an object that names "
                    "its columns"
                )
            empty = False
            yield TableRow(where, values)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    if empty:
        raise UserError(f"{path}: there are no rows in this file")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    # Only \n ends a line: a JSON string may contain other line separators, such as U+2028.
    with _open_text(path, newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}:{number}", _parsed(path, line.removesuffix("\n"), number)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    with _open_text(path, newline="\n") as file:
        while (character := file.read(1)) and character in " \t\r\n":
            pass
        if character != "[":
            yield from _jsonl(path)  # many tools write JSON lines to a .json file
            return
        file.seek(0)
        try:
            values = _parsed(path, file.read())
        except MemoryError:
            raise UserError(
                f"{path}: this JSON array does not fit into memory; save the data as .jsonl, which "
                "is read line by line"
            ) from None
    for number, value in enumerate(values, 1):
        yield f"{path}, row {number}", value


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with _open_text(path, newline="") as file:
        lines = csv.reader(file, strict=True)
        header: list[str] = []
        start = 1
        try:
            for cells in lines:
                where = f"{path}:{start}"
                start = lines.line_num + 1  # a quoted cell may span several lines
                if not cells:
                    continue
                if not header:
                    header = _header(where, cells)
                elif len(cells) != len(header):
                    raise UserError(
                        f"{where}: found {len(cells)} cells, but the header names {len(header)} "
                        "columns; cells that contain commas or line breaks need quotes"
                    )
                else:
                    yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}:{start}: not valid CSV: {error}") from error


def _header(where: str, names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{where}: the header names {shortened(repeated)} more than once")
    return names


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        try:
            # Without a buffer, the whole column of a row group would be read at once.
            parquet = pq.ParquetFile(file, buffer_size=1 << 20)
            _header(str(path), parquet.schema_arrow.names)
            batches = parquet.iter_batches(batch_size=1024)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, values in enumerate(rows, 1):
                yield f"{path}, row {number}", values
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: a text column is not UTF-8: {error}") from error
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a readable Parquet file: {error}") from error


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
_ENDINGS = ".jsonl, .json, .csv or .parquet"


def _open_text(path: Path, newline: str) -> TextIO:
    return path.open(encoding="utf-8-sig", newline=newline)  # Excel writes a byte order mark


def _not_utf8(path: Path) -> UserError:
    """Locate the invalid byte; the decoder, which reads in chunks, does not know its line."""
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
    """Parse JSON that begins in this line of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{line + error.lineno - 1}: not valid JSON at column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # too many digits or nested brackets
        raise UserError(f"{path}:{line}: not valid JSON: {error}") from error
