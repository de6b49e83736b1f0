"""Shards of knowledge: Parquet files, a row a supervised position (docs/knowledge.md).

    id          the sample's
    token_ids   the k most likely tokens, most likely first, as bytes: little-endian unsigned
                integers of 2 bytes, or 4 where one does not fit. As lists they would take 7 % more
    step_1 ...  how likely they are, see `codec`; `step_tail` is that of all other tokens

Samples lie in order of their ids, which compresses them. What the file is about, JSON under the key
`firstcli`, has digests of the samples' ids, of their tokens and of the file's own content, so that
neither a flipped bit nor knowledge of another text goes unseen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import codec
from firstcli.knowledge.top_k import TopK

VERSION = 2
_COMPRESSION_LEVEL = 16  # twice as fast as 19 and 0.2 % larger; below 13 it is 5 % larger


REPAIR = "run `first extract --repair`"
# A flipped bit may make of a column one of another length or type, or of none at all.
_DAMAGE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard's content, decoded."""

    facts: dict[str, Any]
    ids: list[str]
    counts: npt.NDArray[np.int64]  # positions of each sample
    known: TopK  # of all samples together


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def write_shard(
    path: Path,
    rows: Sequence[EncodedSample],
    knowledge: Sequence[TopK],
    facts: Mapping[str, object],
) -> None:
    """Write one shard; it appears under its name complete or not at all.

    `facts` must give `top_k`, `precision` and the number of `shards` in the folder.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].id)
    rows, knowledge = [rows[i] for i in order], [knowledge[i] for i in order]
    exact = TopK(
        np.concatenate([one.token_ids for one in knowledge]),
        np.concatenate([one.log_probs for one in knowledge]),
        np.concatenate([one.log_tail for one in knowledge]),
    )
    grid = _grid(facts)
    steps = codec.encode(exact.log_probs, exact.log_tail, grid)
    table = _table(rows, exact.token_ids, steps)
    about = {
        **facts,
        "version": VERSION,
        "samples": len(rows),
        "positions": len(steps),
        "grid": {"levels": grid.levels, "linear": grid.linear, "offset": grid.offset},
        **digests(rows),
        "content": _content(table),
        **codec.errors(exact.log_probs, exact.log_tail, *codec.decode(steps, grid)),
    }
    _write(table, about, path)


def _table(
    rows: Sequence[EncodedSample], token_ids: npt.NDArray[np.int32], steps: codec.Steps
) -> pa.Table:
    top_k = token_ids.shape[1]
    width = 2 if token_ids.max() < 1 << 16 else 4
    packed = np.ascontiguousarray(token_ids, f"<u{width}")
    offsets = np.arange(len(packed) + 1, dtype=np.int32) * (width * top_k)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(packed)]
    names = [*(f"step_{rank}" for rank in range(1, top_k + 1)), "step_tail"]
    columns = {
        "id": pa.array([row.id for row in rows for _ in row.targets], pa.string()),
        "token_ids": pa.Array.from_buffers(pa.binary(), len(packed), buffers),
        **{name: pa.array(column, pa.int16()) for name, column in zip(names, steps.T, strict=True)},
    }
    return pa.table(columns)


def _write(table: pa.Table, about: Mapping[str, object], path: Path) -> None:
    text = json.dumps(about, sort_keys=True)
    metadata = {"firstcli": text, "firstcli.digest": _digest(text.encode())}
    encodings = {"id": "PLAIN", "token_ids": "DELTA_LENGTH_BYTE_ARRAY"}
    encodings |= dict.fromkeys(table.column_names[2:], "BYTE_STREAM_SPLIT")
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        with pq.ParquetWriter(
            file,
            table.schema,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=False,
            column_encoding=encodings,
            write_statistics=False,
            store_schema=False,
            write_page_checksum=True,
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(metadata)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)  # the new name must outlive a power cut, too
    os.fsync(folder)
    os.close(folder)


def shard_facts(path: Path) -> dict[str, Any] | None:
    """Return what a finished shard says of itself, or None if it is absent or unreadable."""
    try:
        return _facts(pq.read_schema(path))
    except _DAMAGE:
        return None


def _facts(schema: pa.Schema) -> dict[str, Any]:
    metadata = schema.metadata or {}
    text = metadata[b"firstcli"]
    if metadata[b"firstcli.digest"].decode() != _digest(text):
        raise ValueError("its metadata was altered")
    return dict(json.loads(text))


def read_shard(path: Path) -> Shard:
    """Read and decode one shard, all its checksums compared.

    Raises:
        UserError: it is missing, damaged or of another format.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = _facts(file.schema_arrow)
            _check_version(path, facts)
            table = file.read()
        if _content(table) != facts["content"]:
            raise ValueError("its content was altered")
    except _DAMAGE as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise UserError(f"{path}: this shard of knowledge {reason}; {REPAIR}") from error
    token_ids, steps = _arrays(table)
    ids, counts = _samples(table)
    return Shard(facts, ids, counts, TopK(token_ids, *codec.decode(steps, _grid(facts))))


