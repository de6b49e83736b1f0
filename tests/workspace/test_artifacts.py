"""Artifacts prove themselves: whenever a process dies, nothing half-done is taken for finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.runtime.files import locked
from firstcli.workspace import artifacts
from firstcli.workspace.artifacts import Artifact, Digests, Manifest, changes, fingerprint
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

READS = {"seed": "1"}


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    return Digests(tmp_path / ".digests.json")


@pytest.fixture(params=["folder", "file"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    if request.param == "folder":
        return Artifact(tmp_path / "students" / "first.v2", True)
    return Artifact(tmp_path / "calibration" / "first.v2.json", False)


def name_of(artifact: Artifact) -> str:
    return "model.safetensors" if artifact.is_folder else artifact.path.name


def make(artifact: Artifact, digests: Digests, text: str = "1", **reads: str) -> Manifest:
    """Work and commit."""
    work = artifact.begin(fingerprint(READS | reads))
    (work / name_of(artifact)).write_text(text)
    return artifact.commit("unit", READS | reads, {"n": 1}, 0.5, {"python": "3"}, digests)


def result_of(artifact: Artifact) -> str:
    path = artifact.path / name_of(artifact) if artifact.is_folder else artifact.path
    return path.read_text()


def test_a_finished_artifact_says_what_it_is(artifact: Artifact, digests: Digests) -> None:
    assert artifact.manifest(digests) is None
    made = make(artifact, digests)
    found = artifact.manifest(digests)
    assert found == made
    assert found.fingerprint == fingerprint(READS) and found.inputs == READS
    assert found.files[name_of(artifact)]["size"] == 1
    assert result_of(artifact) == "1"
    assert not artifact.work.exists()
    assert [path for path in artifact.path.parent.glob(".*")] == []


def test_the_content_counts_and_not_how_it_came_about(digests: Digests, tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "students" / "first", True)
    contents = []
    for card in ("one", "other"):
        work = artifact.begin(fingerprint(READS | {"card": card}))
        (work / "model.safetensors").write_text("1")
        (work / "README.md").write_text(card)
        made = artifact.commit("unit", READS, {"n": card}, 1.0, {}, digests)
        contents.append(made.content)
        assert "README.md" not in made.files  # it is written again when more is known
    assert contents[0] == contents[1]
    assert make(artifact, digests, "2").content != contents[0]


def test_work_resumes_only_with_the_same_inputs(artifact: Artifact, digests: Digests) -> None:
    work = artifact.begin(fingerprint(READS))
    (work / "half").write_text("done")
    assert (artifact.begin(fingerprint(READS)) / "half").exists()
    assert not (artifact.begin(fingerprint({"seed": "2"})) / "half").exists()
    assert artifact.manifest(digests) is None


def test_work_without_its_mark_is_discarded(artifact: Artifact) -> None:
    work = artifact.begin(fingerprint(READS))
    (work / "half").write_text("done")
    (work / ".fingerprint").unlink()
    assert not (artifact.begin(fingerprint(READS)) / "half").exists()


def test_the_predecessor_stays_while_its_successor_is_made(
    artifact: Artifact, digests: Digests
) -> None:
    first_made = make(artifact, digests, "1")
    work = artifact.begin(fingerprint({"seed": "2"}))
    (work / name_of(artifact)).write_text("2")
    artifact.recover()
    assert artifact.manifest(digests) == first_made
    assert result_of(artifact) == "1"


@pytest.mark.parametrize("harm", ["changed", "longer", "gone", "folder"])
def test_a_harmed_artifact_is_none(artifact: Artifact, digests: Digests, harm: str) -> None:
    make(artifact, digests)
    path = artifact.path / name_of(artifact) if artifact.is_folder else artifact.path
    path.unlink()
    match harm:
        case "changed":
            path.write_text("x")
        case "longer":
            path.write_text("11")
        case "folder":
            path.mkdir()
    assert artifact.manifest(digests) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unit": 1}', "\0"])
def test_a_harmed_manifest_is_none(artifact: Artifact, digests: Digests, text: str) -> None:
    make(artifact, digests)
    artifact.manifest_path.write_text(text)
    assert artifact.manifest(digests) is None


class Killed(BaseException):
    """Simulates the end of the process."""


@pytest.mark.parametrize("is_folder", [True, False])
@pytest.mark.parametrize("has_predecessor", [True, False])
def test_a_kill_at_any_step_of_a_commit_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool, has_predecessor: bool
) -> None:
    """Die before the n-th change of the file system, for every n; old or new must be whole."""
    outcomes = set()
    for at in range(100):
        folder = tmp_path / str(at)
        name = "first" if is_folder else "first.json"
        artifact = Artifact(folder / name, is_folder)
        digests = Digests(folder / ".digests.json")
        if has_predecessor:
            make(artifact, digests, "old", seed="0")
        with monkeypatch.context() as patch:
            killed = die_at(patch, at)
            with contextlib.suppress(Killed):
                make(artifact, digests, "new")
        if not killed:
            break
        worked = (artifact.work / name_of(artifact)).exists()
        artifact.recover()
        found = artifact.manifest(digests)
        outcomes.add(found.inputs["seed"] if found else "redo")
        if found:
            assert result_of(artifact) == {"0": "old", "1": "new"}[found.inputs["seed"]]
        if worked and is_folder and not (found and found.inputs == READS):
            work = artifact.begin(fingerprint(READS))
            assert (work / name_of(artifact)).read_text() == "new"
        if is_folder and has_predecessor:
            assert found
        made = make(artifact, digests, "new")
        assert artifact.manifest(digests) == made
        assert result_of(artifact) == "new"
        assert list(folder.glob(".f*")) == []
    else:
        raise AssertionError("it never ended")
    assert "1" in outcomes
    assert is_folder <= (("0" in outcomes) == has_predecessor)


def die_at(patch: pytest.MonkeyPatch, at: int) -> list[int]:
    """Raise before the step number `at` that changes files; the list tells whether that came."""
    steps = 0
    killed: list[int] = []

    def counted(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            if killed:
                raise Killed
            steps += 1
            if steps > at:
                killed.append(at)
                raise Killed
            return real(*args, **kwargs)

        return step

    for module, name in (
        (os, "rename"),
        (os, "replace"),
        (os, "fsync"),
        (shutil, "rmtree"),
        (Path, "unlink"),
        (Path, "mkdir"),
    ):
        patch.setattr(module, name, counted(getattr(module, name)))
    return killed


def test_checkpoints_are_no_part_of_an_artifact_and_live_until_it_is_whole(
    tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact(tmp_path / "teacher", True)
    work = artifact.begin(fingerprint(READS))
    (work / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (work / "checkpoints" / "checkpoint-5" / "optimizer.pt").write_text("x")

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", die)
        with pytest.raises(Killed):
            make(artifact, digests)
    again = artifact.begin(fingerprint(READS))
    assert (again / "checkpoints" / "checkpoint-5" / "optimizer.pt").exists()
    assert set(make(artifact, digests).files) == {"model.safetensors"}
    assert {path.name for path in artifact.path.iterdir()} == {"model.safetensors", "manifest.json"}


# Fingerprint inputs.


def test_a_fingerprint_ignores_order_and_nothing_else() -> None:
    assert fingerprint({"a": "1", "b": "2"}) == fingerprint({"b": "2", "a": "1"})
    assert fingerprint({"a": "1"}) != fingerprint({"a": "2"})
    assert fingerprint({"a": "1"}) != fingerprint({"b": "1"})


def test_changes_are_phrases() -> None:
    old = {"seed": "1", "gone": "x", "samples": "a" * 64}
    new = {"seed": "2", "came": "x", "samples": "b" * 64}
    assert changes(old, new) == [
        "came added",
        "gone removed",
        "samples changed",
        "seed changed (1 -> 2)",
    ]
    assert changes(old, old) == []


# Digests.


def test_large_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_text("1")
    digests = Digests(tmp_path / ".digests.json")
    known = digests.of_file(path)
    digests.save()

    def unread(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", unread)
        assert Digests(tmp_path / ".digests.json").of_file(path) == known
    stat = path.stat()
    path.write_text("2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Digests(tmp_path / ".digests.json").of_file(path) != known


@pytest.mark.parametrize("text", ["", "{", "\0"])
def test_a_harmed_memory_of_digests_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights"
    path.write_text("1")
    known = Digests(tmp_path / ".digests.json").of_file(path)
    (tmp_path / ".digests.json").write_text(text)
    assert Digests(tmp_path / ".digests.json").of_file(path) == known


def test_a_checkpoint_is_its_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    digests = Digests(tmp_path / ".digests.json")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).write_text(name)
    known = digests.of_checkpoint(folder)
    (folder / "README.md").write_text("a card")
    (folder / "training_log.jsonl").write_text("{}")
    assert digests.of_checkpoint(folder) == known
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    assert digests.of_checkpoint(moved) == known
    (moved / "config.json").write_text("other")
    assert digests.of_checkpoint(moved) != known


# The lock.


def test_the_lock_is_free_again_after_use(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "run"):
            assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
            with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
                locked(tmp_path / "run").__enter__()


HOLDER = """
import sys, time
from pathlib import Path
from firstcli.runtime.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(
    finished: Finished, tmp_path: Path
) -> None:
    run = finished.copied_to(tmp_path)
    holder = command_line.python(HOLDER, run)
    try:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        command = ("report", finished.recipe, "--run-dir", run)
        first(*command).mistake(str(run), f"in use by process {holder.pid}", "--run-dir")
        assert first(*command, "--dry-run").code == 0
    finally:
        holder.kill()
        holder.wait()
    assert first(*command).code == 0


