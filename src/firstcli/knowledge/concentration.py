"""Concentrated knowledge (paper, Figure 2): how much probability a teacher's first tokens hold.

Measured on a sample of the training rows, with many more tokens than the store keeps, and with the
bytes that a position takes on disk for each k that one could have kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import shard_path, write_shard
from firstcli.knowledge.top_k import TopK
from firstcli.runtime.files import write_text

NAME = "concentration.json"
RANKS = 100  # as in the paper's figure
SAMPLES = 512  # a few thousand positions: the mean mass scatters by a thousandth
SIZES = (1, 2, 3, 5, 10, 20, 50, 100)


def drawn(rows: Sequence[EncodedSample], total: int) -> list[EncodedSample]:
    """Draw a shard's part of the sample: rows at even distances, of all lengths."""
    count = max(1, round(SAMPLES * len(rows) / max(total, 1)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[int(index)] for index in chosen]


def measured(
    rows: Sequence[EncodedSample], found: Sequence[TopK], precision: Precision, top_k: int
) -> dict[str, Any]:
    """Return mass over ranks and bytes over k.

    Args:
        rows: the sample.
        found: each one's most likely tokens, (positions, R), R = `RANKS` or the whole vocabulary.
        precision: of the store.
        top_k: what the store keeps, to weigh besides `SIZES`.
    """
    masses = np.cumsum(np.exp(np.concatenate([one.log_probs for one in found]), dtype=float), 1)
    masses = np.minimum(masses, 1.0)  # float32 sums to 1 + 1e-7
    width = masses.shape[1]
    low, p05, p95, high = np.quantile(masses, (0.0, 0.05, 0.95, 1.0), axis=0)
    sizes = sorted({k for k in (*SIZES, top_k) if k <= width})
    return {
        "samples": len(rows),
        "positions": len(masses),
        "precision": precision,
        "ranks": list(range(1, width + 1)),
        "mean": masses.mean(axis=0).tolist(),
        "low": low.tolist(),
        "p05": p05.tolist(),
        "p95": p95.tolist(),
        "high": high.tolist(),
        "bytes": {str(k): _bytes(rows, [one.first(k) for one in found], precision) for k in sizes},
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the file, whole or not at all."""
    write_text(path, json.dumps(content) + "\n")


def _bytes(rows: Sequence[EncodedSample], found: Sequence[TopK], precision: Precision) -> float:
    """Write a shard as the store would, and weigh its columns.

    What a shard says of itself is left out: in shards of full size it weighs nothing.
    """
    facts = {"top_k": found[0].log_probs.shape[1], "precision": precision, "shards": 1}
    with tempfile.TemporaryDirectory() as folder:
        path = shard_path(Path(folder), 0)
        write_shard(path, rows, found, facts)
        group = pq.read_metadata(path).row_group(0)
        weights = [group.column(i).total_compressed_size for i in range(group.num_columns)]
    return float(sum(weights) / sum(len(one.log_tail) for one in found))
