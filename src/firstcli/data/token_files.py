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
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedQuestion, EncodedSample
from firstcli.runtime.files import atomic_write

Row = TypeVar("Row", bound=EncodedSample | EncodedQuestion)

_BATCH = 8192  # rows that are converted at a time
_IDS = pa.list_(pa.int32())
_TYPES = {
    "id": pa.binary(),  # an id may hold half of a character, which is not valid UTF-8
    "input_ids": _IDS,
    "start": pa.int32(),
    "answer_position": pa.int32(),
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

    content = io.BytesIO()
    with pq.ParquetWriter(content, schema, compression="zstd") as writer:
        while batch := list(islice(remaining, _BATCH)):
            columns = [_column(name, [getattr(row, name) for row in batch]) for name in names]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    body = content.getvalue()
    atomic_write(path, hashlib.sha256(body).digest() + body)


def read(path: Path, key: str, kind: type[Row]) -> tuple[Iterator[Row], list[str]] | None:
    """Return the rows and notes of a file; None if it is missing, damaged or has another key.

    Args:
        path: the file.
        key: what it must have been written with.
        kind: the class of the rows.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    body = memoryview(content)[32:]
    if hashlib.sha256(body).digest() != content[:32]:
        return None
    table = pq.read_table(pa.BufferReader(body))
    metadata = table.schema.metadata
    if metadata[b"key"] != key.encode():
        return None
    notes: list[str] = json.loads(metadata[b"notes"])
    return _rows(table, kind), notes


def _rows(table: Any, kind: type[Row]) -> Iterator[Row]:
    for batch in table.to_batches(_BATCH):
        columns = [
            _arrays(column) if name == "input_ids" else map(_tupled, column.to_pylist())
            for name, column in zip(table.column_names, batch.columns, strict=True)
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
