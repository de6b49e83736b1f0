"""Copies that the teacher writes: cached, and made before anything that learns them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.knowledge.store import Knowledge
from firstcli.recipe.load import load_recipe
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import checks, units_of
from firstcli.stages.extract import EXTRACT
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import first, of_files, sums, write_rows

ARMS = {
    "plus": {"augment": True},
    "labels": {"learn": "labels", "augment": True},
    "plain": {"recalibrator": {"name": "none"}},
}


def written_recipe(folder: Path, copies: int = 2, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    data = folder.parent / "data"
    write_rows(data / "train.jsonl", sums(40))
    write_rows(data / "test.jsonl", sums(10, 100))
    paraphrase = {"name": "paraphrase", "options": {"copies": copies, "max_new_tokens": 60}}
    perturb = {"name": "perturb", "options": {"levels": [0.3]}}
    augment = {"augmenters": [perturb, paraphrase]}
    train = {"task": of_files(data), "validation": 0.3, "augment": augment}
    return command_line.write_recipe(folder, train=train, evaluate=None, arms=ARMS, **options)


@dataclass(frozen=True)
class Job:
    recipe: Path
    run: Path
    planned: dict[str, str]

    def opened(self) -> Run:
        run = Run(load_recipe(self.recipe), self.run, Console(quiet=True))
        written = units_of(run.recipe, self.run)["respond rewordings"].artifact.written()
        assert written
        run.manifests["respond rewordings"] = written
        return run


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("paraphrase")
    path = written_recipe(folder / "recipe")
    shown = first("plan", path, "--run-dir", folder / "run", "--json")
    assert shown.code == 0, shown.err
    planned = {unit["unit"]: unit["estimate"] for unit in shown.json["units"]}
    done = first("report", path, "--run-dir", folder / "run")
    assert done.code == 0, done.err
    yield Job(path, folder / "run", planned)


def test_the_plan_says_what_will_be_written(job: Job) -> None:
    assert "texts for copies, up to 60 tokens each" in job.planned["respond rewordings"]
    assert job.planned["extract copies"].startswith("the teacher's copies, once it has written")
    assert "the copies that the teacher will write" in job.planned["distill plus"]
    assert "copies" not in job.planned["distill plain"]


def test_what_learns_copies_waits_for_them(job: Job) -> None:
    units = units_of(load_recipe(job.recipe), job.run)
    assert "respond rewordings" in units["extract copies"].needs
    assert "respond rewordings" in units["distill labels"].needs
    assert units["distill plain"].needs == ("extract train",)
    assert command_line.pending(job.recipe, "--run-dir", job.run) == set()


def test_copies_replace_the_question_alone(job: Job) -> None:
    run = job.opened()
    by_id = {str(sample.id): sample for sample in run.training.train}
    reworded = [copy for copy in run.copies if not str(copy.id).startswith("copy1/")]
    assert reworded, "the teacher ended none of its texts"
    for copy in reworded:
        sample = by_id[str(copy.id).partition("/")[2]]
        assert copy.prompt.split("\n")[-3:] == sample.prompt.split("\n")[-3:]
        assert copy.answer == sample.answer
    assert len(Knowledge(job.run / "knowledge" / "copies")) == len(run.copies)
    student = units_of(run.recipe, job.run)["distill plus"].artifact.written()
    assert student and student.facts["copies"] == len(run.copies)


def test_more_copies_cost_only_themselves(job: Job, tmp_path: Path) -> None:
    run = command_line.copy_run(job.run, tmp_path / "run")
    recipe = tmp_path / "recipe.yaml"
    text = job.recipe.read_text().replace("copies: 2", "copies: 3")
    recipe.write_text(text)
    done = first("respond", recipe, "--run-dir", run)
    assert done.code == 0, done.err
    count = len(job.opened().training.train)
    assert f"{2 * count} of {3 * count} texts need not be written again" in done.out + done.err


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"teacher": None, "arms": {"a": {"learn": "labels", "augment": True}}}, "runs here"),
        (
            {
                "teacher": {
                    "model": command_line.MODEL,
                    "finetune": {**command_line.TRAINING, "augment": True},
                }
            },
            "leave out teacher.finetune.augment",
        ),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    path = written_recipe(tmp_path / "recipe")
    whole = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in whole.items() if value}))
    first("plan", path).mistake("paraphrase", text)


def test_written_copies_are_compared_with_evaluations(job: Job) -> None:
    """They do not exist when the plan is checked, so the training compares them."""
    run = job.opened()
    copies = list(run.copies)
    run.__dict__["evaluation_samples"] = lambda name: copies[:3]
    with run.console.collect_warnings() as warnings:
        checks.warn_of_written_copies(run)
    (warning,) = warnings
    assert "all 3 questions are also among the copies of train.augment" in warning


def test_the_size_of_unwritten_copies_counts_all_augmenters(tmp_path: Path) -> None:
    def foreseen(perturbed: int, reworded: int) -> int:
        path = written_recipe(tmp_path / f"recipe{reworded}", reworded)
        whole = yaml.safe_load(path.read_text())
        options = whole["train"]["augment"]["augmenters"][0]["options"]
        options["levels"] = [0.3] * perturbed
        run = Run(Recipe.model_validate(whole), tmp_path / "run", Console(quiet=True))
        assert not run.is_written("copies")
        return EXTRACT.disk(run, units_of(run.recipe, run.folder)["extract copies"])

    assert foreseen(3, 1) == foreseen(1, 3) > foreseen(1, 1)


def test_options_of_other_augmenters_change_no_text(job: Job, tmp_path: Path) -> None:
    """But the number of their copies does, because it numbers the texts."""

    def pending(levels: str) -> set[str]:
        path = tmp_path / "recipe.yaml"
        text = job.recipe.read_text()
        assert "- 0.3\n" in text
        path.write_text(text.replace("- 0.3\n", levels))
        return command_line.pending(path, "--run-dir", job.run)

    assert "respond rewordings" not in pending("- 0.4\n")
    with_two = job.recipe.read_text().split("- 0.3\n")[0].splitlines()[-1]
    indent = " " * (len(with_two) - len(with_two.lstrip()))
    assert "respond rewordings" in pending(f"- 0.3\n{indent}- 0.3\n")
