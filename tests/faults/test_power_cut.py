"""Power cuts: a file gets its name only after its content has reached the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support import command_line
from support.command_line import first

State = tuple[int, int] | set[str]  # a file's modification time and size, or the names in a folder


@dataclass
class Disk:
    """Notes what has reached the disk, and renames of what has not."""

    folder: Path
    durable: dict[int, State] = field(default_factory=dict)  # by inode
    unsynced: dict[Path, Path] = field(default_factory=dict)  # names put in place, by their folder
    renamed: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def note(self, path: Path) -> None:
        self.durable[path.stat().st_ino] = _state(path)

    def fsync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_relative_to(self.folder):
            self.note(path)
            self.unsynced.pop(path, None)

    def sync(self) -> None:
        for path in (self.folder, *self.folder.rglob("*")):
            self.note(path)
        self.unsynced.clear()

    def rename(self, source: Path, target: Path) -> None:
        if not target.is_relative_to(self.folder):
            return
        for path in (source, *source.rglob("*")):
            if not _holds(self.durable.get(path.stat().st_ino), _state(path)):
                self.problems.append(f"{target}: {path} had not reached the disk")
        if target.name.endswith("manifest.json") and self.unsynced.get(target.parent):
            self.problems.append(f"{target}: {self.unsynced[target.parent]} may be lost before it")
        self.unsynced[target.parent] = target
        self.renamed.append(target)


def _state(path: Path) -> State:
    if path.is_dir():
        return {inside.name for inside in path.iterdir()}
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _holds(durable: State | None, now: State) -> bool:
    """Compare with what is on the disk; names deleted since then do not matter."""
    if isinstance(durable, set) and isinstance(now, set):
        return now <= durable
    return durable == now


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A run folder whose calls to fsync, sync and rename are watched."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc, which names the file of a handle")
    disk = Disk(tmp_path / "run")
    fsync, sync, rename, replace = os.fsync, os.sync, os.rename, os.replace

    def synced(handle: int) -> None:
        fsync(handle)
        disk.fsync(handle)

    def all_synced() -> None:
        sync()
        disk.sync()

    def watched(real: Any) -> Any:
        def move(source: Any, target: Any, **rest: Any) -> None:
            disk.rename(Path(source), Path(target))
            real(source, target, **rest)

        return move

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "sync", all_synced)
        patch.setattr(os, "rename", watched(rename))
        patch.setattr(os, "replace", watched(replace))
        yield disk


def test_nothing_gets_its_name_before_it_is_on_the_disk(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstcli.knowledge.store.SHARD_POSITIONS", 32)
    path = command_line.write_recipe(tmp_path)
    assert command_line.report(path, "--run-dir", disk.folder).code == 0
    assert not disk.problems
    assert not disk.unsynced
    assert _manifests_are_last(disk.renamed, disk.folder)


def _manifests_are_last(renamed: Sequence[Path], run: Path) -> bool:
    """Check that only the artifact's own name comes after its manifest."""
    for unit in ("knowledge/train", "students/first", "teacher", "report"):
        work = (run / unit).with_name(f".{Path(unit).name}.partial")
        own = [path for path in renamed if path == run / unit or path.is_relative_to(work)]
        assert own[-2:] == [work / "manifest.json", run / unit]
    for unit in ("calibration/first", "eval/known-world/first"):
        own = [path for path in renamed if str(path).startswith(f"{run / unit}.")]
        assert own[-1] == run / f"{unit}.manifest.json" and len(own) == 2
    return True


def test_a_checkpoint_replaces_the_last_only_when_it_is_on_the_disk(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[Path] = []
    deleted: list[Path] = []
    mark, rmtree = disk.rename, shutil.rmtree

    def renamed(source: Path, target: Path) -> None:
        if target.name == "complete":
            for path in target.parent.iterdir():
                if path != source:
                    assert disk.durable[path.stat().st_ino] == _state(path)
            marked.append(target)
        mark(source, target)

    def removed(path: Any, *args: Any, **rest: Any) -> None:
        if Path(path).name.startswith("checkpoint-"):
            assert marked[-1].parent != Path(path) and disk.unsynced == {}
            deleted.append(Path(path))
        rmtree(path, *args, **rest)

    monkeypatch.setattr(disk, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    path = command_line.write_recipe(tmp_path)
    command = ("finetune", path, "--run-dir", disk.folder, "--set", "teacher.finetune.epochs=3")
    assert first(*command).code == 0
    assert [path.parent.name for path in marked] == [f"checkpoint-{n}" for n in (5, 10, 15)]
    assert [path.name for path in deleted] == ["checkpoint-5", "checkpoint-10"]
    assert not disk.problems


def test_a_repair_goes_through_the_disk_in_order(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstcli.knowledge.store.SHARD_POSITIONS", 32)
    path = command_line.write_recipe(tmp_path)
    command = ("extract", path, "--run-dir", disk.folder)
    assert first(*command).code == 0
    (disk.folder / "knowledge" / "train" / "shard-00001.parquet").unlink()
    assert first(*command, "--repair").code == 0
    assert not disk.problems and not disk.unsynced
