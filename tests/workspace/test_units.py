"""Units of recipes with seeds, folds and post-hoc temperatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.recipe.load import load_recipe
from firstcli.stages import units_of
from firstcli.stages.base import Stage
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE
from firstcli.stages.posthoc import POSTHOC
from firstcli.workspace.units import Model, Unit, models_of, of_arms, split_title, with_upstream
from support import command_line

T = {"name": "logit-temperature"}
TS = {"name": "temperature-scaling"}
ARMS = {
    "fine-tune": {"learn": "labels", "posthoc": T},
    "first": {"recalibrator": TS},
    "seen": {"recalibrator": TS, "out_of_fold": False},
}


def units(folder: Path, **sections: Any) -> dict[str, Unit]:
    recipe = load_recipe(command_line.write_recipe(folder, arms=ARMS, **sections))
    return units_of(recipe, folder / "run")


def test_a_model_is_a_row_for_every_seed() -> None:
    model = Model("first", seed=3, posthoc=True)
    assert (model.trained, model.name, model.row) == ("first@3", "first@3+T", "first + T")
    teacher = Model(posthoc=True)
    assert (teacher.trained, teacher.name, teacher.row) == ("teacher", "teacher+T", "teacher + T")


def test_models_come_in_the_order_of_the_tables(tmp_path: Path) -> None:
    teacher = {"model": command_line.MODEL, "finetune": command_line.TRAINING, "posthoc": T}
    path = command_line.write_recipe(
        tmp_path, arms=ARMS, teacher=teacher, seeds=[5, 2], knowledge={"folds": 2}
    )
    names = [model.name for model in models_of(load_recipe(path))]
    assert names[:2] == ["teacher", "teacher+T"]
    assert names[2:6] == ["fine-tune@5", "fine-tune@2", "fine-tune@5+T", "fine-tune@2+T"]
    assert names[6:] == ["first@5", "first@2", "seen@5", "seen@2"]


def test_every_seed_trains_and_is_judged_but_calibration_is_shared(tmp_path: Path) -> None:
    found = units(tmp_path, seeds=[5, 2], knowledge={"folds": 2})
    assert {key for key in found if key.startswith("calibrate")} == {
        "calibrate first",
        "calibrate seen",
    }
    one = found["distill first@5"]
    assert one.model.seed == 5 and one.artifact.path == tmp_path / "run" / "students" / "first@5"
    assert one.needs == ("extract out-of-fold", "calibrate first")
    assert found["distill seen@2"].needs == ("extract train", "calibrate seen")
    assert found["distill fine-tune@2"].needs == ()
    assert found["eval shifted/first@5"].needs == ("distill first@5",)


def test_every_fold_has_its_own_teacher(tmp_path: Path) -> None:
    found = units(tmp_path, knowledge={"folds": 3})
    folds = tuple(f"finetune fold {fold}" for fold in (1, 2, 3))
    assert found["extract out-of-fold"].needs == folds
    assert found["extract train"].needs == found["extract validation"].needs == ("finetune",)
    assert [found[key].fold for key in folds] == [1, 2, 3]
    everything = set(with_upstream(found, [found["distill fine-tune"]]))
    assert {unit.key for unit in everything} == {"distill fine-tune"}


def test_without_an_out_of_fold_arm_there_are_no_folds(tmp_path: Path) -> None:
    path = command_line.write_recipe(
        tmp_path, knowledge={"folds": 3}, arms={"seen": ARMS["seen"], "plain": {"learn": "labels"}}
    )
    found = units_of(load_recipe(path), tmp_path)
    assert not [key for key in found if "fold" in key]


def test_a_temperature_needs_the_model_and_its_answers(tmp_path: Path) -> None:
    found = units(tmp_path, seeds=[5], knowledge={"folds": 2})
    fitted = found["posthoc fine-tune@5+T"]
    assert fitted.needs == ("distill fine-tune@5",) and not fitted.evaluation
    assert fitted.artifact.path == tmp_path / "run" / "calibration" / "fine-tune@5+T.json"
    applied = found["eval shifted/fine-tune@5+T"]
    assert applied.needs == ("eval shifted/fine-tune@5", "posthoc fine-tune@5+T")
    assert {unit.role for unit in (fitted, applied)} == {"student"}


def test_an_arm_stands_for_all_its_models(tmp_path: Path) -> None:
    found = units(tmp_path, seeds=[5, 2], knowledge={"folds": 2})

    def keys(stage: Stage, arm: str) -> set[str]:
        of_stage = [unit for unit in found.values() if unit.stage == stage.name]
        return {unit.key for unit in of_arms(of_stage, [arm])}

    on = ("known-world", "shifted")
    models = ("fine-tune@5", "fine-tune@2", "fine-tune@5+T", "fine-tune@2+T")
    answers = {f"eval {evaluation}/{model}" for evaluation in on for model in models}
    assert keys(EVALUATE, "fine-tune") == answers
    assert keys(POSTHOC, "fine-tune") == {"posthoc fine-tune@5+T", "posthoc fine-tune@2+T"}
    assert keys(EVALUATE, "teacher") == {f"eval {evaluation}/teacher" for evaluation in on}
    with pytest.raises(UserError, match="--arm first@5: no such arm"):
        keys(DISTILL, "first@5")


@pytest.mark.parametrize("title", ["first@3 + T", "first@3+T", " first@3 +T "])
def test_a_title_names_the_model_and_its_recalibrator(title: str) -> None:
    assert split_title(title) == ("first@3", True)
    assert split_title(Model("first", 3).title) == ("first@3", False)
    assert split_title("A+Test") == ("A+Test", False)
