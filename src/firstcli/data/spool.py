"""Data larger than memory: rows of bytes in a nameless temporary file.

The file disappears with the process, however it dies. What was written stays in the system's page
cache as long as there is room, so a read costs a microsecond. The file is read, not memory-mapped:
a mapped page counts as the process's memory, and each access maps up to 2 MB around it.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path

from firstcli.errors import UserError


class Spool:
    """Rows of bytes, appended in order and read in any order; memory holds 8 bytes per row."""

    def __init__(self, folder: Path) -> None:
        """Open the file in `folder`, or in the system's temporary folder if that is impossible."""
        usable = folder.is_dir() and os.access(folder, os.W_OK)
        self._place = folder if usable else Path(tempfile.gettempdir())
        self._file = tempfile.TemporaryFile(dir=self._place)  # noqa: SIM115
        self._borders = array("q", [0])  # row i is in bytes borders[i] to borders[i + 1]
        self._flushed = True

    def append(self, row: bytes) -> None:
        """Append a row.

        Raises:
            UserError: the disk is full.
        """
        self._flushed = False
        self._checked(lambda: self._file.write(row))
        self._borders.append(self._borders[-1] + len(row))

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, index: int) -> bytes:
        if not self._flushed:
            self._checked(self._file.flush)
            self._flushed = True
        start = self._borders[index]
        return os.pread(self._file.fileno(), self._borders[index + 1] - start, start)

    def _checked(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            raise UserError(
                f"{self._place}: temporary data cannot be written there ({error.strerror}); free "
                "some space and run the same command again"
            ) from error
