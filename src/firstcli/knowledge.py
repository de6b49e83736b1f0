"""The knowledge store: a teacher's top-k log-probabilities in Parquet shards, keyed by sample id.

The only file that knows the format. One row a sample; its lists run over the supervised positions,
and `token_ids` and `log_probs` hold k entries a position, most likely first. `log_tail` is the log
of the probability outside the k tokens, computed as a logsumexp over the others, so that a tail of
1e-9 is not lost to 1 - P.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from firstcli.encoding import Encoded
from firstcli.errors import UserError

VERSION = 1
SHARD_ROWS = 1024  # a killed extraction repeats at most one shard
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tokens", pa.binary(16)),  # digest of the sample's token ids and first supervised position
        ("token_ids", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("log_tail", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class TopK:
    """What the teacher knows about one sample, at its N supervised positions."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    log_probs: npt.NDArray[np.float32]  # (N, k)
    log_tail: npt.NDArray[np.float32]  # (N,)


def bytes_per_position(top_k: int) -> int:
    """Estimate the bytes that one supervised position takes on disk."""
    return 8 * top_k + 4


def sample_digest(row: Encoded) -> bytes:
    """Digest what a sample's knowledge belongs to: its tokens and where supervision begins."""
    digest = hashlib.blake2b(row.input_ids.tobytes(), digest_size=16)
    digest.update(row.start.to_bytes(4, "little"))
    return digest.digest()


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def write_shard(
    path: Path, rows: Sequence[Encoded], knowledge: Sequence[TopK], facts: Mapping[str, object]
) -> None:
    """Write one shard; it appears under its name complete or not at all."""
    table = pa.table(
        {
            "id": [row.id for row in rows],
            "tokens": [sample_digest(row) for row in rows],
            "token_ids": [one.token_ids.ravel() for one in knowledge],
            "log_probs": [one.log_probs.ravel() for one in knowledge],
            "log_tail": [one.log_tail for one in knowledge],
        },
        schema=_SCHEMA,
    )
    about = {"version": VERSION, "rows": len(rows), **facts}
    table = table.replace_schema_metadata({"firstcli": json.dumps(about, sort_keys=True)})
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def shard_facts(path: Path) -> dict[str, object] | None:
    """Return what a finished shard says of itself, or None if it is absent or unreadable."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return dict(json.loads(metadata[b"firstcli"]))
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None


class Knowledge:
    """All knowledge of one split, in memory, looked up by sample id."""

    def __init__(self, folder: Path) -> None:
        """Read every shard of a finished folder.

        Raises:
            UserError: a shard is unreadable or of a newer format.
        """
        self.folder = folder
        paths = sorted(folder.glob("shard-*.parquet"))
        tables = []
        self.top_k = 0
        for path in paths:
            facts = shard_facts(path)
            if facts is None:
                raise UserError(f"{path}: no readable knowledge shard; run `first extract --force`")
            if int(str(facts["version"])) > VERSION:
                raise UserError(f"{path}: written by a newer firstcli (format {facts['version']})")
            self.top_k = int(str(facts["top_k"]))
            tables.append(pq.read_table(path, page_checksum_verification=True))
        table = pa.concat_tables(tables).combine_chunks() if tables else _SCHEMA.empty_table()
        self._row_of = {id: row for row, id in enumerate(table.column("id").to_pylist())}
        self._tokens = table.column("tokens").to_pylist()
        self._offsets = _offsets(table.column("log_tail"))
        self._token_ids = _flat(table.column("token_ids"))
        self._log_probs = _flat(table.column("log_probs"))
        self._log_tail = _flat(table.column("log_tail"))

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def positions(self) -> int:
        return len(self._log_tail)

    def of(self, sample: Encoded) -> TopK:
        """Return a sample's knowledge.

        Raises:
            UserError: there is none, or it belongs to other tokens than the sample now has.
        """
        row = self._row_of.get(sample.id)
        if row is None:
            raise UserError(f"{self.folder}: no knowledge of sample '{sample.id}'")
        if self._tokens[row] != sample_digest(sample):
            raise UserError(
                f"{self.folder}: the knowledge of sample '{sample.id}' belongs to other tokens; "
                "the tokenizer or the prompt has changed since; run `first extract --force`"
            )
        start, end = self._offsets[row], self._offsets[row + 1]
        shape = (end - start, self.top_k)
        entries = slice(start * self.top_k, end * self.top_k)
        return TopK(
            self._token_ids[entries].reshape(shape),
            self._log_probs[entries].reshape(shape),
            self._log_tail[start:end],
        )

    def all_of(self, samples: Sequence[Encoded]) -> Iterator[TopK]:
        return map(self.of, samples)


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    chunks = [chunk.flatten().to_numpy() for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0)


def _offsets(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lengths = [chunk.value_lengths().to_numpy() for chunk in column.chunks]
    return np.concatenate([[0], *lengths]).cumsum() if lengths else np.zeros(1, np.int64)
