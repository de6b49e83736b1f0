"""The key `teacher.from_run`: the student of another run, the mentor, as this run's teacher.

The idea of a mentor between a large teacher and a small student is that of Mentor-KD (Lee et al.
2024, arXiv 2410.09037).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ModelWrapValidatorHandler, model_validator

from firstcli import plugins
from firstcli.api import DataPath
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.files import read_recipe
from firstcli.recipe.references import RecipeSection, user_errors_as_mistakes
from firstcli.recipe.run_folders import (
    MANIFEST,
    RUN_RECIPE,
    STUDENTS,
    default_folder,
    of_rounds,
    recommended,
)
from firstcli.recipe.yaml_nodes import Node

KEY = "teacher.from_run"
TRAINED_FAMILY = "causal-lm"
"""The family that loads models which a family without a checkpoint has made."""


class FromRun(RecipeSection):
    """A student of another run; the path alone stands for `{run: PATH}`."""

    run: DataPath
    """The other run: its folder, or its recipe, if its folder is `runs/NAME`. Commands that train
    bring the student of a recipe up to date first."""
    arm: str | None = None
    """The student: an arm, or `ARM@SEED` if the run has several seeds. Default: the run's only
    student, or else the one that its report recommends."""

    @property
    def student(self) -> Path:
        """The student's folder."""
        return self.run / STUDENTS / str(self.arm)

    @property
    def model(self) -> dict[str, Any]:
        """The section of the model that loads the student."""
        return trained_model(_model_section(self.run), self.student)

    @model_validator(mode="wrap")
    @classmethod
    def _as_trained(cls, value: Any, handler: ModelWrapValidatorHandler[FromRun]) -> FromRun:
        """State the run folder and the student that are meant, and check that they exist."""
        stated = handler({"run": value} if isinstance(value, str) else value)
        with user_errors_as_mistakes():
            name = student_name(stated.run, stated.arm)
            folder = run_folder(stated.run)
            if not (folder / STUDENTS / name / MANIFEST).is_file():
                command = shlex.join([*_command(stated.run), "--arm", arm_of(name)])
                advice = of_rounds(folder, name) or f"; run `{command}` first"
                raise UserError(f"{folder} has no trained student '{name}'{advice}")
            plugins.load("families", _model_section(folder)["family"])
        return stated.model_copy(update={"run": folder, "arm": name})


@dataclass(frozen=True, slots=True)
class StatedMentor:
    """What a recipe states under `teacher.from_run`."""

    source: Path
    """A run folder, or a recipe."""
    arm: str | None
    place: str
    """Where it is stated, for messages."""


def trained_model(section: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the section of a model that starts from a folder in which firstcli saved it.

    Args:
        section: that of the model with which training started, as JSON values.
        folder: the folder of the trained model.

    Raises:
        UserError: the family is not installed.
    """
    kept = {key: value for key, value in section.items() if key != "revision"}
    if not plugins.load("families", section["family"]).needs_checkpoint:
        kept = {key: value for key, value in kept.items() if key == "chat_template"}
        kept = {"family": TRAINED_FAMILY, **kept}
    return {**kept, "checkpoint": str(folder.absolute())}


def run_folder(source: Path) -> Path:
    """Return the absolute path of a run folder, given by itself or by its recipe.

    Raises:
        UserError: there is neither.
    """
    if source.is_dir():
        if not (source / RUN_RECIPE).is_file():
            raise UserError(
                f"{source} is no run folder, because it has no {RUN_RECIPE}{of_rounds(source)}"
            )
        return source.resolve()
    if not source.is_file():
        raise UserError(f"there is no run folder and no recipe {source}")
    name = read_recipe(source).children.get("name")
    if name is None or not isinstance(name.value, str):
        raise UserError(f"{source} states no `name`, which its run folder has")
    return default_folder(str(name.value)).resolve()


def student_name(source: Path, arm: str | None) -> str:
    """Return the name of the student that is meant, trained or not.

    Args:
        source: a run folder, or a recipe.
        arm: an arm or `ARM@SEED`; None for the only student, or that which the report recommends.

    Raises:
        UserError: there is no such student, or several come into question.
    """
    folder = run_folder(source)
    names = _student_names(read_recipe(_recipe_of(source)))
    if arm is None:
        return _default_student(folder, names)
    if arm in names:
        return arm
    if seeds := [name for name in names if arm_of(name) == arm]:
        raise UserError(f"{source} trains arm '{arm}' with several seeds; choose {_either(seeds)}")
    hint = did_you_mean(arm, names)
    raise UserError(f"{source} has no arm '{arm}'{hint}; it has {', '.join(names) or 'none'}")


def _recipe_of(source: Path) -> Path:
    return source if source.is_file() else source / RUN_RECIPE


def _default_student(folder: Path, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    best = recommended(folder)
    if best is not None and best.name in names:
        return best.name
    raise UserError(
        f"{folder} has several students, {', '.join(names)}; choose one with `arm:`, or run `first "
        "report` on it, which recommends one"
    )


def _student_names(root: Node) -> list[str]:
    """Return the names of the students of a recipe, which need not be valid."""
    values = root.plain()
    arms, seeds = values["arms"], values.get("seeds")
    names = list(arms) if isinstance(arms, dict) else []
    if not isinstance(seeds, list) or not seeds:
        return names
    return [f"{name}@{seed}" for name in names for seed in seeds]


def arm_of(name: str) -> str:
    """Return the arm of a student's name."""
    return name.rpartition("@")[0] or name


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)


def _command(source: Path) -> list[str]:
    """Return the command that trains the students of a run."""
    if source.is_file():
        return ["first", "distill", str(source)]
    return ["first", "distill", str(source / RUN_RECIPE), "--run-dir", str(source)]


def _model_section(folder: Path) -> dict[str, Any]:
    """Return the section of the model with which the students of a run start."""
    file = folder / RUN_RECIPE
    try:
        section = read_recipe(file).plain()["student"]["model"]
        return {"family": section["family"], **section}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: it has no section student.model") from error


def stated_mentor(root: Node) -> StatedMentor | None:
    """Return what a recipe states under `teacher.from_run`; None if validation will refuse it."""
    teacher = root.children.get("teacher")
    node = teacher.children.get("from_run") if teacher else None
    if node is None:
        return None
    run, arm = node.children.get("run", node), node.children.get("arm")
    if not isinstance(run.value, str):
        return None
    try:
        path = run.value.base / Path(str(run.value)).expanduser()
    except RuntimeError:  # ~nobody
        return None
    name = str(arm.value) if arm and isinstance(arm.value, str) else None
    return StatedMentor(path, name, node.place)


def require_no_circle(root: Node, run_dir: Path | None) -> None:
    """Check that no run is its own teacher, directly or through others.

    Args:
        root: the recipe.
        run_dir: its run folder, if it is not `runs/NAME`.

    Raises:
        UserError: a run is; names all of them.
    """
    name = root.children.get("name")
    if (mentor := stated_mentor(root)) is None or (run_dir is None and name is None):
        return
    own = run_dir or default_folder(str(name.value if name else ""))
    runs, place = [own.resolve()], mentor.place
    while mentor is not None:
        try:
            folder = run_folder(mentor.source)
        except UserError:
            return  # validation says that there is no such run
        if folder in runs:
            chain = " -> ".join(map(str, (*runs, folder)))
            raise UserError(f"{place}: {KEY}: a run cannot be its own teacher: {chain}")
        runs.append(folder)
        mentor = stated_mentor(read_recipe(_recipe_of(mentor.source)))
