"""Knowledge shards: Parquet files with one row per supervised position (docs/knowledge.md).

    id          the sample's id
    token_ids   the k most likely tokens, most likely first, as bytes: little-endian unsigned
                integers of 2 bytes, or of 4 if a token id needs them. Lists would take 7 % more
    step_1 ...  their probabilities, see `codec`; `step_tail` is the probability of all other
                tokens. With random draws, they are counts, see `draws`

Samples are sorted by id, which compresses better. The metadata, JSON under the key `firstcli`,
contains digests of the samples' ids, of their tokens and of the file's content, so that neither a
flipped bit nor knowledge of a different text goes unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import codec, draws
from firstcli.knowledge.top_k import TopK
from firstcli.runtime.files import atomic_write

Counts = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.int32]

VERSION = 2
_COMPRESSION_LEVEL = 16  # twice as fast as 19 and 0.2 % larger; below 13 it is 5 % larger

REPAIR = "run `first extract --repair`"
# A flipped bit can change a column's length or type, or remove the column.
_DAMAGE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class StoreFormat:
    """What all shards of one extraction have in common; None if a shard does not state it."""

    top_k: int
    precision: codec.Precision
    split: str | None = None  # train, validation, out-of-fold or unlabelled
    shards: int | None = None  # the number of shards that belong together
    teacher: str | None = None  # fingerprint of the weights
    tokenizer: str | None = None  # fingerprint of the vocabulary
    over: str | None = None  # "candidates": `token_ids` are their indices; None: tokens
    draws: int | None = None  # N random draws instead of the most likely tokens

    def stated(self) -> dict[str, Any]:
        """Return the values that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> StoreFormat:
        """Return the format that a shard's metadata state."""
        return cls(**{name: facts[name] for name in cls.__dataclass_fields__ if name in facts})

    def mismatch(self, expected: StoreFormat) -> str | None:
        """Return in words the first difference from the values that `expected` states."""
        for name, value in expected.stated().items():
            if (own := getattr(self, name)) != value:
                if name in ("teacher", "tokenizer"):
                    return f"made with a different {name}"
                return f"made with {name} = {own}, not {value}"
        return None

    @property
    def grid(self) -> codec.Grid:
        return codec.grid_of(self.precision, self.top_k)

    def encode(self, known: TopK) -> codec.Steps:
        """Return the steps to store, (N, k + 1)."""
        if self.draws is not None:
            return draws.encode(known, self.draws)
        return codec.encode(known.log_probs, known.log_tail, self.grid)

    def decode(self, steps: codec.Steps) -> tuple[codec.Log, codec.Log]:
        """Return log-probabilities (N, k) and log tails (N,) of steps (N, k + 1)."""
        if self.draws is not None:
            return draws.decode(steps, self.draws)
        return codec.decode(steps, self.grid)


@dataclass(frozen=True, slots=True)
class Shard:
    """The decoded content of a shard."""

    facts: dict[str, Any]  # the metadata
    ids: list[str]
    counts: Counts  # (samples,) positions of each sample
    known: TopK  # of all samples, concatenated


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def write_shard(
    path: Path,
    rows: Sequence[EncodedSample],
    knowledge: Sequence[TopK],
    format: StoreFormat,
    teacher_top_1: Mapping[str, float] | None = None,
) -> None:
    """Write one shard atomically.

    Args:
        path: the file.
        rows: the samples.
        knowledge: the top k of each sample, in the same order.
        format: what the shard states; `shards` must be the number of shards in the folder.
        teacher_top_1: sums over positions of the teacher's most likely token: how many were
            `judged`, their `confidence`, and if the samples have labels, how many were `correct`.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i].id)
    rows, knowledge = [rows[i] for i in order], [knowledge[i] for i in order]
    exact = TopK.concatenated(knowledge)
    steps = format.encode(exact)
    table = _table(rows, exact.token_ids, steps)
    facts = {
        **format.stated(),
        **({} if teacher_top_1 is None else {"teacher_top_1": teacher_top_1}),
        "version": VERSION,
        "samples": len(rows),
        "positions": len(steps),
        **_values_of_steps(exact, format),
        **digests(rows),
        "content": _content(*_columns(table)),
        **codec.errors(exact.log_probs, exact.log_tail, *format.decode(steps)),
    }
    atomic_write(path, lambda file: _write(table, facts, file))


def _values_of_steps(exact: TopK, format: StoreFormat) -> dict[str, Any]:
    """Return what steps mean, and with draws, how many tokens were drawn per position."""
    if format.draws is not None:
        return {"mean_distinct": float((exact.log_probs > -np.inf).sum(axis=1).mean())}
    grid = format.grid
    return {"grid": {"levels": grid.levels, "linear": grid.linear, "offset": grid.offset}}


def _table(rows: Sequence[EncodedSample], token_ids: TokenIds, steps: codec.Steps) -> pa.Table:
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


def _write(table: pa.Table, facts: Mapping[str, object], file: BinaryIO) -> None:
    text = json.dumps(facts, sort_keys=True)
    encodings = {"id": "PLAIN", "token_ids": "DELTA_LENGTH_BYTE_ARRAY"}
    encodings |= dict.fromkeys(table.column_names[2:], "BYTE_STREAM_SPLIT")
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
        writer.add_key_value_metadata({"firstcli": text, "firstcli.digest": digest(text.encode())})


def shard_facts(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a finished shard, or None if it is missing or unreadable."""
    try:
        return _facts(pq.read_schema(path))
    except _DAMAGE:
        return None


