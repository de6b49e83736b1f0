"""Files that are complete or absent, and the lock on a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firstcli.errors import UserError


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is there complete or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there complete or not at all, also after a power cut."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # half of it, on a disk that is full
    sync(path.parent)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def suppress_read_only() -> Iterator[None]:
    """Ignore that a folder cannot be written, where what is written only saves time."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.ENOENT):
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the system lets go when the process ends.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"run directory {folder}: cannot be written ({error.strerror}); choose another with "
            "--run-dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UserError(
                f"run directory {folder}: in use by process {owner}; wait for it to end, or choose "
                "another with --run-dir"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
