"""Data larger than memory, in a nameless temporary file that ends with the process.

It leaves no file behind, however the process dies. What was written stays in the system's cache as
long as that has room, so that a read costs a microsecond. It is read and not memory-mapped, for a
mapped page counts as the process's memory and brings up to 2 MB around it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from firstcli.errors import UserError


class Spool:
    """Write bytes once, in order; then read any part, in any order."""

    def __init__(self, folder: Path) -> None:
        """Open a file without a name in `folder`, or among the system's where that cannot be."""
        place = folder if os.access(folder, os.W_OK) else None
        self._place = place or Path(tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115
        self._complete = False
        self.size = 0
        """Bytes written so far."""

    def write(self, data: bytes | npt.NDArray[Any]) -> None:
        """Append bytes, or an array's content."""
        if self._complete:
            raise RuntimeError("a spool that was read from takes no more")
        content = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
        try:
            self._file.write(content)
        except OSError as error:
            raise self._trouble(error) from error
        self.size += len(data) if isinstance(data, bytes) else data.nbytes

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`."""
        if not self._complete:
            try:
                self._file.flush()
            except OSError as error:
                raise self._trouble(error) from error
            self._complete = True
        return os.pread(self._file.fileno(), end - start, start)

    def array(self, dtype: npt.DTypeLike, start: int, end: int) -> npt.NDArray[Any]:
        """Return items `start` to `end` of a spool that holds items of one type only."""
        size = np.dtype(dtype).itemsize
        return np.frombuffer(self.read(start * size, end * size), dtype)

    def _trouble(self, error: OSError) -> UserError:
        return UserError(
            f"{self._place}: temporary data cannot be written there ({error.strerror}); make room "
            "and run the same command again"
        )
