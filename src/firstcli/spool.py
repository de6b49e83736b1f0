"""Data larger than memory, in a nameless temporary file that ends with the process.

It leaves no file behind, however the process dies. Reads are views into a memory map, whose pages
are given back now and then: they stay in the system's cache, but the process does not grow with
the data.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstcli.errors import UserError

RESIDENT = 1 << 24  # bytes that may have come into memory before all are given back
TOUCHED = 1 << 16  # bytes that a read brings at least: Linux maps the pages around it, too


class Spool:
    """Write bytes once, in order; then read any part, in any order."""

    def __init__(self, folder: Path) -> None:
        """Open a file without a name in `folder`, or among the system's where that cannot be."""
        place = folder if os.access(folder, os.W_OK) else None
        self._place = place or Path(tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
        self._map: mmap.mmap | None = None
        self._read = 0
        self.size = 0
        """Bytes written so far."""

    def write(self, data: bytes | npt.NDArray[Any]) -> None:
        """Append bytes, or an array's content."""
        if self._map is not None:
            raise RuntimeError("a spool that was read from takes no more")
        content = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
        with self._trouble_told():
            self._file.write(content)
        self.size += len(data) if isinstance(data, bytes) else data.nbytes

    def read(self, start: int, end: int) -> memoryview:
        """Return the bytes from `start` to `end`, without copying them."""
        if start == end:
            return memoryview(b"")
        if self._map is None:
            with self._trouble_told():
                self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._read += max(end - start, TOUCHED)
        if self._read > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return memoryview(self._map)[start:end]

    def array(self, dtype: npt.DTypeLike, start: int, end: int) -> npt.NDArray[Any]:
        """Return items `start` to `end` of a spool that holds items of one type only."""
        size = np.dtype(dtype).itemsize
        return np.frombuffer(self.read(start * size, end * size), dtype)

    @contextmanager
    def _trouble_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._place}: temporary data cannot be written there ({error.strerror}); make "
                "room and run the same command again"
            ) from error
