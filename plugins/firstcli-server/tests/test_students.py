"""What a server's students need once they are trained: not the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from stub_server import Stub

from conftest import Run


def dead(stub: Stub, handler: Any, number: int) -> bool:
    raise AssertionError("nothing may be asked any more")


def test_a_student_answers_and_is_exported_without_the_server(
    stub: Stub, first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The recipe's key is unset, too."""
    monkeypatch.setenv("STUB_KEY", "secret")
    more = "api_key_env: STUB_KEY"
    done = first("report", more=more)
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("STUB_KEY")
    stub.fault, count = dead, stub.count
    from firstcli import cli

    for words in (
        ["predict", "runs/r/students/first", "water"],
        ["export", "runs/r", "out", "--arm", "first"],
        ["export", "runs/r/students/first", "again"],
        ["predict", "out", "water"],
    ):
        monkeypatch.setattr(sys, "argv", ["first", *words])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert not exit.value.code, capsys.readouterr().err
    assert stub.count == count
    again = first("report", more=more)
    assert again.returncode == 0 and "up to date" in again.stdout
