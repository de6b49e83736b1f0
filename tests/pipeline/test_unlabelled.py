"""Samples without a label: only students that learn from a teacher use them, at one position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.knowledge.store import Knowledge
from firstcli.recipe.load import load_recipe
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import units_of
from firstcli.workspace.data_decisions import state_data
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import Result, copy_run, first, of_files, sums, write_rows

ARMS = {
    "fine-tune": {"learn": "labels"},
    "first": {"recalibrator": {"name": "temperature-scaling"}},
}
EVALUATION = "multiple-choice"


def without_answers(count: int, first: int) -> list[dict[str, Any]]:
    return [row | {"answer": " "} for row in sums(count, first)]


def plain_recipe(folder: Path, data: Path, **train: Any) -> Path:
    """Write a recipe without `evaluate`: the training task's test split is evaluated."""
    folder.mkdir(exist_ok=True)
    return command_line.write_recipe(
        folder, train={"task": of_files(data), "validation": 0.3, **train}, evaluate=None, arms=ARMS
    )


@dataclass(frozen=True)
class Job:
    """A run with unlabelled samples, made from a finished run without them."""

    recipe: Path
    run: Path
    before: Path
    result: Result
    worked_on: list[str]

    def opened(self) -> Run:
        return Run(load_recipe(self.recipe), self.run, Console(quiet=True))

    def manifest(self, key: str) -> Any:
        unit = units_of(self.opened().recipe, self.run)[key]
        return json.loads(unit.artifact.manifest_path.read_text("utf-8"))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """First labelled rows alone; then also 6 rows without an answer, and 10 rows in a file.

    The file's ids occur in the training split, too, and one of its prompts has a label there.
    """
    folder = tmp_path_factory.mktemp("unlabelled")
    write_rows(folder / "labelled" / "train.jsonl", sums(60))
    write_rows(folder / "more" / "train.jsonl", [*sums(60), *without_answers(6, 200)])
    for data in ("labelled", "more"):
        write_rows(folder / data / "test.jsonl", sums(20, 100))
    rows = [{"id": f"q{i}", "question": f"{i} - {i}?", "choices": ["0", "no"]} for i in range(10)]
    pool = write_rows(folder / "pool.jsonl", [*rows, sums(1)[0] | {"id": "again"}])
    before = folder / "before"
    done = first("distill", plain_recipe(folder / "a", folder / "labelled"), "--run-dir", before)
    assert done.code == 0, done.err
    run = copy_run(before, folder / "run")
    recipe = plain_recipe(folder / "b", folder / "more", unlabelled={"path": str(pool)})
    with pytest.MonkeyPatch.context() as patch, command_line.recorded_work(patch) as keys:
        result = first("report", recipe, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    yield Job(recipe, run, before, result, list(keys))


def test_only_students_of_a_teacher_are_trained_again(job: Job) -> None:
    """Teacher, calibration and the arm that learns labels do not depend on unlabelled samples."""
    models = ("teacher", *ARMS)
    evaluations = {f"eval {EVALUATION}/{model}" for model in models}  # which were not made before
    assert set(job.worked_on) == {"extract unlabelled", "distill first", "report", *evaluations}
    assert command_line.pending(job.recipe, "--run-dir", job.run) == set()


def test_knowledge_of_unlabelled_samples_is_a_part_with_one_position_each(job: Job) -> None:
    knowledge = job.run / "knowledge" / "unlabelled"
    assert len(Knowledge(knowledge)) == 16
    facts = job.manifest("extract unlabelled")["facts"]
    assert facts["samples"] == facts["positions"] == facts["judged"] == 16
    assert 0 < facts["confidence"] <= 1
    assert "accuracy" not in facts  # nothing says what is right
    assert not (knowledge / "concentration.json").exists()


def test_unlabelled_samples_are_counted(job: Job) -> None:
    units = planned(job.recipe)
    assert "16 samples, 16 positions" in units["extract unlabelled"]
    labelled = len(job.opened().training.train)
    assert f"{labelled + 16} samples (16 unlabelled)," in units["distill first"]
    assert f"{labelled} samples," in units["distill fine-tune"]
    facts = job.manifest("distill first")["facts"]
    assert (facts["samples"], facts["unlabelled"]) == (labelled + 16, 16)
    card = (job.run / "students" / "first" / "README.md").read_text("utf-8")
    assert f"{labelled} training samples;" in card
    assert "16 more samples have no label" in card
    assert "no label" not in (job.run / "students" / "fine-tune" / "README.md").read_text("utf-8")
    notes = {note["label"]: note["value"] for note in job.result.json["result"]["notes"]}
    assert notes["data"].startswith(f"{labelled} training samples; ")
    assert notes["unlabelled data"].startswith("16 samples without a label")
    assert "1 of 17 unlabelled rows are left out, because their prompts also" in job.result.err


def test_parts_share_no_id_and_labelled_rows_are_cut_as_without_the_others(job: Job) -> None:
    training = job.opened().training
    recipe = load_recipe(job.before.parent / "a" / "recipe.yaml")
    plain = Run(recipe, job.before, Console(quiet=True))
    for part in ("train", "validation"):
        assert list(training.part(part)) == list(plain.training.part(part))
    ids = [s.id for s in (*training.train, *training.validation, *training.unlabelled)]
    assert len(set(ids)) == len(ids) == 60 + 16
    assert "unlabelled/q0" in ids
    assert all(s.answer is None and not s.response for s in training.unlabelled)


def test_knowledge_is_verified_and_repaired(job: Job, tmp_path: Path) -> None:
    run = copy_run(job.run, tmp_path / "run")
    verified = first("extract", job.recipe, "--run-dir", run, "--verify", 4, "--json")
    assert verified.json["verified"]["extract unlabelled"]["samples"] == 4
    shard = run / "knowledge" / "unlabelled" / "shard-00000.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    first("extract", job.recipe, "--run-dir", run).mistake("shard-00000.parquet", "--repair")
    repaired = first("extract", job.recipe, "--run-dir", run, "--repair")
    assert repaired.code == 0, repaired.err
    assert shard.read_bytes() == content


def test_with_folds_the_teacher_itself_scores_unlabelled_samples(job: Job) -> None:
    """It has not seen them; the labelled samples come from the teachers of the folds."""
    recipe = load_recipe(job.recipe, ["knowledge.folds=2"])
    units = units_of(recipe, job.run)
    assert units["extract unlabelled"].needs == ("finetune",)
    needs = units["distill first"].needs
    assert needs == ("extract out-of-fold", "extract unlabelled", "calibrate first")
    assert units["distill fine-tune"].needs == ()


@pytest.mark.parametrize(
    ("override", "count"),
    [("train.unlabelled.limit=0", None), ("train.unlabelled.limit=8", 8), ("train.limit=61", 11)],
)
def test_limits(job: Job, override: str, count: int | None) -> None:
    """`train.unlabelled.limit` counts all unlabelled rows, those of the training split first."""
    shown = first("plan", job.recipe, "--json", "--set", override)
    assert shown.code == 0, shown.err
    units = {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}
    assert ("extract unlabelled" in units) == (count is not None)
    if count:
        assert f"{count} samples, {count} positions" in units["extract unlabelled"]


# Rows without a label in the training split alone.


def recipe_of(folder: Path, rows: list[Any], **sections: Any) -> Path:
    write_rows(folder / "mc" / "train.jsonl", rows)
    write_rows(folder / "mc" / "test.jsonl", sums(20, 100))
    whole = {"task": of_files(folder / "mc"), "validation": 0.3, **sections.pop("train", {})}
    return command_line.write_recipe(folder, train=whole, evaluate=None, **sections)


def planned(path: Path, *args: object) -> dict[str, str]:
    shown = first("plan", path, "--json", *args)
    assert shown.code == 0, shown.err
    return {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}


def test_rows_without_a_label_need_no_key_in_the_recipe(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, [*sums(40), *without_answers(5, 200)])
    assert "5 samples, 5 positions" in planned(path)["extract unlabelled"]
    labels = {"fine-tune": {"learn": "labels"}}
    shown = first("plan", recipe_of(tmp_path, [*sums(40), *without_answers(5, 200)], arms=labels))
    assert "extract" not in shown.out
    assert "5 rows without a label are not used, because no arm learns from a teacher" in shown.err
    assert "extract unlabelled" not in planned(recipe_of(tmp_path, sums(40)))


def test_the_resolved_recipe_says_that_there_are_unlabelled_rows(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, [*sums(40), *without_answers(5, 200)])
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    assert run.recipe.train.unlabelled is None
    state_data(run)
    assert run.recipe.train.unlabelled is not None
    assert Recipe.model_validate(run.recipe.resolved()) == run.recipe


def test_rows_without_a_label_are_left_out_of_an_evaluation(tmp_path: Path) -> None:
    path = recipe_of(tmp_path, sums(40))
    write_rows(tmp_path / "mc" / "test.jsonl", [*sums(20, 100), *without_answers(3, 400)])
    shown = first("plan", path, "--json")
    units = {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}
    assert units[f"eval {EVALUATION}/first"].startswith("20 questions; about ")
    assert "3 of 23 rows are left out, because they have no label" in shown.err


# Refusals.


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        (
            {"task": {"name": "instruction", "options": {"path": "x.jsonl"}}, "unlabelled": {}},
            ("train.unlabelled", "task 'instruction' has no candidates"),
        ),
        (
            {"task": command_line.WORLD, "unlabelled": {"path": "pool.jsonl"}},
            ("train.unlabelled", "task 'known-world' reads no files without labels"),
        ),
        ({"unlabelled": {"path": "missing.jsonl"}}, ("missing.jsonl: there is no such file",)),
        ({"unlabelled": {"path": "same.jsonl"}}, ("train.unlabelled: there is no row to use",)),
    ],
)
def test_refused_unlabelled_data(
    tmp_path: Path, train: dict[str, Any], parts: tuple[str, ...]
) -> None:
    write_rows(tmp_path / "same.jsonl", sums(3))
    arms = {"a": {"recalibrator": {"name": "none"}}}
    path = recipe_of(tmp_path, sums(40), train=train, arms=arms)
    result = first("plan", path)
    assert result.code == 2
    assert any(all(part in error for part in parts) for error in result.errors), result.err


def test_some_rows_must_have_a_label(tmp_path: Path) -> None:
    first("plan", recipe_of(tmp_path, without_answers(9, 0))).mistake(
        "no row of the training split has a label"
    )


def test_an_id_that_stands_for_an_unlabelled_row_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "pool.jsonl", [sums(1, 300)[0] | {"id": "x"}])
    rows = [*sums(20), sums(1, 50)[0] | {"id": "unlabelled/x"}]
    path = recipe_of(tmp_path, rows, train={"unlabelled": {"path": "pool.jsonl"}})
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    with pytest.raises(UserError, match=r"sample ids such as 'unlabelled/x' .*; rename them"):
        _ = run.training
