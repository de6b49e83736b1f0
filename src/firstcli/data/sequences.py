"""Sequences that create their items when they are indexed, and selections from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

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
        self.items = items
        self.indices = indices

    def _item(self, number: int) -> T:
        return self.items[number]
