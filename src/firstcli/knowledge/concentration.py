"""Concentrated knowledge (paper, Figure 2): the probability mass of a teacher's top tokens.

Measured on a subset of the training samples, with many more tokens than the store keeps, together
with the bytes on disk that a position would take for each k.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import StoreFormat, shard_path, write_shard
from firstcli.knowledge.top_k import TopK

FILE_NAME = "concentration.json"
BYTES = 10_700  # of the file, measured with `RANKS` ranks
RANKS = 100  # as in the paper's figure
SAMPLES = 512  # a few thousand positions: the standard error of the mean mass is about 0.001
SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""The values of k for which the size on disk is measured."""


def subset(rows: Sequence[EncodedSample], total: int) -> list[EncodedSample]:
    """Choose a shard's share of `SAMPLES` evenly spaced samples; `total` counts all shards'."""
    count = max(1, round(SAMPLES * len(rows) / max(total, 1)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[int(index)] for index in chosen]


def measure(
    rows: Sequence[EncodedSample], knowledge: Sequence[TopK], precision: Precision, top_k: int
) -> dict[str, Any]:
    """Return the mass of the top 1 to R tokens, and bytes per position for several k.

    Args:
        rows: the subset.
        knowledge: each sample's most likely tokens, (positions, R) with R = `RANKS`, or the size
            of the vocabulary if that is smaller.
        precision: the store's precision.
        top_k: the store's k, which is measured besides `SIZES`.
    """
    log_probs = np.concatenate([known.log_probs for known in knowledge])  # (positions, R)
    masses = np.minimum(np.cumsum(np.exp(log_probs, dtype=float), 1), 1.0)  # may sum to 1 + 1e-7
    width = masses.shape[1]
    quantiles = zip(("low", "p05", "p95", "high"), (0.0, 0.05, 0.95, 1.0), strict=True)
    sizes = sorted({k for k in (*SIZES, top_k) if k <= width})
    return {
        "samples": len(rows),
        "positions": len(masses),
        "precision": precision,
        "ranks": list(range(1, width + 1)),
        "mean": masses.mean(axis=0).tolist(),
        **{name: np.quantile(masses, share, axis=0).tolist() for name, share in quantiles},
        "bytes": {
            str(k): _bytes_per_position(rows, [known.first(k) for known in knowledge], precision)
            for k in sizes
        },
    }


def _bytes_per_position(
    rows: Sequence[EncodedSample], knowledge: Sequence[TopK], precision: Precision
) -> float:
    """Write a shard and measure its columns; metadata are negligible in full-sized shards."""
    format = StoreFormat(knowledge[0].log_probs.shape[1], precision, shards=1)
    with tempfile.TemporaryDirectory() as folder:
        path = shard_path(Path(folder), 0)
        write_shard(path, rows, knowledge, format)
        group = pq.read_metadata(path).row_group(0)
        sizes = [group.column(i).total_compressed_size for i in range(group.num_columns)]
    return float(sum(sizes) / sum(len(known.log_tail) for known in knowledge))
