"""Sequences that create an item on each access, and selections of them that hold only indices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T", covariant=True)


class LazySequence(Sequence[T]):
    """A sequence that creates an item on each access; a slice of it holds only indices."""

    @abstractmethod
    def _item(self, index: int) -> T:
        """Return the item at a non-negative index."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return Selected(self, np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} items")
        return self._item(index % len(self))


class Selected(LazySequence[T]):
    """Some items of a sequence, in any order."""

    def __init__(self, items: Sequence[T], indices: npt.NDArray[np.int64]) -> None:
        self._items = items
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def _item(self, index: int) -> T:
        return self._items[int(self._indices[index])]
