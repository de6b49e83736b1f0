"""`train.mixture` from the recipe to the student: the shares, what depends on them, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import inputs, mixing, teacher_knowledge
from firstcli.stages.distill import DISTILL
from firstcli.stages.extract import EXTRACT
from firstcli.training.soft_targets import positions_of
from firstcli.workspace.run import Run
from support.command_line import MODEL, TRAINING, WORLD, Finished, first, report, write_recipe

NONE = {"recalibrator": {"name": "none"}}


def world(seed: int, **options: Any) -> dict[str, Any]:
    small: Any = WORLD["options"]
    return {"name": "known-world", "options": {**small, "seed": seed, **options}}


MIXTURE: dict[str, Any] = {
    "tasks": {"old": world(1, train=64), "new": world(2)},
    "every": 3,
    "samples": 12,
}


def sections(**changes: Any) -> dict[str, Any]:
    train = {"mixture": MIXTURE, "validation": 0.3} | changes.pop("train", {})
    student = {"model": MODEL, "training": {**TRAINING, "epochs": 2}}
    arms = {"ddk": NONE, "plain": {**NONE, "mixture": False}, "fine-tune": {"learn": "labels"}}
    return {
        "train": {key: value for key, value in train.items() if value is not None},
        "evaluate": [{}],
        "student": student,
        "arms": arms,
        **changes,
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("mixed")
    path = write_recipe(folder, **sections())
    result = report(path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return Finished(path, folder / "run", result)


def log_of(folder: Path, arm: str, name: str) -> list[dict[str, Any]]:
    lines = (folder / "students" / arm / name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_shares_are_updated_logged_and_stated(mixed: Finished) -> None:
    log = log_of(mixed.run, "ddk", "mixture_log.jsonl")
    assert [entry["step"] for entry in log] == list(range(0, 3 * len(log), 3))
    for entry in log:
        assert entry["old"]["weight"] + entry["new"]["weight"] == pytest.approx(1)
        assert entry["old"]["teacher"] == log[0]["old"]["teacher"]
    last = log_of(mixed.run, "ddk", "training_log.jsonl")[-1]
    shares = {name: log[-1][name]["weight"] for name in ("old", "new")}
    assert {name: last[f"weight of {name}"] for name in shares} == shares
    manifest = json.loads((mixed.run / "students/ddk/manifest.json").read_text("utf-8"))
    assert manifest["facts"]["mixture"] == shares


def test_other_arms_learn_every_sample_once(mixed: Finished) -> None:
    for arm in ("plain", "fine-tune"):
        assert not (mixed.run / "students" / arm / "mixture_log.jsonl").exists()
        log = log_of(mixed.run, arm, "training_log.jsonl")
        assert not any(key.startswith("weight of") for entry in log for key in entry)
    steps = {
        arm: json.loads((mixed.run / "students" / arm / "manifest.json").read_text())["facts"]
        for arm in ("ddk", "plain")
    }
    assert steps["ddk"]["steps"] == steps["plain"]["steps"]
    assert steps["ddk"]["samples"] == steps["plain"]["samples"]


def opened(mixed: Finished) -> Run:
    return Run(load_recipe(mixed.recipe), mixed.run, Console(quiet=True))


def test_the_teachers_loss_is_that_of_the_stored_outcomes(mixed: Finished) -> None:
    run = opened(mixed)
    unit = next(u for u in DISTILL.units(run.recipe, run.folder) if u.arm == "ddk")
    plan = mixing.plan(run, unit)
    groups = {sample.id: sample.group for sample in run.training.train}
    rows = inputs.rows_of(run, unit)
    assert [plan.names[d] for d in plan.domain_of] == [groups[row.id] for row in rows]
    knowledge = teacher_knowledge.stored_knowledge(run, "validation")
    for samples, loss in zip(plan.held_out, plan.teacher, strict=True):
        assert 1 <= len(samples) <= 12
        expected = []
        for sample in samples:
            known = knowledge.of(sample)
            for n, token in enumerate(sample.targets):
                where = np.flatnonzero(known.token_ids[n] == token)
                log = known.log_probs[n][where[0]] if len(where) else known.log_tail[n]
                expected.append(-max(float(log), float(np.log(1e-12))))
        assert loss == pytest.approx(np.mean(expected), rel=1e-6)
        targets = plan.targets(list(samples))
        sums = targets.probabilities.sum(axis=1) + targets.tail
        assert np.array_equal(sums, np.ones_like(sums))
        assert len(sums) == len(positions_of(list(samples), knowledge).topk)


def test_a_smaller_period_redoes_only_the_students_that_follow_the_gap(mixed: Finished) -> None:
    result = first(
        *("distill", mixed.recipe, "--run-dir", mixed.run, "--dry-run"),
        *("--set", "train.mixture.every=4"),
    )
    assert result.code == 0, result.err
    assert "train.mixture.every" in result.out
    assert "distill plain" not in _stale(result.out) and "distill ddk" in _stale(result.out)


def _stale(plan: str) -> str:
    return "\n".join(line for line in plan.splitlines() if "up to date" not in line)


def test_the_resolved_recipe_can_be_read_again(mixed: Finished) -> None:
    recipe = load_recipe(mixed.run / "recipe.yaml")
    assert recipe == load_recipe(mixed.recipe)
    assert "task" not in recipe.resolved()["train"]


def test_validation_knowledge_is_extracted_only_for_arms_that_follow_the_gap(
    tmp_path: Path,
) -> None:
    def parts(arms: dict[str, Any]) -> list[str]:
        path = write_recipe(tmp_path, **sections(arms=arms))
        return [unit.key for unit in EXTRACT.units(load_recipe(path), tmp_path)]

    assert parts({"ddk": NONE}) == ["extract train", "extract validation"]
    assert parts({"plain": {**NONE, "mixture": False}}) == ["extract train"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"task": WORLD}}, "train.task: found besides `mixture`, which takes its place"),
        ({"train": {"mixture": None}}, "train.task: missing, expected a mapping with 'name'"),
        (
            {"train": {"mixture": {"tasks": {"old": WORLD}}}},
            "train.mixture.tasks: found a mapping, expected a mapping with at least 2 entr",
        ),
        (
            {"train": {"mixture": {**MIXTURE, "every": 0}}},
            "train.mixture.every: found 0, expected a whole number of at least 1",
        ),
        (
            {"train": {"mixture": {"tasks": {"old": WORLD, "new": {**WORLD, "chat": True}}}}},
            "train.mixture.tasks: 'old' and 'new' differ in `chat` or `system`",
        ),
        (
            {"train": {"validation": 0.0}},
            "arms.ddk: the gap to the teacher is measured on held-out",
        ),
        (
            {"arms": {"a": {"learn": "labels", "mixture": True}}},
            "arms.a.mixture: found true, but with 'learn: labels' there is no gap",
        ),
        (
            {"arms": {"a": {**NONE, "augment": True}}},
            "arms.a.augment: copies stand for samples once in an epoch",
        ),
        (
            {"knowledge": {"draws": 10}, "arms": {"a": NONE}},
            "knowledge.draws does not store them; leave that out, or set this arm's mixture: false",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = write_recipe(tmp_path, **sections(**changes))
    first("plan", path, "--run-dir", tmp_path / "run").mistake(expected)


def test_a_plan_warns_of_shares_that_are_computed_once(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, **sections(train={"mixture": {**MIXTURE, "every": 1000}}))
    result = first("plan", path, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    warned = " ".join((result.err + result.out).split())
    assert "train.mixture.every: ddk trains for" in warned
    assert "drawn from 2 domains by the gap" in warned


def test_an_arm_without_a_mixture_cannot_follow_it(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, arms={"a": {**NONE, "mixture": True}})
    first("plan", path, "--run-dir", tmp_path / "run").mistake("there is no train.mixture; add it")


def test_a_domain_without_held_out_samples_is_refused(tmp_path: Path) -> None:
    mixture = {**MIXTURE, "tasks": {"old": world(1, train=2), "new": world(2)}}
    path = write_recipe(tmp_path, **sections(train={"mixture": mixture, "validation": 0.01}))
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("train.mixture.tasks.old: train.validation (0.01) holds out none of its")
