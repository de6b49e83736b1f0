"""Full and read-only disks, for real: the tests mount a small tmpfs."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from firstcli.data import spool
from firstcli.knowledge import shards, store
from firstcli.metrics import records
from firstcli.pipeline import execute
from firstcli.training import trainer
from firstcli.workspace import artifacts
from support import command_line
from support.command_line import Finished, Result, first

pytest_plugins = ["support.finished_runs"]

MIB = 2**20


class Disk:
    """A small disk, and a file that takes its free space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (MIB, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self._ballast.unlink()

    def refuse_writes(self) -> None:
        _mount("-o", "remount,ro", str(self.folder))


def _mount(*args: str) -> None:
    done = subprocess.run(["mount", *args], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 12 MiB; the test is skipped if it may not mount one."""
    if os.name != "posix" or os.geteuid():
        pytest.skip("only root may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# Full.

POINTS: dict[str, tuple[Any, str, int]] = {
    "recipe": (execute, "write_text", 1),
    "spool": (spool.Spool, "append", 200),
    "begin": (artifacts.Artifact, "begin", 2),
    "checkpoint": (trainer.PositionTrainer, "_save_checkpoint", 2),
    "model": (trainer, "write_log", 2),
    "commit": (artifacts.Artifact, "commit", 3),
    "shard": (shards, "write_shard", 3),
    "manifest": (artifacts, "write_json", 2),
    "records": (records.EvalRecords, "save", 2),
}
"""Before which call, and which time, the disk becomes full."""


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_POSITIONS", 32)
        assert first("eval", finished.recipe, "--arm", "first", "--run-dir", run).code == 0
    return run


def results(run: Path) -> dict[str, bytes]:
    """Return the results of a run: models, knowledge, records, fitted recalibrators."""
    ends = (".safetensors", ".parquet", "tokenizer.json", "calibration/first.json")
    return {name: data for name, data in command_line.contents(run).items() if name.endswith(ends)}


def before_call(
    patch: pytest.MonkeyPatch, owner: Any, name: str, number: int, act: Callable[[], None]
) -> list[int]:
    """Act before a function's call with this number, once."""
    calls: list[int] = []
    real = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == number:
            act()
        return real(*args, **kwargs)

    patch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("point", POINTS)
def test_a_disk_that_fills_up(
    finished: Finished,
    undisturbed: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    run = disk.folder / "run"
    command = ("eval", finished.recipe, "--arm", "first", "--run-dir", run)
    monkeypatch.setattr(store, "SHARD_POSITIONS", 32)
    with monkeypatch.context() as patch:
        before_call(patch, *POINTS[point], disk.fill)
        result = first(*command)
    message = result.mistake(str(run), "o space left on", "run the same command again")
    assert len(message) < 300
    assert_nothing_half_made(run)
    disk.make_room()
    again = first(*command)
    assert again.code == 0, again.err
    assert results(run) == results(undisturbed)
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert "everything is up to date" in first(*command).out


def assert_nothing_half_made(run: Path) -> None:
    """Check that every artifact with a manifest matches it."""
    for path in run.rglob("*manifest.json"):
        if path.name == "manifest.json":
            artifact = artifacts.Artifact(path.parent, True)
        else:
            name = path.name.removesuffix(".manifest.json")
            ending = ".json" if path.parent.name == "calibration" else ".parquet"
            artifact = artifacts.Artifact(path.with_name(name + ending), False)
        assert artifact.manifest(artifacts.Digests()) is not None


def test_a_full_disk_for_temporary_data_is_named_before_there_is_a_run_folder(
    finished: Finished, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    disk.fill()
    result = first("plan", finished.recipe, "--run-dir", tmp_path / "run")
    result.mistake(str(disk.folder), "temporary data cannot be written", "free some space")


def test_a_spool_on_a_full_disk_fails_where_it_is_written_and_not_where_it_is_read(
    disk: Disk,
) -> None:
    from firstcli.errors import UserError

    data = spool.Spool(disk.folder)
    data.append(b"x" * 100)  # may still be in a buffer
    disk.fill()
    with pytest.raises(UserError, match="cannot be written"):
        for _ in range(100):
            data.append(b"x" * 1000)
        _ = data[0]
    disk.make_room()
    other = spool.Spool(disk.folder)
    other.append(b"y" * 100)
    assert other[0] == b"y" * 100


# Read-only.


@pytest.fixture
def archive(finished: Finished, disk: Disk) -> Path:
    """A finished run on a disk that cannot be written."""
    run = command_line.copy_run(finished.run, disk.folder / "run")
    disk.refuse_writes()
    return run


@pytest.mark.parametrize(
    "command",
    [("plan",), ("report",), ("report", "--dry-run"), ("eval", "--arm", "first"), ("distill",)],
)
def test_finished_work_is_shown_from_a_disk_that_cannot_be_written(
    finished: Finished, archive: Path, command: tuple[str, ...]
) -> None:
    name, *options = command
    arguments = (name, finished.recipe, *options, "--run-dir", archive, "--json")
    found = first(*arguments)
    assert found.code == 0, found.err
    assert all(unit["up_to_date"] for unit in found.json["units"])
    expected: Result = first(*(finished.run if part == archive else part for part in arguments))
    for key in found.json.get("result", {}):
        assert (
            key == "page"
            or found.json["result"][key] == expected.json["result"][key]
            or (name == "distill")
        )


def test_knowledge_is_verified_on_a_disk_that_cannot_be_written(
    finished: Finished, archive: Path
) -> None:
    result = first("extract", finished.recipe, "--run-dir", archive, "--verify", 5, "--json")
    assert result.code == 0, result.err
    assert result.json["verified"]["extract train"]["samples"] == 5


@pytest.mark.parametrize(
    "command",
    [
        ("extract", "--force"),
        ("extract", "--repair"),
        ("report", "--set", "seed=8"),
        ("distill", "--set", "student.training.epochs=2"),
    ],
)
def test_commands_that_write_report_a_read_only_disk(
    finished: Finished, archive: Path, command: tuple[str, ...]
) -> None:
    before = command_line.times(archive)
    name, *options = command
    result = first(name, finished.recipe, *options, "--run-dir", archive)
    result.mistake(str(archive), "cannot be written (Read-only file system)", "--run-dir")
    assert command_line.times(archive) == before


def test_a_new_run_on_a_disk_that_cannot_be_written(finished: Finished, disk: Disk) -> None:
    disk.refuse_writes()
    run = disk.folder / "new"
    assert first("plan", finished.recipe, "--run-dir", run).code == 0
    result = first("report", finished.recipe, "--run-dir", run)
    result.mistake(str(run), "cannot be written (Read-only file system)")


def test_a_disk_that_becomes_read_only_while_it_is_written(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux does with a failing disk; a mount with open files cannot be remounted read-only."""
    run = tmp_path / "run"
    command = ("extract", finished.recipe, "--run-dir", run)

    def refuse() -> None:
        shard = run / "knowledge" / ".train.partial" / "shard-00000.tmp"
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(shard))

    with monkeypatch.context() as patch:
        before_call(patch, shards, "write_shard", 1, refuse)
        first(*command).mistake(str(run), "Read-only file system", "run the same command again")
    assert first(*command).code == 0


def test_a_quota_that_is_used_up(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    command = ("extract", finished.recipe, "--run-dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        before_call(patch, shards, "write_shard", 1, refuse)
        first(*command).mistake("run", "no space left on the disk", "run the same command again")
    assert first(*command).code == 0