def test_an_older_lock_file_locks_nothing(finished: Finished, tmp_path: Path) -> None:
    run = finished.copied_to(tmp_path)
    (run / ".lock").write_text("1")
    assert first("report", finished.recipe, "--run-dir", run).code == 0


def test_a_manifest_records_what_it_was_made_with(finished: Finished) -> None:
    manifest = json.loads((finished.run / "students" / "first" / "manifest.json").read_text())
    assert manifest["unit"] == "distill first"
    assert manifest["seconds"] > 0
    assert {"python", "firstcli", "torch", "transformers"} <= manifest["versions"].keys()
    assert manifest["reads"]["student.training.epochs"] == "1.0"
    assert not any(
        "micro_batch_size" in key or "/" in str(manifest["reads"][key])
        for key in (manifest["reads"])
    )


@pytest.fixture
def linked(tmp_path: Path, digests: Digests) -> Artifact:
    """A finished folder that its user has moved to a different disk, with a link in its place."""
    artifact = Artifact(tmp_path / "students" / "first", True)
    make(artifact, digests, "1")
    disk = tmp_path / "disk"
    disk.mkdir()
    artifact.path.rename(disk / "moved")
    artifact.path.symlink_to(disk / "moved")
    return artifact


def test_a_linked_artifact_can_be_made_again_and_again(linked: Artifact, digests: Digests) -> None:
    for text in "2345":
        make(linked, digests, text, change=text)
        assert result_of(linked) == text and linked.manifest(digests)
        assert linked.path.is_symlink()  # it stays on the disk on which it was put
        assert [path.name for path in linked.path.resolve().parent.iterdir()] == ["moved"]
        assert [path.name for path in linked.path.parent.iterdir()] == ["first"]


def test_a_killed_commit_of_a_linked_artifact_is_finished(
    linked: Artifact, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    rename = os.rename
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            make(linked, digests, "2", change="2")
    linked.recover()
    assert result_of(linked) == "2" and linked.manifest(digests)


def test_a_linked_artifact_is_repaired_in_its_place(linked: Artifact, digests: Digests) -> None:
    linked.reopen([], fingerprint(READS))
    make(linked, digests, "2")
    assert result_of(linked) == "2" and linked.path.is_symlink()


def test_a_link_that_an_older_version_left_behind_is_no_obstacle(
    artifact: Artifact, digests: Digests, tmp_path: Path
) -> None:
    make(artifact, digests, "1")
    (artifact.path.parent / ".first.v2.old").symlink_to(tmp_path)
    make(artifact, digests, "2", change="2")
    assert result_of(artifact) == "2"
    assert digests.of_file(artifact.manifest_path)  # what the link pointed to is untouched


def test_a_link_to_an_absent_disk_is_an_error(linked: Artifact, tmp_path: Path) -> None:
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"first: a symbolic link to .*moved, which does not exist"):
        linked.recover()
