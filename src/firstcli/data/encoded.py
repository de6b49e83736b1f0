"""Training samples as tokens, in a spool: lengths and positions are known without reading any."""

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

_FIELDS = ("offset", "number", "id_size", "length", "start", "decisive")
_ENTRY = struct.Struct("<qiiiii")
_INDEX = np.dtype([(name, "<i8" if name == "offset" else "<i4") for name in _FIELDS])


class EncodedStore(LazySequence[EncodedSample]):
    """EncodedSample samples of which only an index lies in memory, 28 bytes a sample."""

    def __init__(self, rows: Iterable[EncodedSample], folder: Path) -> None:
        """Take all rows; `folder` holds the spool where it exists."""
        self._spool = Spool(folder)
        index = bytearray()
        for number, row in enumerate(rows):
            id = row.id.encode("utf-8", "surrogatepass")
            decisive = -1 if row.decisive is None else row.decisive
            length = len(row.input_ids)
            index += _ENTRY.pack(self._spool.size, number, len(id), length, row.start, decisive)
            self._spool.write(id.ljust(_aligned(len(id)), b"\0"))
            self._spool.write(row.input_ids)
        self._index = np.frombuffer(index, _INDEX)

    def __len__(self) -> int:
        return len(self._index)

    def _make(self, index: int) -> EncodedSample:
        offset, _, id_size, length, start, decisive = self._index[index].item()
        tokens = _aligned(id_size)
        held = self._spool.read(offset, offset + tokens + 4 * length)
        return EncodedSample(
            held[:id_size].decode("utf-8", "surrogatepass"),
            np.frombuffer(held, np.int32, length, tokens),
            start,
            None if decisive < 0 else decisive,
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> EncodedStore:
        """Keep some rows; they share the spool."""
        part = EncodedStore.__new__(EncodedStore)
        part._spool, part._index = self._spool, self._index[kept]
        return part

    @property
    def numbers(self) -> IntArray:
        """Each row's place among all rows that were taken, before `where` left any out, (N,)."""
        return np.asarray(self._index["number"], np.int64)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each row, (N,)."""
        return np.asarray(self._index["length"], np.int64)

    @property
    def counts(self) -> IntArray:
        """Supervised positions of each row, (N,)."""
        return np.asarray(self.lengths - self._index["start"])

    @property
    def decide(self) -> npt.NDArray[np.bool_]:
        """Whether one of the row's supervised tokens decides between candidates, (N,)."""
        decisive = self._index["decisive"]
        found: npt.NDArray[np.bool_] = decisive >= self._index["start"]
        return found & (decisive < self._index["length"])


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def lengths_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the tokens of each row, (N,); no row is read where an index knows."""
    if isinstance(rows, EncodedStore):
        return rows.lengths
    return np.array([len(row.input_ids) for row in rows], np.int64)


def counts_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the supervised positions of each row, (N,); no row is read where an index knows."""
    if isinstance(rows, EncodedStore):
        return rows.counts
    return np.array([len(row.targets) for row in rows], np.int64)


def has_answer_positions(rows: Sequence[EncodedSample]) -> bool:
    """Say whether any row has a token that decides between candidates."""
    if isinstance(rows, EncodedStore):
        return bool(rows.decide.any())
    return any(row.start <= (row.decisive or -1) < len(row.input_ids) for row in rows)
