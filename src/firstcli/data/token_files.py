"""Encoded samples in a file, so that the next command need not encode them again.

A file is a cache: it belongs to one tokenizer and one set of samples, which its key names. It is a
SHA-256, 32 bytes, and the Parquet file to which that belongs. A file that is damaged, or has a
different key, is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.runtime.files import atomic_write

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Row = TypeVar("Row", bound=EncodedSample | EncodedQuestion)

_DIGEST = 32  # bytes
_BATCH = 8192  # rows that are converted at a time
_IDS = pa.list_(pa.int32())
_TYPES = {
    "id": pa.binary(),  # an id may hold half of a character, which is not valid UTF-8
    "input_ids": _IDS,
    "start": pa.int32(),
    "answer_position": pa.int32(),
    "gaps": pa.list_(_IDS),
    "candidate_ids": _IDS,
    "candidates": pa.list_(_IDS),
    "answer": pa.int32(),
    "truth": pa.list_(pa.float64()),
}


def write(path: Path, key: str, rows: Iterable[Row], kind: type[Row], notes: Sequence[str]) -> None:
    """Write encoded rows.

    Args:
        path: the file, in an existing folder.
        key: names everything that the rows depend on.
        rows: the rows, in order.
        kind: the class of the rows.
        notes: texts to keep with the rows, such as warnings.

    Raises:
        OSError: the file cannot be written.
    """
    names = [field.name for field in fields(kind)]
    metadata = {"key": key, "notes": json.dumps(list(notes))}
    schema = pa.schema([(name, _TYPES[name]) for name in names], metadata)
    remaining = iter(rows)

    def write_to(file: BinaryIO) -> None:
        file.write(bytes(_DIGEST))
        hashed = _Hashed(file)
        with pq.ParquetWriter(pa.PythonFile(hashed, "w"), schema, compression="zstd") as writer:
            while batch := list(islice(remaining, _BATCH)):
                columns = [_column(name, [getattr(row, name) for row in batch]) for name in names]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        file.seek(0)
        file.write(hashed.sha256.digest())

    atomic_write(path, write_to)


class _Hashed(io.RawIOBase):
    """Passes on what is written, with its digest; positions count from the first byte."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file, self._size = file, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: ReadableBuffer, /) -> int:
        self.sha256.update(data)
        count = self._file.write(data)
        self._size += count
        return count


def read(path: Path, key: str, kind: type[Row]) -> tuple[Iterator[Row], list[str]] | None:
    """Return the rows and notes of a file; None if it is missing, damaged or has another key.

    Args:
        path: the file.
        key: what it must have been written with.
        kind: the class of the rows.
    """
    try:
        content = pa.memory_map(str(path)).read_buffer()  # the system drops pages that were read
    except (OSError, pa.ArrowInvalid):  # an empty file cannot be mapped
        return None
    digest, body = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(body).digest() != digest.to_pybytes():
        return None
    parquet = pq.ParquetFile(pa.BufferReader(body))
    metadata = parquet.schema_arrow.metadata
    if metadata[b"key"] != key.encode():
        return None
    notes: list[str] = json.loads(metadata[b"notes"])
    return _rows(parquet, kind), notes


def _rows(parquet: Any, kind: type[Row]) -> Iterator[Row]:
    for batch in parquet.iter_batches(_BATCH):
        columns = [
            _arrays(column) if name == "input_ids" else map(_tupled, column.to_pylist())
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        for id, *values in zip(*columns, strict=True):
            yield kind(id.decode("utf-8", "surrogatepass"), *values)


def _column(name: str, values: Sequence[Any]) -> Any:
    if name == "input_ids":  # much faster than from a list of arrays
        borders = np.cumsum([0, *map(len, values)], dtype=np.int32)
        return pa.ListArray.from_arrays(borders, np.concatenate(values))
    if name == "id":
        values = [value.encode("utf-8", "surrogatepass") for value in values]
    return pa.array(values, _TYPES[name])


def _arrays(column: Any) -> Iterator[Any]:
    """Yield each row of a list column as an array, without copying it."""
    values = column.values.to_numpy()
    borders = column.offsets.to_numpy()
    for start, end in pairwise(borders):
        yield np.asarray(values[start:end])


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value
