"""`plugins/firstcli-server` as installed: its wheel, and its own tests against it."""

from __future__ import annotations

from pathlib import Path

from support.wheels import python_with, run_own_tests


def test_its_own_tests_pass_against_the_wheel(tmp_path: Path) -> None:
    python = python_with("firstcli-server", tmp_path)
    assert "[100%]" in run_own_tests(python, "firstcli-server", tmp_path)
