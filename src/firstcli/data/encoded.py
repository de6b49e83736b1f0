"""Training samples as tokens, held in a spool; lengths and positions are known without reading it.

A row of the spool is a sample's token ids, 4 bytes each, followed by the sample's id in UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import EncodedSample
from firstcli.data.sequences import LazySequence
from firstcli.data.spool import Spool

IntArray = npt.NDArray[np.int64]

_ENTRY = struct.Struct("<iiii")
_INDEX = np.dtype([(name, "<i4") for name in ("number", "length", "start", "answer_position")])


class EncodedStore(LazySequence[EncodedSample]):
    """Encoded samples of which only an index is kept in memory, 24 bytes per sample."""

    def __init__(self, rows: Iterable[EncodedSample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        index = bytearray()
        for number, row in enumerate(rows):
            answer_position = -1 if row.answer_position is None else row.answer_position
            index += _ENTRY.pack(number, len(row.input_ids), row.start, answer_position)
            self._spool.append(row.input_ids.tobytes() + row.id.encode("utf-8", "surrogatepass"))
        self._index = np.frombuffer(index, _INDEX)

    def __len__(self) -> int:
        return len(self._index)

    def _item(self, index: int) -> EncodedSample:
        number, length, start, answer_position = self._index[index].item()
        row = self._spool[number]
        return EncodedSample(
            row[4 * length :].decode("utf-8", "surrogatepass"),
            np.frombuffer(row, np.int32, length),
            start,
            None if answer_position < 0 else answer_position,
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> EncodedStore:
        """Return the samples for which `kept` (N,) is true; they share the spool."""
        part = EncodedStore.__new__(EncodedStore)
        part._spool, part._index = self._spool, self._index[kept]
        return part

    @property
    def numbers(self) -> IntArray:
        """Each sample's index before any call of `where`, (N,)."""
        return np.asarray(self._index["number"], np.int64)

    @property
    def lengths(self) -> IntArray:
        """Number of tokens of each sample, (N,)."""
        return np.asarray(self._index["length"], np.int64)

    @property
    def counts(self) -> IntArray:
        """Number of supervised positions of each sample, (N,)."""
        return np.asarray(self.lengths - self._index["start"])

    @property
    def has_answer(self) -> npt.NDArray[np.bool_]:
        """Whether a sample's answer position is one of its supervised positions, (N,)."""
        position = self._index["answer_position"]
        return np.asarray((position >= self._index["start"]) & (position < self._index["length"]))


def lengths_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of tokens of each sample, (N,), from the index if there is one."""
    if isinstance(rows, EncodedStore):
        return rows.lengths
    return np.array([len(row.input_ids) for row in rows], np.int64)


def counts_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of supervised positions per sample, (N,), from the index if possible."""
    if isinstance(rows, EncodedStore):
        return rows.counts
    return np.array([len(row.targets) for row in rows], np.int64)


def has_answer_positions(rows: Sequence[EncodedSample]) -> bool:
    """Return whether any sample has a supervised answer position."""
    if isinstance(rows, EncodedStore):
        return bool(rows.has_answer.any())
    return any(row.start <= (row.answer_position or -1) < len(row.input_ids) for row in rows)
