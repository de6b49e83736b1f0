"""Which student is meant: by a folder, a run or a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstcli.api.usage import prompt_usage
from firstcli.errors import UserError
from firstcli.student.find import Choice, find_student
from firstcli.student.load import load_student
from firstcli.student.usage import FoldedTemperature, Usage, read_usage, write_usage
from support import command_line


def add(folder: Path) -> Path:
    folder.mkdir(parents=True)
    arm = folder.name.partition("@")[0]
    usage = Usage(
        **prompt_usage((" yes", " no")).model_dump(), firstcli="0", run="r", arm=arm, task="t"
    )
    (folder / "firstcli.json").write_text(write_usage(usage), "utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("distill", "first@1", "first@2"):
        add(tmp_path / "run" / "students" / name)
    (tmp_path / "run" / "students" / ".first.partial").mkdir()
    return tmp_path / "run"


def decide(run: Path, ship: object) -> None:
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "decision.json").write_text(json.dumps({"ship": ship}))


def test_a_students_folder_is_itself(run: Path) -> None:
    folder = run / "students" / "distill"
    assert find_student(folder) == Choice(folder)
    assert find_student(folder, "distill") == Choice(folder, raw=True)
    with pytest.raises(UserError, match=r"--arm first: .* is the folder of 'distill'"):
        find_student(folder, "first")


def test_a_folded_temperature_cannot_be_left_out(run: Path) -> None:
    folder = run / "students" / "distill"
    folded = FoldedTemperature(temperature=2.0)
    usage = read_usage(folder).model_copy(update={"folded": folded})
    (folder / "firstcli.json").write_text(write_usage(usage), "utf-8")
    assert find_student(folder) == find_student(folder, "distill + T") == Choice(folder)
    with pytest.raises(UserError, match="folded into its weights and cannot be left out"):
        find_student(folder, "distill")
    with pytest.raises(UserError, match="folded into the weights and cannot be left out"):
        load_student(folder, raw=True)


def test_an_arm_of_a_run(run: Path) -> None:
    students = run / "students"
    assert find_student(run, "distill").folder == students / "distill"
    with pytest.raises(UserError, match="'distill' has no post-hoc recalibrator"):
        find_student(run, "distill + T")
    assert find_student(run, "first@2").folder == students / "first@2"
    with pytest.raises(UserError, match="several seeds of it; choose first@1 or first@2"):
        find_student(run, "first")
    with pytest.raises(UserError, match=r"no such student \(did you mean 'distill'\?\)"):
        find_student(run, "distil")
    add(run / "teacher")
    assert find_student(run, "teacher").folder == run / "teacher"


@pytest.mark.parametrize("posthoc", [True, False])
def test_the_report_recommends_one(run: Path, posthoc: bool) -> None:
    decide(run, {"arm": "first", "posthoc": posthoc, "folder": "students/first@1"})
    assert find_student(run) == Choice(run / "students" / "first@1", raw=not posthoc)
    assert find_student(run, "distill") == Choice(run / "students" / "distill", raw=True)


@pytest.mark.parametrize("ship", [None, {}, {"folder": "students/gone", "posthoc": True}])
def test_without_a_recommendation_an_arm_is_needed(run: Path, ship: object) -> None:
    decide(run, ship)
    with pytest.raises(UserError, match="several students, distill, first@1, first@2; choose"):
        find_student(run)


def test_the_only_student_is_meant(tmp_path: Path) -> None:
    folder = add(tmp_path / "run" / "students" / "distill")
    assert find_student(tmp_path / "run") == Choice(folder)


def test_a_recipe_names_its_run_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = command_line.write_recipe(tmp_path)
    with pytest.raises(UserError, match=r"first distill .*recipe.yaml` first"):
        find_student(recipe)
    assert find_student(recipe, "distill", run).folder == run / "students" / "distill"
    folder = add(tmp_path / "runs" / "tiny" / "students" / "distill")
    assert find_student(recipe).folder.samefile(folder)


def test_what_is_no_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or recipe"):
        find_student(tmp_path / "missing")
    with pytest.raises(UserError, match=r"neither a student's folder .* nor a run folder"):
        find_student(tmp_path)
    (tmp_path / "run" / "students").mkdir(parents=True)
    with pytest.raises(UserError, match="run `first distill` with its recipe first"):
        find_student(tmp_path / "run")
