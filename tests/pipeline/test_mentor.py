"""`teacher.from_run`: the student of one run is the teacher of the next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.recipe.load import load_recipe
from firstcli.workspace.artifacts import Digests
from support import command_line
from support.command_line import MODEL, TRAINING, first

SMALLER = {
    "family": "scratch",
    "options": {"hidden_size": 8, "layers": 1, "heads": 2, "vocabulary": 300, "context": 128},
}
DISTILL = {"distill": {"recalibrator": {"name": "temperature-scaling"}}}
MENTOR = {"mentor": {"recalibrator": {"name": "temperature-scaling"}}}


def write(folder: Path, file: str, **sections: Any) -> Path:
    path = folder / file
    values = command_line.recipe(**sections)
    path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
    return path


def write_second(folder: Path, from_run: object, **sections: Any) -> Path:
    student = {"model": SMALLER, "training": TRAINING}
    teacher = {"from_run": from_run, **sections.pop("teacher", {})}
    whole = {"name": "second", "teacher": teacher, "student": student, "arms": DISTILL}
    return write(folder, "second.yaml", **whole | sections)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two recipes, a teacher's and a mentor's, and one command, in the current folder."""
    folder = tmp_path_factory.mktemp("chain")
    before = Path.cwd()
    os.chdir(folder)
    write(folder, "first.yaml", name="one", arms=MENTOR)
    recipe = write_second(folder, "first.yaml")
    result = first("distill", recipe)
    assert result.code == 0, result.err
    yield folder
    os.chdir(before)


@pytest.fixture
def here(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(chain)
    return chain


def reads(run: Path, unit: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / unit / "manifest.json").read_text("utf-8"))["reads"]
    return found


def test_two_recipes_and_one_command_make_a_chain(here: Path) -> None:
    mentor = here / "runs/one/students/mentor"
    recipe = load_recipe(here / "second.yaml")
    assert recipe.teacher and recipe.teacher.model.checkpoint == str(mentor)
    assert recipe.teacher.model.family == "causal-lm" and recipe.teacher.finetune is None
    second = here / "runs/second"
    assert not (second / "teacher").exists()  # it is not fine-tuned again
    learned = reads(second, "knowledge/train")
    assert learned["teacher.model.checkpoint"] == Digests().of_checkpoint(mentor)
    assert (second / "students/distill/manifest.json").is_file()


def test_nothing_is_done_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with command_line.recorded_work(monkeypatch) as keys:
        assert first("distill", here / "second.yaml").code == 0
    assert keys == []


def test_the_resolved_recipe_is_a_recipe_and_names_the_run(here: Path) -> None:
    stored = here / "runs/second/recipe.yaml"
    teacher = yaml.safe_load(stored.read_text("utf-8"))["teacher"]
    assert teacher["from_run"] == {"run": str(here / "runs/one"), "arm": "mentor"}
    again = load_recipe(stored, run_dir=here / "runs/second")
    assert again.resolved() == load_recipe(here / "second.yaml").resolved()


def test_the_run_folder_stands_for_the_recipe(here: Path) -> None:
    by_file = load_recipe(here / "second.yaml")
    for stated in ("runs/one", {"run": "runs/one", "arm": "mentor"}):
        (here / "other").mkdir(exist_ok=True)
        other = write_second(here / "other", stated)  # paths start at the recipe
        with pytest.raises(Exception, match=r"no run folder and no recipe .*/other/runs/one"):
            load_recipe(other)
        assert load_recipe(write_second(here, stated)).resolved() == by_file.resolved()
    write_second(here, "first.yaml")


def test_a_changed_mentor_makes_its_students_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write(tmp_path, "first.yaml", name="one", arms=MENTOR)
    second = write_second(tmp_path, "first.yaml")
    assert first("distill", second).code == 0
    longer = {"model": MODEL, "training": {**TRAINING, "epochs": 2}}
    write(tmp_path, "first.yaml", name="one", arms=MENTOR, student=longer)
    with command_line.recorded_work(monkeypatch) as keys:
        result = first("distill", second)
    assert result.code == 0, result.err
    assert keys == [
        *("distill mentor", "extract train", "extract validation"),
        *("calibrate distill", "distill distill"),
    ]
    # A run folder is taken as it is, and what a report adds to it changes nothing.
    write_second(tmp_path, "runs/one")
    assert command_line.report(recipe).code == 0
    assert command_line.pending(second) >= {"report"}
    assert "distill distill" not in command_line.pending(second)


def test_a_mentor_is_fine_tuned_again_only_if_the_recipe_says_so(here: Path) -> None:
    tuned = write_second(here, "runs/one", teacher={"finetune": TRAINING})
    assert "finetune" in command_line.pending(tuned, "--run-dir", here / "tuned")
    plain = write_second(here, "first.yaml")
    assert "finetune" not in command_line.pending(plain, "--run-dir", here / "plain")


