"""Atomic file writes, and the lock on a run folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from firstcli.errors import UserError


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    atomic_write(path, text.encode())


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that it is complete or absent, even after a power cut.

    Args:
        path: the file, in an existing folder.
        content: the bytes, or a function that writes them to a binary file.
    """
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # the incomplete file, if the disk is full
    sync(path.parent)


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines; one that a killed process left incomplete is ended first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def suppress_read_only() -> Iterator[None]:
    """Ignore an unwritable or full disk while writing a cache, which only saves time."""
    try:
        yield
    except OSError as error:
        refused = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)
        if error.errno not in (*refused, errno.ENOSPC, errno.EDQUOT):
            raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a run folder; the system releases it if the process is killed.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # takes as long to import as the rest of a dry run

    path = folder / ".lock"
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a kill
    owner = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():  # read before the attempt: older versions of filelock truncate the file
            owner = path.read_text("utf-8").strip()
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"run folder {folder}: in use by process {owner or 'unknown'}; wait for it to end, "
            "or choose a different one with --run-dir"
        ) from error
    except OSError as error:
        raise UserError(
            f"run folder {folder}: cannot be written ({error.strerror}); choose a different one "
            "with --run-dir"
        ) from error
    try:
        path.write_text(str(os.getpid()), "utf-8")
        yield
    finally:
        lock.release()
