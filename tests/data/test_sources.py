"""A source that breaks off or is slow: one clear sentence, and no partial data are used."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from firstcli.api import Sample, Split
from firstcli.tasks.known_world import KnownWorld
from firstcli.workspace import sources
from support import command_line
from support.command_line import first

REAL = KnownWorld.load


def breaks(monkeypatch: pytest.MonkeyPatch, error: Exception, after: int = 5) -> None:
    """Make the split `train` end in an error."""

    def samples(whole: Split) -> Iterator[Sample]:
        yield from islice(whole.samples, after)
        raise error

    def load(task: KnownWorld, split: str) -> Split:
        whole = REAL(task, split)
        return Split(samples(whole)) if split == "train" else whole

    monkeypatch.setattr(KnownWorld, "load", load)


def wrapping(cause: OSError) -> Exception:
    """Wrap an error as libraries do for a lost connection."""
    error = RuntimeError("the download failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionResetError(104, "reset"), "ConnectionResetError: [Errno 104] reset"),
        (TimeoutError("no answer for 10 s"), "TimeoutError: no answer for 10 s"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (wrapping(ConnectionError("gone")), "RuntimeError: the download failed"),
    ],
)
def test_the_error_is_named_and_the_same_command_succeeds_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    recipe = command_line.write_recipe(tmp_path, teacher={"model": command_line.MODEL})
    command = ("extract", recipe, "--run-dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        breaks(patch, error)
        result = first(*command)
    result.mistake(
        f"train.task: split 'train' of task 'known-world' broke off after 5 rows ({message}); "
        "none of them is used; run the same command again"
    )
    assert not list((tmp_path / "run").rglob("shard-*"))
    assert first(*command).code == 0


def test_a_source_that_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(task: KnownWorld, split: str) -> Split:
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(KnownWorld, "load", load)
    result = first("plan", command_line.write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert result.code == 2 and "broke off after 0 rows (ConnectionRefusedError" in result.errors[0]


def test_a_bug_in_a_task_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        first("plan", command_line.write_recipe(tmp_path), "--run-dir", tmp_path / "run")


def test_a_slow_source_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PROGRESS_SECONDS", -1)
    result = first("plan", command_line.write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert "train.task: split 'train' of task 'known-world': 96 rows read so far" in result.out