def _facts(schema: pa.Schema) -> dict[str, Any]:
    metadata = schema.metadata or {}
    text = metadata[b"firstcli"]
    if metadata[b"firstcli.digest"].decode() != digest(text):
        raise ValueError("its metadata were altered")
    return dict(json.loads(text))


def read_shard(path: Path) -> Shard:
    """Read and decode one shard, and verify all its checksums.

    Raises:
        UserError: the shard is missing, damaged or of a different format version.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = _facts(file.schema_arrow)
            if (version := facts["version"]) != VERSION:
                newer = version > VERSION
                age, remedy = ("newer", "upgrade firstcli, or ") if newer else ("older", "")
                raise UserError(
                    f"{path}: written by a {age} firstcli (format {version}, this one reads "
                    f"{VERSION}); {remedy}run `first extract --force`"
                )
            ids, counts, token_ids, steps = _columns(file.read())
        if _content(ids, counts, token_ids, steps) != facts["content"]:
            raise ValueError("its content was altered")
    except _DAMAGE as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise UserError(f"{path}: this shard of knowledge {reason}; {REPAIR}") from error
    known = TopK(token_ids, *StoreFormat.of(facts).decode(steps))
    return Shard(facts, ids, counts, known)


def is_sound(path: Path) -> bool:
    """Return whether a shard can be read and all its checksums match."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def _columns(table: pa.Table) -> tuple[list[str], Counts, TokenIds, codec.Steps]:
    """Return ids and numbers of positions of S samples, token ids (N, k), and steps (N, k + 1)."""
    runs = pc.run_end_encode(table.column("id").combine_chunks())
    counts = np.diff(runs.run_ends.to_numpy(), prepend=0).astype(np.int64)
    steps = np.stack([table.column(name).to_numpy() for name in table.column_names[2:]], axis=1)
    positions, top_k = len(steps), steps.shape[1] - 1
    packed = b"".join(table.column("token_ids").to_pylist())
    width = len(packed) // (positions * top_k)
    token_ids = np.frombuffer(packed, f"<u{width}").reshape(positions, top_k)
    return runs.values.to_pylist(), counts, token_ids.astype(np.int32), steps


def digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def sample_digest(row: EncodedSample) -> bytes:
    """Digest what a sample's knowledge depends on: its tokens and which of them are supervised."""
    borders = [row.start, *chain.from_iterable(row.gaps)]
    content = row.input_ids.astype("<i4").tobytes() + np.array(borders, "<i4").tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def digests(rows: Sequence[EncodedSample]) -> dict[str, str]:
    """Digest separately the ids and the tokens of a shard's samples, in order of the ids."""
    ordered = sorted(rows, key=lambda row: row.id)
    return {
        "sample_ids": digest(*(json.dumps(row.id).encode() for row in ordered)),
        "sample_tokens": digest(b"".join(map(sample_digest, ordered))),
    }


def _content(ids: list[str], counts: Counts, token_ids: TokenIds, steps: codec.Steps) -> str:
    return digest(
        json.dumps(ids).encode(),
        counts.astype("<i8").tobytes(),
        token_ids.astype("<i4").tobytes(),
        steps.astype("<i2").tobytes(),
    )
