"""Sequences of samples: held in a spool, so that only an index is kept in memory, or selected."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from firstcli.api import Sample
from firstcli.data.spool import Spool

T = TypeVar("T", covariant=True)


class LazySequence(Sequence[T]):
    """A sequence that creates an item on each access; a slice of it holds only indices."""

    indices: npt.NDArray[np.integer]
    """Numbers of the items, (N,)."""

    @abstractmethod
    def _item(self, number: int) -> T:
        """Create an item."""

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Selected(self, np.arange(len(self))[index])
        return self._item(int(self.indices[index]))


class Selected(LazySequence[T]):
    """Some items of a sequence, in any order."""

    def __init__(self, items: Sequence[T], indices: npt.NDArray[np.integer]) -> None:
        self._items = items
        self.indices = indices

    def _item(self, number: int) -> T:
        return self._items[number]


class Samples(LazySequence[Sample]):
    """Samples that are read from their source once and looked up from then on."""

    def __init__(self, samples: Iterable[Sample], folder: Path) -> None:
        """Read all samples; the spool is in `folder` if that exists."""
        self._spool = Spool(folder)
        for sample in samples:
            self._spool.append(to_json(sample))
        self.indices = np.arange(len(self._spool), dtype=np.int32)

    def _item(self, number: int) -> Sample:
        fields = json.loads(self._spool[number])
        id, prompt, response, candidates, answer, truth = fields
        truth = None if truth is None else tuple(truth)
        return Sample(prompt, response, id, tuple(candidates), answer, truth)


def to_json(sample: Sample) -> bytes:
    """Return all fields of a sample as a JSON list; digests of data sets depend on these bytes."""
    candidates, truth = sample.candidates, sample.truth
    fields = (sample.id, sample.prompt, sample.response, candidates, sample.answer, truth)
    return json.dumps(fields).encode()
