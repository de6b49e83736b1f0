"""Files in the run folder that only save time; those of a run without a folder wait for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from firstcli.runtime import distributed
from firstcli.runtime.files import suppress_read_only


class Caches:
    """Writes the files, in the first process alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[Callable[[], None]] = []

    @property
    def are_waiting(self) -> bool:
        """Whether a file waits for the run folder."""
        return bool(self._waiting)

    def write(self, write: Callable[[], None]) -> None:
        """Write a file: now, or once the folder exists."""
        if not self._folder.is_dir():
            self._waiting.append(write)
        elif distributed.is_first():
            with suppress_read_only():
                write()

    def write_waiting(self) -> None:
        """Write the files that wait, if the folder exists."""
        if self._folder.is_dir():
            waiting, self._waiting = self._waiting, []
            for write in waiting:
                self.write(write)
