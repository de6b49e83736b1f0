"""Training samples as tokens, held in a spool; lengths and positions are known without reading it.

A row of the spool is a sample's token ids, 4 bytes each, followed by the sample's id in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import EncodedSample
from firstcli.data.sequences import LazySequence
from firstcli.data.spool import Spool

IntArray = npt.NDArray[np.int64]

_INDEX = np.dtype([(name, "<i4") for name in ("length", "start", "answer_position")])


class EncodedStore(LazySequence[EncodedSample]):
    """Encoded samples of which only an index is kept in memory, 24 bytes per sample."""

    def __init__(self, rows: Iterable[EncodedSample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        self._index = _index_of(self._spooled(rows))
        self.indices = np.arange(len(self._index), dtype=np.int32)

    def _spooled(self, rows: Iterable[EncodedSample]) -> Iterator[EncodedSample]:
        for row in rows:
            self._spool.append(row.input_ids.tobytes() + row.id.encode("utf-8", "surrogatepass"))
            yield row

    def _item(self, number: int) -> EncodedSample:
        length, start, answer_position = self._index[number].item()
        row = self._spool[number]
        return EncodedSample(
            row[4 * length :].decode("utf-8", "surrogatepass"),
            np.frombuffer(row, np.int32, length),
            start,
            None if answer_position < 0 else answer_position,
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> EncodedStore:
        """Return the samples for which `kept` (N,) is true; they keep their `indices`."""
        part = copy(self)
        part.indices = self.indices[kept]
        return part


def _index_of(rows: Iterable[EncodedSample]) -> npt.NDArray[Any]:
    """Return one entry per sample; the answer position of an instruction is -1."""
    if isinstance(rows, EncodedStore):
        return np.asarray(rows._index[rows.indices])
    entries = (
        (len(row.input_ids), row.start, -1 if row.answer_position is None else row.answer_position)
        for row in rows
    )
    return np.fromiter(entries, _INDEX)


def lengths_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of tokens of each sample, (N,)."""
    return np.asarray(_index_of(rows)["length"], np.int64)


def counts_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of supervised positions of each sample, (N,)."""
    index = _index_of(rows)
    return np.asarray(index["length"] - index["start"], np.int64)


def has_answer_position(rows: Sequence[EncodedSample]) -> npt.NDArray[np.bool_]:
    """Return whether each sample's answer position is one of its supervised positions, (N,)."""
    index = _index_of(rows)
    position = index["answer_position"]
    return np.asarray((position >= index["start"]) & (position < index["length"]))
