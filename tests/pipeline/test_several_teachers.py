"""Arms that learn the mean of several teachers, which differ in the seed of their fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.errors import UserError
from firstcli.knowledge.mean import mean_of
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import inputs, teacher_knowledge, train_model, units_of
from firstcli.stages.distill import DISTILL
from firstcli.training import soft_targets
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import MODEL, TRAINING, Finished, copy_run

ARMS: dict[str, Any] = {
    "first": {"recalibrator": {"name": "temperature-scaling"}},
    "mean": {"recalibrator": {"name": "temperature-scaling"}, "teachers": "mean"},
}
FURTHER = {"finetune seed 8", "extract train seed 8", "extract validation seed 8"}
OF_MEAN = {"calibrate mean", "distill mean"}


def several(seeds: list[int]) -> dict[str, Any]:
    return {"model": MODEL, "finetune": TRAINING, "seeds": seeds}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Finished, list[str]]]:
    """An arm is added to a finished run, which learns from one more teacher."""
    folder = tmp_path_factory.mktemp("teachers")
    one = command_line.write_recipe(folder, arms={"first": ARMS["first"]})
    done = command_line.report(one, "--run-dir", folder / "run")
    assert done.code == 0, done.err
    recipe = command_line.write_recipe(folder, arms=ARMS, teacher=several([7, 8]))
    with pytest.MonkeyPatch.context() as patch, command_line.recorded_work(patch) as keys:
        result = command_line.report(recipe, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    yield Finished(recipe, folder / "run", result), list(keys)


def opened(job: Finished) -> Run:
    return Run(load_recipe(job.recipe), job.run, Console(quiet=True))


def test_another_teacher_redoes_nothing(job: tuple[Finished, list[str]]) -> None:
    finished, worked_on = job
    evaluations = {"eval known-world/mean", "eval shifted/mean"}
    assert set(worked_on) == FURTHER | OF_MEAN | evaluations | {"report"}
    assert command_line.pending(finished.recipe, "--run-dir", finished.run) == set()


def test_the_arm_depends_on_all_teachers_and_others_on_the_first(
    job: tuple[Finished, list[str]],
) -> None:
    recipe = load_recipe(job[0].recipe)
    units = units_of(recipe, job[0].run)
    assert units["distill first"].needs == ("extract train", "calibrate first")
    assert units["distill mean"].needs == (
        *("extract train", "extract train seed 8"),
        "calibrate mean",
    )
    assert units["calibrate mean"].needs == ("extract validation", "extract validation seed 8")
    manifest = json.loads(units["distill mean"].artifact.manifest_path.read_text("utf-8"))
    assert manifest["reads"]["arms.mean.teachers"] == "mean"
    other = json.loads(units["distill first"].artifact.manifest_path.read_text("utf-8"))
    assert not [key for key in other["reads"] if key.endswith("teachers")]


def test_the_teachers_differ_in_their_seed_and_the_arm_learns_their_mean(
    job: tuple[Finished, list[str]],
) -> None:
    run = opened(job[0])
    rows = inputs.training_rows(run, "teacher", "train")
    knowledge = teacher_knowledge.knowledge_of(run, run.recipe.arms["mean"])
    each = [teacher_knowledge.stored_knowledge(run, "train", seed) for seed in (None, 8)]
    for row in list(rows)[:5]:
        one, other = (part.of(row) for part in each)
        assert not np.array_equal(one.log_probs, other.log_probs)
        found, expected = knowledge.of(row), mean_of([one, other])
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
    only = teacher_knowledge.knowledge_of(run, run.recipe.arms["first"])
    np.testing.assert_array_equal(only.of(rows[0]).log_probs, each[0].of(rows[0]).log_probs)
    _, validation = teacher_knowledge.validation_knowledge(run, run.recipe.arms["mean"])
    row = inputs.training_rows(run, "teacher", "validation")[0]
    both = [
        teacher_knowledge.stored_knowledge(run, "validation", seed).of(row) for seed in (None, 8)
    ]
    np.testing.assert_array_equal(validation.of(row).log_probs, mean_of(both).log_probs)


def test_the_report_says_what_the_arm_learned_from(job: tuple[Finished, list[str]]) -> None:
    notes = {note["label"]: note["value"] for note in job[0].result.json["result"]["notes"]}
    assert "learned the mean of 2 teachers, of seeds 7, 8" in json.dumps(
        job[0].result.json["result"]["notes"]
    )
    assert notes
    card = (job[0].run / "students" / "mean" / "README.md").read_text("utf-8")
    assert "2 teachers" in card


def test_another_order_of_further_seeds_changes_nothing(
    job: tuple[Finished, list[str]], tmp_path: Path
) -> None:
    """The first of the seeds is the teacher of all other arms, so it does matter."""
    run = copy_run(job[0].run, tmp_path / "run")
    recipe = command_line.write_recipe(tmp_path, arms=ARMS, teacher=several([7, 9, 8]))
    pending = command_line.pending(recipe, "--run-dir", run)
    assert pending >= {"finetune seed 9", "extract train seed 9", *OF_MEAN}
    assert not pending & (FURTHER | {"finetune", "extract train", "distill first"})


@pytest.mark.parametrize(
    ("sections", "key", "problem"),
    [
        ({"teacher": several([])}, "arms.mean.teachers", "there is only one teacher"),
        (
            {"knowledge": {"folds": 2}},
            "arms.mean.teachers",
            "set this arm's out_of_fold: false",
        ),
        ({"teacher": several([1, 1])}, "teacher.seeds", "without repetition"),
        ({"teacher": {"model": MODEL, "seeds": [1, 2]}}, "teacher.seeds", "no teacher.finetune"),
        (
            {"arms": {"a": {"learn": "labels", "teachers": "mean"}}},
            "arms.a.teachers",
            "has no effect with 'learn: labels'",
        ),
    ],
)
def test_mistakes(tmp_path: Path, sections: dict[str, Any], key: str, problem: str) -> None:
    given = {"arms": ARMS, "teacher": several([7, 8]), **sections}
    path = command_line.write_recipe(tmp_path, **given)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert any(key in text and problem in text for text in error.value.messages), error.value


def test_folds_combine_with_an_arm_that_does_not_use_them(tmp_path: Path) -> None:
    arms = {"first": ARMS["first"], "mean": ARMS["mean"] | {"out_of_fold": False}}
    path = command_line.write_recipe(
        tmp_path, arms=arms, teacher=several([7, 8]), knowledge={"folds": 2}
    )
    assert "extract train seed 8" in units_of(load_recipe(path), tmp_path)["distill mean"].needs


# The mean of recalibrated probabilities.

EACH = {"recalibrator": {"name": "temperature-scaling"}, "teachers": "recalibrated-mean"}


@pytest.fixture(scope="module")
def recalibrated(
    job: tuple[Finished, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Finished, list[str]]:
    """Another arm is added, which recalibrates each teacher by itself."""
    folder = tmp_path_factory.mktemp("recalibrated")
    run = copy_run(job[0].run, folder / "run")
    recipe = command_line.write_recipe(folder, arms={**ARMS, "each": EACH}, teacher=several([7, 8]))
    with pytest.MonkeyPatch.context() as patch, command_line.recorded_work(patch) as keys:
        result = command_line.report(recipe, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    return Finished(recipe, run, result), list(keys)


def test_each_teacher_gets_its_own_recalibrator(
    recalibrated: tuple[Finished, list[str]],
) -> None:
    finished, worked_on = recalibrated
    fits = {"calibrate each", "calibrate each seed 8"}
    assert {key for key in worked_on if not key.startswith(("eval", "report"))} == {
        *fits,
        "distill each",
    }
    assert command_line.pending(finished.recipe, "--run-dir", finished.run) == set()
    units = units_of(load_recipe(finished.recipe), finished.run)
    assert units["calibrate each"].needs == ("extract validation",)
    assert units["calibrate each seed 8"].needs == ("extract validation seed 8",)
    assert set(units["distill each"].needs) == {"extract train", "extract train seed 8", *fits}
    # The first teacher's recalibrator is that of an arm that learns from it alone.
    states = [
        json.loads((finished.run / "calibration" / f"{name}.json").read_text("utf-8"))["state"]
        for name in ("first", "each", "each@teacher-8")
    ]
    assert states[0] == states[1] != states[2]
    notes = json.dumps(finished.result.json["result"]["notes"])
    assert "the mean of 2 teachers, each re-calibrated by itself, of seeds 7, 8" in notes
    assert "the teacher of seed 8: temperature-scaling, T = " in notes
    card = (finished.run / "students" / "each" / "README.md").read_text("utf-8")
    assert "on average, each recalibrated by `temperature-scaling`" in " ".join(card.split())


def test_the_student_learns_the_mean_of_recalibrated_probabilities(
    recalibrated: tuple[Finished, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run's own builder gives, against a loop over teachers and tokens."""
    finished, _ = recalibrated
    builders: list[soft_targets.SoftTargetBuilder] = []

    def caught(*args: Any) -> Any:
        builders.extend(each for each in args if isinstance(each, soft_targets.SoftTargetBuilder))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_model, "train", caught)
    run = opened(finished)
    unit = units_of(run.recipe, finished.run)["distill each"]
    with pytest.raises(KeyboardInterrupt):
        DISTILL.work(run, unit, finished.run / "unused")
    (builder,) = builders
    rows = list(inputs.training_rows(run, "teacher", "train"))[:4]
    targets = builder(rows)
    parts = []
    for name, seed in (("each", None), ("each@teacher-8", 8)):
        state = json.loads((finished.run / "calibration" / f"{name}.json").read_text("utf-8"))
        temperature = state["state"]["temperature"]
        stored = teacher_knowledge.stored_knowledge(run, "train", seed)
        parts.append((temperature, [stored.of(row) for row in rows]))
    place = 0
    for number, row in enumerate(rows):
        for position, target in enumerate(row.positions):
            mean: dict[int, float] = {}
            for temperature, known in parts:
                p = np.exp(known[number].log_probs[position].astype(float))
                mass = -np.expm1(float(known[number].log_tail[position]))
                if target == row.answer_position:
                    q = np.exp(p / temperature) / np.exp(p / temperature).sum()
                else:
                    q = (p + 1e-6) / (p + 1e-6).sum()
                for token, value in zip(known[number].token_ids[position], mass * q, strict=True):
                    mean[int(token)] = mean.get(int(token), 0.0) + value / 2
            best = sorted(mean.values(), reverse=True)[:5]
            np.testing.assert_allclose(targets.probabilities[place], best, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(targets.tail[place], 1 - sum(best), atol=1e-6)
            for token, value in zip(
                targets.token_ids[place], targets.probabilities[place], strict=True
            ):
                np.testing.assert_allclose(mean[int(token)], value, rtol=1e-5, atol=1e-7)
            place += 1


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"teacher": several([])}, "there is only one teacher"),
        ({"knowledge": {"folds": 2}}, "set this arm's out_of_fold: false"),
        (
            {"arms": {"each": {**EACH, "recalibrator": {"name": "none"}}}},
            "this arm's recalibrator is 'none'; use 'mean'",
        ),
        ({"knowledge": {"draws": 5}}, "knowledge.draws"),
    ],
)
def test_mistakes_of_recalibrated_means(
    tmp_path: Path, sections: dict[str, Any], problem: str
) -> None:
    given = {"arms": {"each": EACH}, "teacher": several([7, 8]), **sections}
    path = command_line.write_recipe(tmp_path, **given)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert any("arms.each.teachers" in text and problem in text for text in error.value.messages)
