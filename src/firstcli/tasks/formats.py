"""Readers of JSONL, JSON, CSV, Parquet and Arrow files, compressed or not.

A reader yields each row after its place in the file. JSON and CSV are parsed here, line by line,
because messages name the line of a mistake.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from firstcli.errors import UserError, shortened
from firstcli.tasks import json_rows
from firstcli.tasks.json_rows import Note, Rows

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
LONGEST_CELL = 2**31 - 1  # the csv module's default is 131,072 characters
SNIFFED_LINES = 100
GIT_LFS = b"version https://git-lfs"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file, and how to read it according to its name."""

    path: Path
    ending: str
    """The ending that determines the format; empty for an archive whose member determines it."""
    compression: str | None

    @property
    def stem(self) -> str:
        """The file's name without the endings of its format and its compression."""
        stem = self.path.stem if self.compression else self.path.name
        return stem[: len(stem) - len(self.ending)]

    @contextmanager
    def binary(self) -> Iterator[IO[bytes]]:
        """Open the decompressed content.

        Raises:
            UserError: an archive does not hold exactly one file, or cannot be decompressed.
            OSError: the file cannot be read.
        """
        if self.compression == "zip":
            with _unzipped(self.path) as (_, content):
                yield content
        elif self.compression:
            import pyarrow as pa

            with self.path.open("rb") as packed:
                yield pa.input_stream(packed, compression=self.compression)
        else:
            with self.path.open("rb") as content:
                yield content

    @contextmanager
    def text(self, newline: str) -> Iterator[IO[str]]:
        """Open the content as UTF-8, with or without the byte order mark that Excel writes."""
        with (
            self.binary() as content,
            io.TextIOWrapper(content, encoding="utf-8-sig", newline=newline) as text,
        ):
            yield text

    def rows(self, note: Note) -> Rows:
        """Read the file row by row.

        Raises:
            UserError: the file is malformed or not UTF-8; names the line.
            OSError: the file cannot be read.
        """
        ending = self.ending
        if not ending:
            with _unzipped(self.path) as (name, _):
                ending = Path(name).suffix.lower()
            if ending not in _READERS:
                raise UserError(
                    f"{self.path}: found '{name}' in this archive, expected a file that ends in "
                    f"{ENDINGS}"
                )
        with self.path.open("rb") as content:
            if content.read(len(GIT_LFS)) == GIT_LFS:
                raise UserError(
                    f"{self.path}: this is a pointer of Git LFS, not the data; run 'git lfs pull' "
                    "in its folder, or download the file"
                )
        try:
            yield from _READERS[ending](self, note)
        except UnicodeDecodeError as error:
            raise self._not_utf8() from error

    def _not_utf8(self) -> UserError:
        """Locate the invalid byte; the decoder, which reads in chunks, does not know its line."""
        offset = 0
        with self.binary() as content:
            for number, line in enumerate(io.BufferedReader(content), 1):  # type: ignore[type-var]
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    return UserError(
                        f"{self.path}:{number}: not UTF-8 text (byte 0x{line[error.start]:02x} at "
                        f"offset {offset + error.start}); save the file as UTF-8"
                    )
                offset += len(line)
        return UserError(f"{self.path}: not UTF-8 text, or it changed while it was read")


def data_file(path: Path) -> DataFile | None:
    """Return how to read a file, or None if its name has no known ending."""
    ending = path.suffix.lower()
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = Path(path.stem).suffix.lower()
        if ending not in _READERS and compression == "zip":
            return DataFile(path, "", compression)
    return DataFile(path, ending, compression) if ending in _READERS else None


@contextmanager
def _unzipped(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Open the only file of an archive: its name and content."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                name
                for name in archive.namelist()
                if not name.endswith("/") and not name.startswith("__MACOSX/")
            ]
            if len(names) != 1:
                raise UserError(
                    f"{path}: found {len(names)} files in this archive ({shortened(names, 3)}), "
                    "expected one; unpack it and give the path of the folder"
                )
            with archive.open(names[0]) as content:
                yield names[0], content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: this archive cannot be unpacked: {error}") from error


def _jsonl(file: DataFile, note: Note) -> Rows:
    # Only \n ends a line: a JSON string may contain other line separators, such as U+2028.
    with file.text("\n") as text:
        yield from json_rows.of_lines(file.path, text, note)


