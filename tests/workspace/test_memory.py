"""Results of checks that a run folder remembers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from firstcli.runtime.console import Console
from firstcli.workspace import memory as remembered_checks
from firstcli.workspace.memory import NOT_REMEMBERED, Memory


def reopened(memory: Memory, path: Path) -> Memory:
    memory.save()
    return Memory(path, Console(quiet=True))


def test_the_oldest_results_are_forgotten_first_and_permanent_ones_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered_checks, "MOST_ENTRIES", 3)
    path = tmp_path / "checks.json"
    memory = Memory(path, Console(quiet=True))
    assert memory.recall("source", {}, lambda: "first", permanent=True) == "first"
    for number in range(5):
        memory = reopened(memory, path)
        memory.recall(f"check {number}", {}, partial(int, number))
    memory = reopened(memory, path)
    remembered = [memory.recall(f"check {number}", {}, lambda: "anew") for number in range(5)]
    assert remembered == ["anew", "anew", 2, 3, 4]
    assert memory.recall("source", {}, lambda: "later") == "first"


def test_a_check_that_could_not_be_made_is_not_remembered(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "checks.json", Console(quiet=True))
    assert memory.recall("weights", {}, lambda: NOT_REMEMBERED) == NOT_REMEMBERED
    assert memory.recall("weights", {}, lambda: "made") == "made"