def test_held_out_samples_of_the_mentor_bring_no_warning(here: Path) -> None:
    same = first("plan", here / "second.yaml", "--run-dir", here / "same")
    assert same.code == 0 and "may have seen" not in same.out + same.err
    cut = first(
        *("plan", here / "second.yaml", "--run-dir", here / "cut"), "--set", "train.validation=0.2"
    )
    assert cut.code == 0 and "may have seen the validation samples" in cut.out + cut.err


def test_one_generation_teaches_the_next(here: Path) -> None:
    """The same recipe with another run folder, its teacher the student before it."""
    recipe = here / "second.yaml"
    option = "teacher.from_run=runs/second"
    result = first("plan", recipe, "--set", option, "--run-dir", here / "next")
    assert result.code == 0, result.err


SEVERAL = {"a": {"learn": "labels"}, "b": {"learn": "labels"}}


def test_a_run_that_is_not_finished_names_the_command(here: Path, tmp_path: Path) -> None:
    own = write(tmp_path, "unfinished.yaml", name="unfinished", arms=MENTOR)
    second = write_second(tmp_path, str(own))
    told = f"teacher.from_run: {here / 'runs/unfinished'} has no trained student 'mentor'; run "
    told += f"`first distill {own} --arm mentor` first"
    first("plan", second).mistake("second.yaml:", told)
    first("distill", second, "--only").mistake(told)
    folder = tmp_path / "run"
    assert first("extract", own, "--run-dir", folder).code == 0
    first("distill", write_second(tmp_path, "run")).mistake(
        "teacher.from_run: ", f"`first distill {folder}/recipe.yaml --run-dir {folder} --arm mentor"
    )


def test_a_missing_run_or_arm_is_one_sentence(here: Path, tmp_path: Path) -> None:
    def mistake(from_run: object, *parts: str) -> None:
        found = first("distill", write_second(tmp_path, from_run)).mistake(*parts)
        assert "second.yaml:" in found and "teacher.from_run" in found

    mistake("nowhere", "there is no run folder and no recipe", str(tmp_path / "nowhere"))
    run = str(here / "runs/one")
    mistake({"run": run, "arm": "mentr"}, "has no arm 'mentr' (did you mean 'mentor'?)")
    mistake({"run": run, "arm": "teacher"}, "has no arm 'teacher'; it has mentor")
    mistake(f"{run}/students/mentor", "is no run folder, because it has no recipe.yaml")
    several = write(tmp_path, "several.yaml", name="several", arms=SEVERAL, teacher=None)
    mistake(str(several), "has several students, a, b; choose one with `arm:`")
    seeds = write(tmp_path, "seeds.yaml", name="seeds", arms=MENTOR, seeds=[1, 2])
    mistake({"run": str(seeds), "arm": "mentor"}, "choose mentor@1 or mentor@2")
    mistake({"run": run, "arm": 3}, "found 3, expected text")
    mistake(7, "found 7, expected")


def test_two_models_are_refused(here: Path, tmp_path: Path) -> None:
    second = write_second(tmp_path, str(here / "runs/one"), teacher={"model": MODEL})
    told = "'from_run' gives the teacher another model; leave one of them out"
    first("plan", second).mistake("teacher.model: ", told)


def test_a_teacher_without_a_model_is_still_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path, "none.yaml", teacher={})
    first("plan", recipe).mistake("teacher.model: missing, expected a mapping with 'family'")


def test_a_run_is_not_its_own_teacher(here: Path, tmp_path: Path) -> None:
    told = "teacher.from_run: a run cannot be its own teacher: "
    own = write_second(tmp_path, "second.yaml")
    first("distill", own).mistake("second.yaml:", told)
    first("plan", here / "second.yaml", "--set", "teacher.from_run=runs/second").mistake(told)
    first("plan", here / "second.yaml", "--run-dir", "runs/one").mistake(told)
    write(tmp_path, "a.yaml", name="a", teacher={"from_run": "b.yaml"})
    circle = write(tmp_path, "b.yaml", name="b", teacher={"from_run": "a.yaml"})
    first("distill", circle).mistake(told, "runs/b -> ", "runs/a -> ")
    first("distill", circle, "--run-dir", tmp_path / "b").mistake(told)


def test_the_recommended_student_is_the_default(here: Path, tmp_path: Path) -> None:
    """Of several students, the report's choice; `+ T` does not matter, the weights are the same."""
    run = command_line.copy_run(here / "runs/one", tmp_path / "run")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
    recipe["arms"] |= SEVERAL
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    (run / "report").mkdir()
    ship = {"ship": {"folder": "students/mentor", "posthoc": True}}
    (run / "report/decision.json").write_text(json.dumps(ship), "utf-8")
    found = load_recipe(write_second(tmp_path, "run"))
    assert found.teacher and found.teacher.from_run
    assert found.teacher.from_run.arm == "mentor"