def is_sound(path: Path) -> bool:
    """Say whether a shard can be read and all its checksums fit."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def _check_version(path: Path, facts: Mapping[str, Any]) -> None:
    if facts["version"] > VERSION:
        raise UserError(
            f"{path}: written by a newer firstcli (format {facts['version']}, this one knows "
            f"{VERSION}); upgrade firstcli, or run `first extract --force`"
        )
    if facts["version"] < VERSION:
        raise UserError(
            f"{path}: written by an older firstcli (format {facts['version']}); run "
            "`first extract --force`"
        )


def _grid(facts: Mapping[str, Any]) -> codec.Grid:
    return codec.grid_of(facts["precision"], facts["top_k"])


def _arrays(table: pa.Table) -> tuple[npt.NDArray[np.int32], codec.Steps]:
    """Return token ids (N, k) and steps (N, k + 1)."""
    steps = np.stack([table.column(name).to_numpy() for name in table.column_names[2:]], axis=1)
    positions, top_k = len(steps), steps.shape[1] - 1
    packed = b"".join(table.column("token_ids").to_pylist())
    width = len(packed) // (positions * top_k)
    token_ids = np.frombuffer(packed, f"<u{width}").reshape(positions, top_k)
    return token_ids.astype(np.int32), steps


def _samples(table: pa.Table) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the samples' ids and how many positions each has."""
    runs = pc.run_end_encode(table.column("id").combine_chunks())
    return runs.values.to_pylist(), np.diff(runs.run_ends.to_numpy(), prepend=0).astype(np.int64)


# Digests.


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sample_digest(row: EncodedSample) -> bytes:
    """Digest what a sample's knowledge belongs to: its tokens and where supervision begins."""
    digest = hashlib.blake2b(row.input_ids.astype("<i4").tobytes(), digest_size=16)
    digest.update(row.start.to_bytes(4, "little"))
    return digest.digest()


def digests(rows: Sequence[EncodedSample]) -> dict[str, str]:
    """Digest the ids and the tokens of a shard's samples, apart, in order of the ids."""
    ordered = sorted(rows, key=lambda row: row.id)
    return {
        "sample_ids": _digest(*(json.dumps(row.id).encode() for row in ordered)),
        "sample_tokens": tokens_digest(b"".join(map(sample_digest, ordered))),
    }


def tokens_digest(tokens: bytes) -> str:
    """Digest the sample digests of a shard, in order of the ids."""
    return _digest(tokens)


def _content(table: pa.Table) -> str:
    token_ids, steps = _arrays(table)
    ids, counts = _samples(table)
    return _digest(
        json.dumps(ids).encode(),
        counts.astype("<i8").tobytes(),
        token_ids.astype("<i4").tobytes(),
        steps.astype("<i2").tobytes(),
    )
