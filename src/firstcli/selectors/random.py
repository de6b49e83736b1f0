"""Selector `random`: every question is equally likely; the baseline of all others."""

from __future__ import annotations

from hashlib import blake2b
from typing import ClassVar

import numpy as np

from firstcli.api import FloatArray, Pool, PluginOptions, Selector


class RandomSelection(Selector[PluginOptions]):
    """Chooses at random. A question's score depends only on the seed and its id."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.array([_uniform(f"random {seed} {id}") for id in pool.ids], np.float64)


def _uniform(text: str) -> float:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2**48
