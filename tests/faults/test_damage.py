"""Damaged knowledge: named in one sentence, and only damaged shards are rebuilt."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.knowledge import shards
from firstcli.knowledge.top_k import TopK
from firstcli.stages import scoring
from firstcli.stages.extract import EXTRACT
from firstcli.workspace.artifacts import Artifact, Digests
from support import command_line
from support.command_line import Finished, first
from workspace.test_artifacts import Killed, die_at

pytest_plugins = ["support.finished_runs"]

HARMED = "shard-00001.parquet"
Bytes = Mapping[str, bytes]


@pytest.fixture(scope="module")
def sharded(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with several training shards, and students that learned from them."""
    run = finished.copied_to(tmp_path_factory.mktemp("sharded"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firstcli.knowledge.store.SHARD_POSITIONS", 32)
        assert first("distill", finished.recipe, "--run-dir", run).code == 0
        result = first("extract", finished.recipe, "--run-dir", run, "--force")
    assert result.code == 0, result.err
    assert first("distill", finished.recipe, "--run-dir", run).code == 0
    assert len(list((run / "knowledge" / "train").glob("*.parquet"))) == 5
    return run


@pytest.fixture
def run(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("firstcli.knowledge.store.SHARD_POSITIONS", 32)
    return command_line.copy_run(sharded, tmp_path / "run")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip one bit of the data, before the footer; size and time stay the same."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip_and_touch(path: Path) -> None:
    flip(path)
    os.utime(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def knowledge_of(run: Path) -> Bytes:
    found = command_line.contents(run / "knowledge", but=["manifest.json"])
    assert all(name.endswith((".parquet", "/concentration.json")) for name in found)
    return found


def identities(run: Path) -> dict[str, tuple[int, int]]:
    """Return the inode and the modification time of each shard."""
    found = {}
    for path in sorted((run / "knowledge").rglob("*.parquet")):
        stat = path.stat()
        found[path.relative_to(run / "knowledge").as_posix()] = (stat.st_ino, stat.st_mtime_ns)
    return found


HARMS: Mapping[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "one bit": flip_and_touch,
    "one bit, same time": flip,
    "missing": Path.unlink,
}


@pytest.mark.parametrize("harm", HARMS)
def test_only_the_damaged_shard_is_named_and_rebuilt(
    finished: Finished, run: Path, harm: str
) -> None:
    before, whose = knowledge_of(run), identities(run)
    HARMS[harm](run / "knowledge" / "train" / HARMED)
    options = (finished.recipe, "--run-dir", run)
    if harm == "one bit, same time":  # reading finds it: see the next test
        assert first("extract", *options).code == 0
    else:
        message = (
            "knowledge/train",
            HARMED,
            f"`first extract {finished.recipe} --run-dir {run} --repair`",
            "--force",
        )
        for stage in ("extract", "distill"):
            first(stage, *options).mistake(*message)
        assert "damaged: 'shard-00001.parquet'" in first("plan", *options).out
    result = first("extract", *options, "--repair")
    assert result.code == 0, result.err
    assert f"'{HARMED}': damaged or missing; will be rebuilt" in result.out
    assert knowledge_of(run) == before
    now = identities(run)
    assert [name for name in whose if whose[name] != now[name]] == [f"train/{HARMED}"]
    assert "everything is up to date" in first("distill", *options).out
    assert "everything is up to date" in first("extract", *options, "--repair").out


def test_a_flipped_bit_is_detected_when_the_shard_is_read(finished: Finished, run: Path) -> None:
    path = run / "knowledge" / "train" / HARMED
    flip(path)
    command = ("distill", finished.recipe, "--run-dir", run, "--force")
    first(*command).mistake(str(path), "is damaged; run `first extract --repair`")
    assert first("extract", finished.recipe, "--run-dir", run, "--repair").code == 0
    assert first(*command).code == 0


def test_force_redoes_all(finished: Finished, run: Path) -> None:
    before, whose = knowledge_of(run), identities(run)
    truncate(run / "knowledge" / "train" / HARMED)
    result = first("extract", finished.recipe, "--run-dir", run, "--force")
    assert result.code == 0, result.err
    assert knowledge_of(run) == before
    assert not set(whose.values()) & set(identities(run).values())


def test_several_shards_of_both_parts(finished: Finished, run: Path) -> None:
    before = knowledge_of(run)
    flip(run / "knowledge" / "train" / "shard-00000.parquet")
    (run / "knowledge" / "train" / "shard-00004.parquet").unlink()
    truncate(run / "knowledge" / "validation" / "shard-00000.parquet")
    assert first("extract", finished.recipe, "--run-dir", run, "--repair").code == 0
    assert knowledge_of(run) == before


@contextmanager
def changing_a_shard(change: Callable[[Path, Any], None]) -> Iterator[None]:
    """Write one shard differently, under a manifest that takes it for the right one."""
    real = shards.write_shard

    def write(path: Path, rows: Any, known: list[TopK], *facts: Any) -> None:
        if path.name != HARMED or path.parent.name != ".train.partial":
            real(path, rows, known, *facts)
        else:
            change(path, lambda other: real(path, rows, [other(one) for one in known], *facts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "write_shard", write)
        yield


def test_a_shard_that_was_damaged_before_its_manifest_was_written(
    finished: Finished, run: Path
) -> None:
    def spoilt(path: Path, write: Any) -> None:
        write(lambda known: known)
        flip(path)

    before = knowledge_of(run)
    options = (finished.recipe, "--run-dir", run)
    with changing_a_shard(spoilt):
        assert first("extract", *options, "--force").code == 0
    message = f"{run / 'knowledge' / 'train' / HARMED}: this shard of knowledge is damaged"
    first("distill", *options).mistake(message, "run `first extract --repair`")
    assert first("extract", *options, "--repair").code == 0
    assert knowledge_of(run) == before


def newer(path: Path, write: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "VERSION", shards.VERSION + 1)
        write(lambda known: known)


def test_a_shard_of_a_newer_version(finished: Finished, run: Path) -> None:
    before = knowledge_of(run)
    options = (finished.recipe, "--run-dir", run)
    with changing_a_shard(newer):
        assert first("extract", *options, "--force").code == 0
    first("distill", *options).mistake(HARMED, "written by a newer firstcli", "upgrade firstcli")
    assert first("extract", *options, "--repair").code == 0
    assert knowledge_of(run) == before


def edited(run: Path, **changes: object) -> Path:
    """Change a manifest of the knowledge."""
    path = run / "knowledge" / "train" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return path


def test_a_manifest_of_a_newer_version(finished: Finished, run: Path) -> None:
    before = knowledge_of(run)
    path = edited(run, format=99)
    for command in (("extract",), ("extract", "--repair"), ("distill",), ("plan",)):
        result = first(*command, finished.recipe, "--run-dir", run)
        result.mistake(str(path), "written by a newer firstcli (format 99", "upgrade firstcli")
    assert knowledge_of(run) == before


def test_knowledge_that_a_newer_version_made_is_not_overwritten(
    finished: Finished, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (finished.recipe, "--run-dir", run)
    with monkeypatch.context() as patch:
        patch.setattr(EXTRACT, "format", EXTRACT.format + 1)
        assert first("extract", *options).code == 0
    before = command_line.contents(run / "knowledge")
    for command in ("extract", "distill"):
        result = first(command, *options)
        assert result.code == 2 and len(result.errors) == 2
        for part, message in zip(("train", "validation"), result.errors, strict=True):
            assert f"knowledge/{part}: made by a newer firstcli" in message
            assert "upgrade firstcli" in message and "--force" in message
    assert command_line.contents(run / "knowledge") == before
    assert first("extract", *options, "--force").code == 0


@pytest.mark.parametrize("harm", [truncate, lambda path: edited(path.parents[2], fingerprint="0")])
def test_a_damaged_manifest_does_not_let_all_be_redone_unasked(
    finished: Finished, run: Path, harm: Callable[[Path], object]
) -> None:
    path = run / "knowledge" / "train" / "manifest.json"
    harm(path)
    before = knowledge_of(run)
    for command in (("extract",), ("extract", "--repair"), ("distill",)):
        result = first(*command, finished.recipe, "--run-dir", run)
        result.mistake("knowledge/train", "'manifest.json'", "--force` rebuilds everything")
    assert first("extract", finished.recipe, "--run-dir", run, "--force").code == 0
    assert knowledge_of(run) == before


def test_a_repair_of_an_earlier_versions_run_keeps_what_is_sound(
    finished: Finished, run: Path
) -> None:
    """Its manifests record fewer inputs, so their fingerprints differ from today's."""
    command_line.as_format_1(run)
    before = identities(run)
    truncate(run / "knowledge" / "train" / HARMED)
    result = first("extract", finished.recipe, "--run-dir", run, "--repair")
    assert result.code == 0, result.err
    after = identities(run)
    assert {name for name in before if before[name] != after[name]} == {f"train/{HARMED}"}


def test_a_repair_that_is_killed_keeps_what_is_sound(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die before every step of reopening a folder, and reopen again."""
    for at in range(100):
        folder = tmp_path / str(at) / "train"
        shutil.copytree(sharded / "knowledge" / "train", folder)
        artifact, digests = Artifact(folder, True), Digests()
        fingerprint = json.loads((folder / "manifest.json").read_text("utf-8"))["fingerprint"]
        truncate(folder / HARMED)
        with monkeypatch.context() as patch:
            killed = die_at(patch, at)
            with suppress(Killed):
                artifact.reopen([HARMED], fingerprint)
        artifact.recover()
        if damaged := artifact.damage(digests):
            assert damaged == [HARMED]
            artifact.reopen(damaged, fingerprint)
        assert not folder.exists()
        work = artifact.begin(fingerprint)
        assert {path.name for path in work.glob("*")} == {
            *(f"shard-0000{index}.parquet" for index in (0, 2, 3, 4)),
            ".fingerprint",
            "concentration.json",
        }
        if not killed:
            return
    pytest.fail("it never ended")


# `--verify`.


@pytest.mark.parametrize("options", [(), ("--repair",)])
def test_without_its_manifest_nothing_is_rebuilt_without_force(
    finished: Finished, run: Path, options: tuple[str, ...]
) -> None:
    """Nothing records what the shards were made from, or whether they are sound."""
    (run / "knowledge" / "train" / "manifest.json").unlink()
    truncate(run / "knowledge" / "train" / HARMED)
    before = identities(run)
    command = ("extract", finished.recipe, "--run-dir", run)
    first(*command, *options).mistake("manifest.json", "damaged or missing", "--force")
    assert identities(run) == before
    assert first(*command, "--force").code == 0


def test_a_repair_for_a_different_recipe_rebuilds_all_and_keeps_the_old_until_then(
    finished: Finished, run: Path
) -> None:
    """The old shards stay until the new ones are complete, like any stale artifact."""
    truncate(run / "knowledge" / "train" / HARMED)
    command = ("extract", finished.recipe, "--run-dir", run, "--set", "knowledge.top_k=4")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shards, "write_shard", die)
        first(*command, "--repair")
    assert len(list((run / "knowledge" / "train").glob("*.parquet"))) == 5
    assert first(*command, "--repair").code == 0


def die(*_: object) -> None:
    raise Killed


def test_samples_are_verified_in_their_usual_batches(
    finished: Finished, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a different batch moves probabilities by more than any precision's bound."""
    scored: list[frozenset[str]] = []

    def noted(reader: Any, rows: Any, *args: Any, real: Any = scoring.top_k_of) -> Any:
        scored.append(frozenset(row.id for row in rows))
        return real(reader, rows, *args)

    monkeypatch.setattr(scoring, "top_k_of", noted)
    monkeypatch.setattr(scoring, "EXTRACTION_TOKENS", 200)
    command = ("extract", finished.recipe, "--run-dir", run)
    assert first(*command, "--force").code == 0
    extracted = set(scored)
    scored.clear()
    assert first(*command, "--verify", 3).code == 0
    assert scored and set(scored) <= extracted
    assert any(len(ids) > 1 for ids in scored)


def test_sound_knowledge_is_verified_without_being_rebuilt(
    finished: Finished, run: Path, work: list[str]
) -> None:
    before = command_line.times(run / "knowledge")
    options = ("--run-dir", run, "--verify", 20, "--json")
    result = first("extract", finished.recipe, *options)
    assert result.code == 0, result.err
    assert work == [] and command_line.times(run / "knowledge") == before
    found = result.json["verified"]
    assert found.keys() == {"extract train", "extract validation"}
    for part in found.values():
        assert part["samples"] == 20
        assert part["probability"] <= part["bound"]
    shown = first("extract", finished.recipe, *options[:-1]).out
    assert "extract train: 20 samples, 40 positions scored again; largest difference" in shown


def test_verifying_more_than_there_is_verifies_all(finished: Finished, run: Path) -> None:
    result = first("extract", finished.recipe, "--run-dir", run, "--verify", 1000, "--json")
    assert [part["samples"] for part in result.json["verified"].values()] == [66, 30]


@pytest.mark.parametrize("precision", ["standard", "compact"])
@pytest.mark.parametrize("times", [0.4, 3.0])  # the bound of the precision
def test_probabilities_of_a_different_teacher_are_detected(
    finished: Finished, run: Path, precision: str, times: float
) -> None:
    """Everything about the shard is right except its probabilities."""
    from firstcli.knowledge.codec import BOUNDS

    bound = BOUNDS[precision]  # type: ignore[index]

    def planted(path: Path, write: Any) -> None:
        write(lambda known: moved(known, times * bound))

    options = ("--run-dir", run, "--set", f"knowledge.precision={precision}")
    with changing_a_shard(planted):
        assert first("extract", finished.recipe, *options, "--force").code == 0
    assert first("extract", finished.recipe, *options).code == 0
    result = first("extract", finished.recipe, *options, "--verify", 1000, "--json")
    if times < 1:
        assert result.code == 0, result.err
        return
    message = ("knowledge/train: the teacher now gives sample '", "differs by", f"the {bound:g} of")
    result.mistake(*message, "`first extract --force`")


def moved(known: TopK, by: float) -> TopK:
    """Move some probability from the tail, which holds most of it, to the most likely token."""
    probs = np.exp(known.log_probs, dtype=np.float64)
    probs[:, 0] += by
    tail = np.exp(known.log_tail, dtype=np.float64) - by
    return replace(known, log_probs=np.log(probs).astype("f4"), log_tail=np.log(tail).astype("f4"))
