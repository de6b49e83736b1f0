"""Runs with `knowledge.draws`: facts, report, card, repeated draws and mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from firstcli.knowledge import draws, store
from firstcli.knowledge.store import Knowledge
from support import command_line
from support.command_line import first

NONE = {"name": "none"}
N = 12
ARMS = {"fine-tune": {"learn": "labels"}, "drawn": {"recalibrator": NONE}}
KNOWLEDGE = {"draws": N}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("draws")
    path = command_line.write_recipe(folder, arms=ARMS, knowledge=KNOWLEDGE)
    result = command_line.report(path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    said = " ".join(result.out.split())
    assert f"{N} draws per position" in said and "different tokens" in said
    assert "hold" not in said
    return path, folder / "run"


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def test_the_store_holds_counts_of_all_draws(done: tuple[Path, Path]) -> None:
    knowledge = Knowledge(done[1] / "knowledge" / "train")
    assert knowledge.top_k == N
    facts = manifest(done[1] / "knowledge" / "train")["facts"]
    assert 1 <= facts["mean_distinct"] <= N
    assert facts["judged"] == 0 and "accuracy" not in facts
    assert facts["mean_top_k_mass"] == 1 and facts["max_probability_error"] == 0
    assert not (done[1] / "knowledge" / "train" / "concentration.json").exists()
    assert not (done[1] / "knowledge" / "validation").exists()  # nothing is fitted


def test_report_and_card_say_what_was_learned(done: tuple[Path, Path]) -> None:
    card = " ".join((done[1] / "students" / "drawn" / "README.md").read_text("utf-8").split())
    assert f"learns {N} tokens drawn at each position from a teacher of family scratch" in card
    assert "top 5" not in card and "P is the teacher" not in card
    page = " ".join((done[1] / "report" / "index.html").read_text("utf-8").split())
    assert f"{N} draws per position of the teacher&#39;s whole distribution" in page.replace(
        "'", "&#39;"
    )
    facts = manifest(done[1] / "students" / "drawn")["facts"]
    assert "P" not in facts and "Q" not in facts


def test_verify_draws_again(done: tuple[Path, Path]) -> None:
    path, run = done
    result = first("extract", path, "--run-dir", run, "--verify", "20", "--json")
    assert result.code == 0, result.err
    verified = result.json["verified"]["extract train"]
    assert verified["samples"] == 20 and verified["changed"] == 0
    assert "drawn again; 0 of the draws differ" in " ".join(result.err.split())


def test_verify_notices_another_teacher(
    done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = done
    again = draws.uniforms
    monkeypatch.setattr(draws, "uniforms", lambda id, *rest: again(id + "!", *rest))
    result = first("extract", path, "--run-dir", run, "--verify", "20")
    result.mistake("of the draws now give another token", "first extract --force")


def test_what_makes_draws_stale(done: tuple[Path, Path]) -> None:
    """Their number and the seed do; `top_k` does not."""
    path, run = done

    def pending(*options: str) -> bool:
        told = first("extract", path, "--run-dir", run, "--dry-run", *options)
        assert told.code == 0, told.err
        return "everything is up to date" not in told.out

    assert not pending() and not pending("--set", "knowledge.top_k=3")
    assert pending("--set", f"knowledge.draws={N + 1}")
    assert pending("--set", "seed=8")


def test_packed_batches_change_no_draw(tmp_path: Path, done: tuple[Path, Path]) -> None:
    packed = {**KNOWLEDGE, "batching": "packed"}
    path = command_line.write_recipe(tmp_path, arms=ARMS, knowledge=packed)
    result = first("extract", path, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    one, other = (f / "knowledge/train/shard-00000.parquet" for f in (done[1], tmp_path / "run"))
    assert one.read_bytes() == other.read_bytes()


def test_a_repaired_part_holds_the_same_draws(
    tmp_path: Path, done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are drawn by themselves, in any order, as by several processes."""
    monkeypatch.setattr(store, "SHARD_POSITIONS", 40)
    path, run = done[0], command_line.copy_run(done[1], tmp_path / "run")
    assert first("extract", path, "--run-dir", run, "--force").code == 0
    files = sorted((run / "knowledge" / "train").glob("*.parquet"))
    before = {file: file.read_bytes() for file in files}
    assert len(files) > 2
    files[1].unlink()
    assert first("extract", path, "--run-dir", run, "--repair").code == 0
    assert {file: file.read_bytes() for file in files} == before


def test_the_plan_counts_the_size_of_draws(tmp_path: Path) -> None:
    """To a factor of 3, because how many tokens differ depends on a teacher that is not there."""
    estimates = []
    for count in (5, 50):
        path = command_line.write_recipe(tmp_path, arms=ARMS, knowledge={"draws": count})
        planned = first("plan", path, "--run-dir", tmp_path / "run", "--probe", "--json")
        assert planned.code == 0, planned.err
        estimates.append(planned.json["probe"]["extract train"]["disk"])
    assert estimates[0] < estimates[1]
    assert first("extract", path, "--run-dir", tmp_path / "run").code == 0
    files = (tmp_path / "run" / "knowledge" / "train").glob("*.parquet")
    stored = sum(file.stat().st_size for file in files)
    assert stored / 3 < estimates[1] < 3 * stored


MISTAKES: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [
    ("recalibrator", {"recalibrator": {"name": "temperature-scaling"}}, ("use 'none'",)),
    ("preset", {"preset": "first-plus"}, ("'logit-temperature'",)),
    ("objective", {"objective": "hard-gate"}, ("use 'topk-tail'",)),
    ("objective", {"objective": "topk-renormalized"}, ("use 'topk-tail'",)),
    ("top_k", {"top_k": 2}, ("leave it out",)),
    ("recalibrate", {"recalibrate": "all"}, ("leave it out",)),
]


@pytest.mark.parametrize(("key", "arm", "parts"), MISTAKES)
def test_what_an_arm_cannot_do_with_draws(
    tmp_path: Path, key: str, arm: Mapping[str, Any], parts: tuple[str, ...]
) -> None:
    path = command_line.write_recipe(tmp_path, arms={"a": dict(arm)}, knowledge=KNOWLEDGE)
    first("plan", path).mistake(f"arms.a.{key}", "knowledge.draws", *parts)


def test_a_mean_of_teachers_has_no_draws(tmp_path: Path) -> None:
    teacher = {"model": command_line.MODEL, "finetune": command_line.TRAINING, "seeds": [1, 2]}
    arms = {"a": {"recalibrator": NONE, "teachers": "mean"}}
    path = command_line.write_recipe(tmp_path, arms=arms, teacher=teacher, knowledge=KNOWLEDGE)
    first("plan", path).mistake("arms.a.teachers", "knowledge.draws", "'mean'")


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"draws": 0}, ("knowledge.draws", "0")),
        ({"draws": 1001}, ("knowledge.draws", "1000")),
        ({"draws": 5, "over": "candidates"}, ("knowledge.draws", "knowledge.over")),
    ],
)
def test_what_draws_cannot_be(
    tmp_path: Path, section: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = command_line.write_recipe(tmp_path, arms=ARMS, knowledge=section)
    first("plan", path).mistake(*parts)