def _json(file: DataFile, note: Note) -> Rows:
    with file.text("\n") as text:
        yield from json_rows.of_document(file.path, text, note)


def _csv(file: DataFile, note: Note) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    with file.text("") as text:
        sample = list(islice(text, SNIFFED_LINES))
        usual = "\t" if file.ending == ".tsv" else ","
        stated = _stated_separator(sample)
        separator = stated or _sniffed_separator(file.path, sample, usual)
        if stated or separator != usual:
            note(f"its cells are separated by {SEPARATORS.get(separator, repr(separator))}")
        skipped = 1 if stated else 0
        lines = csv.reader(chain(sample[skipped:], text), delimiter=separator, strict=True)
        yield from _records(file.path, lines, skipped)


def _records(path: Path, lines: Any, skipped: int) -> Rows:
    """Yield the records below the header, each as a mapping; `skipped` lines precede `lines`."""
    header: list[str] = []
    start = skipped + 1
    try:
        for cells in lines:
            where = f"{path}:{start}"
            start = skipped + lines.line_num + 1  # a quoted cell may span several lines
            if not cells:
                continue
            if not header:
                header = _header(where, cells)
            elif len(cells) != len(header):
                raise UserError(
                    f"{where}: found {len(cells)} cells, but the header names {len(header)} "
                    "columns; cells that contain separators or line breaks need quotes"
                )
            else:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV: {error}") from error


def _stated_separator(lines: list[str]) -> str | None:
    """Return the separator that Excel's first line `sep=;` states."""
    stated = re.fullmatch(r'"?sep=([^"\r\n])"?\s*', lines[0]) if lines else None
    return stated[1] if stated else None


def _sniffed_separator(path: Path, lines: list[str], usual: str) -> str:
    """Return the separator that cuts the header and the records into equally many cells.

    If none does, return the one that gives the header the most cells: the mistake is then located.
    `csv.Sniffer` is not used because it counts characters, also those within texts.

    Raises:
        UserError: two separators are possible.
    """
    widths: dict[str, int] = {}
    fitting: list[str] = []
    for separator in sorted(SEPARATORS, key=lambda other: other != usual):
        records = [len(cells) for cells in csv.reader(lines, delimiter=separator) if cells]
        if len(lines) == SNIFFED_LINES and len(records) > 1:
            records.pop()  # the sample may end within a cell
        widths[separator] = records[0] if records else 0
        if widths[separator] > 1 and len(set(records)) == 1:
            fitting.append(separator)
    if len(fitting) > 1:
        either = " or ".join(SEPARATORS[separator] for separator in fitting)
        raise UserError(
            f"{path}: {either} can separate the cells; state which one in a new first line, such "
            f"as sep={fitting[0]}"
        )
    return fitting[0] if fitting else max(widths, key=lambda separator: widths[separator])


def _header(where: str, names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{where}: the header names {shortened(repeated)} more than once")
    return names


def _parquet(file: DataFile, note: Note) -> Rows:
    import pyarrow.parquet as pq

    with file.binary() as content, _arrow_errors_reported(file.path, "Parquet"):
        seekable = io.BytesIO(content.read()) if file.compression else content
        # Without a buffer, the whole column of a row group would be read at once.
        parquet = pq.ParquetFile(seekable, buffer_size=1 << 20)
        _header(str(file.path), parquet.schema_arrow.names)
        yield from _of_batches(file.path, parquet.iter_batches(batch_size=1024))


def _arrow(file: DataFile, note: Note) -> Rows:
    """Read an Arrow stream, as `datasets` saves it, or an Arrow file (Feather, version 2)."""
    import pyarrow as pa

    with file.binary() as content, _arrow_errors_reported(file.path, "Arrow"):
        seekable = io.BytesIO(content.read()) if file.compression else content
        magic = seekable.read(6)
        seekable.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(seekable)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            reader = batches = pa.ipc.open_stream(seekable)
        _header(str(file.path), reader.schema.names)
        yield from _of_batches(file.path, batches)


def _of_batches(path: Path, batches: Any) -> Rows:
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for number, values in enumerate(rows, 1):
        yield f"{path}, row {number}", values


@contextmanager
def _arrow_errors_reported(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a text column is not UTF-8: {error}") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable {kind} file: {error}") from error


_READERS: dict[str, Callable[[DataFile, Note], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
ENDINGS = ".jsonl, .json, .csv, .tsv, .parquet or .arrow"
