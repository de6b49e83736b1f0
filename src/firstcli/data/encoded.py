"""Training samples as tokens, held in a spool; lengths and positions are known without reading it.

A row of the spool is a sample's token ids, 4 bytes each, the number and the borders of its gaps if
it has any, and the sample's id in UTF-8.
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

_INDEX = np.dtype([(name, "<i4") for name in ("length", "start", "count", "answer_position")])


class EncodedStore(LazySequence[EncodedSample]):
    """Encoded samples of which only an index is kept in memory, 28 bytes per sample."""

    def __init__(self, rows: Iterable[EncodedSample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        self._index = _index_of(self._spooled(rows))
        self.indices = np.arange(len(self._index), dtype=np.int32)

    def _spooled(self, rows: Iterable[EncodedSample]) -> Iterator[EncodedSample]:
        for row in rows:
            gaps = np.array(row.gaps, np.int32)
            borders = np.int32(len(gaps)).tobytes() + gaps.tobytes() if row.gaps else b""
            id = row.id.encode("utf-8", "surrogatepass")
            self._spool.append(row.input_ids.tobytes() + borders + id)
            yield row

    def _item(self, number: int) -> EncodedSample:
        length, start, count, answer_position = self._index[number].item()
        row = self._spool[number]
        end = 4 * length
        gaps: tuple[tuple[int, int], ...] = ()
        if count < length - start:
            number_of_gaps = int(np.frombuffer(row, np.int32, 1, end)[0])
            borders = np.frombuffer(row, np.int32, 2 * number_of_gaps, end + 4).tolist()
            gaps = tuple(zip(borders[::2], borders[1::2], strict=True))
            end += 4 + 8 * number_of_gaps
        return EncodedSample(
            row[end:].decode("utf-8", "surrogatepass"),
            np.frombuffer(row, np.int32, length),
            start,
            None if answer_position < 0 else answer_position,
            gaps,
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
    return np.fromiter(map(_entry, rows), _INDEX)


def _entry(row: EncodedSample) -> tuple[int, int, int, int]:
    length, unsupervised = len(row.input_ids), sum(end - first for first, end in row.gaps)
    position = -1 if row.answer_position is None else row.answer_position
    return length, row.start, length - row.start - unsupervised, position


def lengths_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of tokens of each sample, (N,)."""
    return np.asarray(_index_of(rows)["length"], np.int64)


def counts_of(rows: Sequence[EncodedSample]) -> IntArray:
    """Return the number of supervised positions of each sample, (N,)."""
    return np.asarray(_index_of(rows)["count"], np.int64)


def has_answer_position(rows: Sequence[EncodedSample]) -> npt.NDArray[np.bool_]:
    """Return whether each sample's answer position is one of its supervised positions, (N,)."""
    index = _index_of(rows)
    position = index["answer_position"]
    return np.asarray((position >= index["start"]) & (position < index["length"]))
