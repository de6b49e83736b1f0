"""Atomic writes, and what importing the lock needs."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from firstcli.runtime.files import atomic_write, locked, write_json, write_text
from support import command_line


def test_bytes_text_json_and_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"\0bytes")
    assert path.read_bytes() == b"\0bytes"
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    atomic_write(path, lambda file: file.write(b"written"))
    assert path.read_bytes() == b"written"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: BinaryIO) -> None:
        file.write(b"new")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_is_released_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    with locked(tmp_path):
        pass


def test_importing_needs_no_fcntl() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import firstcli.runtime.files"
    result = command_line.finish(command_line.python(code))
    assert (result.code, result.err) == (0, "")
