"""Units of work and how they depend on each other.

A unit is the smallest piece of work that is rebuilt: it makes one artifact. The stages derive the
units of a recipe; with several seeds, an arm has several models and therefore several units.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe import run_folders
from firstcli.workspace.artifacts import Artifact

if TYPE_CHECKING:
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.sections import Arm
    from firstcli.recipe.shift import Shift

Part = Literal["train", "validation", "out-of-fold", "unlabelled", "written", "copies"]
"""A part of the training data. `out-of-fold` holds the samples of `train`; its knowledge comes
from teachers that were not trained on them. `unlabelled` holds the questions without a label, and
`written` the prompts whose responses the teacher has written; `copies` are those of `train`, with
other prompts."""
Role = Literal["teacher", "student"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that answers questions: the teacher or a student, with or without a temperature."""

    arm: str = ""
    """The student's arm; empty for the teacher."""
    seed: int | None = None
    """The seed that trained it, if the recipe has several."""
    posthoc: bool = False
    """Whether the model's logits are divided by a temperature fitted to the model."""

    @property
    def trained(self) -> str:
        """Name of the trained model and of its folder: `first` or `first@1`."""
        return (self.arm or "teacher") + ("" if self.seed is None else f"@{self.seed}")

    @property
    def name(self) -> str:
        """Name of the model's records: `first@1`, or `first@1+T` with a temperature."""
        return self.trained + ("+T" if self.posthoc else "")

    @property
    def row(self) -> str:
        """Label of the model's table row, the same for all seeds: `first`, or `first + T`."""
        return (self.arm or "teacher") + (" + T" if self.posthoc else "")

    @property
    def title(self) -> str:
        """The model's name for people and for `--arm`: `first@1 + T`."""
        return self.trained + (" + T" if self.posthoc else "")


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of work that is rebuilt: one artifact."""

    key: str
    """Unique name: the stage, a space, and what the stage works on."""
    stage: str
    """Name of the stage that owns the unit."""
    artifact: Artifact
    needs: tuple[str, ...] = ()
    """Keys of the units whose results this one depends on."""
    part: Part = "train"
    fold: int | None = None
    """The fold that a teacher is not fine-tuned on; None if it is trained on all samples."""
    teacher_seed: int | None = None
    """The seed of a further teacher (`teacher.seeds`); None for the first one."""
    evaluation: str = ""
    model: Model = Model()
    """The model that the unit trains, evaluates or calibrates; by default the teacher."""

    @property
    def arm(self) -> str:
        return self.model.arm

    @property
    def role(self) -> Role:
        """The role whose tokenizer the unit uses."""
        return "student" if self.arm else "teacher"

    @property
    def subject(self) -> str:
        """What the stage works on: the key without the stage's name."""
        return self.key.partition(" ")[2]


def models_of(recipe: Recipe) -> list[Model]:
    """Return all models in table order, the seeds of one row next to each other."""
    models: list[Model] = []
    if recipe.teacher:
        models.append(Model())
        models += [Model(posthoc=True)] if recipe.teacher.posthoc else []
    seeds: tuple[int | None, ...] = recipe.seeds or (None,)
    for name, arm in recipe.arms.items():
        for posthoc in (False, True) if arm.posthoc else (False,):
            models += [Model(name, seed, posthoc) for seed in seeds]
    return models


def evaluations_of(recipe: Recipe) -> list[str]:
    """Return the names of all evaluations, with that of the validation questions if it is used."""
    from firstcli.recipe.sections import VALIDATION

    names = [section.name for section in recipe.evaluate]
    return [*names, VALIDATION] if recipe.metrics.use_validation else names


def shift_of(recipe: Recipe, evaluation: str) -> Shift | None:
    """Return the shift of an evaluation; None if it is one that the recipe states."""
    return next(
        (each[evaluation] for each in shifts_of(recipe).values() if evaluation in each), None
    )


def shifts_of(recipe: Recipe) -> dict[str, dict[str, Shift]]:
    """Return the shifts of each evaluation that has some, by the names of the shifted ones."""
    sections = [section for section in recipe.evaluate if section.shift]
    return {
        section.name: {shift.name_of(section.name): shift for shift in section.shift.each()}
        for section in sections
        if section.shift
    }


RESPONSES = "responses"
"""Folder of the teacher's responses in a run folder."""
RESPONSES_KEY = "respond responses"
"""Key of the unit that makes them."""
REWORDINGS = "rewordings"
"""Folder of what the teacher writes for copies, in a run folder."""
REWORDINGS_KEY = "respond rewordings"
"""Key of the unit that makes it."""
KNOWLEDGE = "knowledge"
"""Name of the folder of the teacher's knowledge in a run folder."""
STUDENTS = run_folders.STUDENTS
_PLUS_T = re.compile(r"\s*\+\s*T$")


def split_title(title: str) -> tuple[str, bool]:
    """Return the name of a trained model, and whether `+ T` follows it, as in `--arm`."""
    name = _PLUS_T.sub("", title.strip())
    return name, name != title.strip()


def model_path(folder: Path, model: Model) -> Path:
    """Return the folder of a trained model in a run folder."""
    return folder / STUDENTS / model.trained if model.arm else folder / "teacher"


def responses_path(folder: Path) -> Path:
    """Return the folder of the teacher's responses in a run folder."""
    return folder / RESPONSES


def records_path(folder: Path, evaluation: str, model: Model) -> Path:
    """Return the file of a model's answers in a run folder."""
    return folder / f"eval/{evaluation}/{model.name}.parquet"


def calibration_path(folder: Path, name: str) -> Path:
    """Return the file of a fitted recalibrator in a run folder; `name` is an arm's or a model's."""
    return folder / f"calibration/{name}.json"


def part_of(recipe: Recipe, arm: Arm) -> Part:
    """Return the part whose knowledge an arm learns from."""
    folded = recipe.knowledge.folds is not None if arm.out_of_fold is None else arm.out_of_fold
    return "out-of-fold" if folded else "train"


def teachers_of(recipe: Recipe, arm: Arm) -> tuple[int | None, ...]:
    """Return the teachers that an arm learns from, by seed; None is the first."""
    further = recipe.teacher.seeds[1:] if recipe.teacher and arm.averages else ()
    return (None, *further)


def recalibrated_together(recipe: Recipe, arm: Arm) -> list[tuple[int | None, ...]]:
    """Return the teachers that an arm learns from in groups, each with a recalibrator of its own.

    A group's knowledge is averaged before it is recalibrated. The first teacher of each group is in
    the names of what belongs to it.
    """
    teachers = teachers_of(recipe, arm)
    return [(seed,) for seed in teachers] if arm.teachers == "recalibrated-mean" else [teachers]


def fitted_name(arm: str, seed: int | None) -> str:
    """Return the name of an arm's recalibrator for `calibration_path`; `seed` is its teacher's."""
    return arm if seed is None else f"{arm}@teacher-{seed}"


def further_teachers(recipe: Recipe) -> tuple[int, ...]:
    """Return the seeds of the teachers besides the first that some arm learns from."""
    seeds = (seed for arm in recipe.arms.values() for seed in teachers_of(recipe, arm)[1:])
    return tuple(dict.fromkeys(seed for seed in seeds if seed is not None))


def teacher_path(folder: Path, seed: int | None = None) -> Path:
    """Return the folder of the teacher, or of a further one, in a run folder."""
    return folder / "teacher" if seed is None else folder / "teachers" / f"seed-{seed}"


def knowledge_path(folder: Path, part: Part, seed: int | None = None) -> Path:
    """Return the folder of a part's knowledge; `seed` names a further teacher."""
    return folder / KNOWLEDGE / (part if seed is None else f"{part}@{seed}")


def learns_unlabelled(recipe: Recipe, arm: Arm) -> bool:
    """Return whether an arm learns the teacher's probabilities of unlabelled samples.

    A run states in its recipe whether there are such samples (`data_decisions.state_data`).
    """
    section = recipe.train.unlabelled
    return arm.learn == "knowledge" and section is not None and section.limit != 0


def learned_parts(recipe: Recipe, arm: Arm) -> tuple[Part, ...]:
    """Return the parts whose samples a student of an arm is trained on, in order.

    Copies come last: each stands for a sample of the other parts in some epochs.
    """
    copies: tuple[Part, ...] = ("copies",) if arm.augment else ()
    if arm.learn == "labels":
        return ("train", *copies)
    parts: list[Part] = []
    if recipe.knowledge.responses != "teacher-always":
        parts.append(part_of(recipe, arm))
    if learns_unlabelled(recipe, arm):
        parts.append("unlabelled")
    if recipe.knowledge.responses != "data":
        parts.append("written")
    return (*parts, *copies)


def learns_copies(recipe: Recipe, unit: Unit) -> bool:
    """Return whether the model that a unit trains learns copies of its samples."""
    if unit.arm:
        return bool(recipe.arms[unit.arm].augment)
    return bool(recipe.teacher and recipe.teacher.finetune and recipe.teacher.finetune.augment)


def needs_fit(arm: Arm) -> bool:
    """Return whether an arm's recalibrator has to be fitted on validation knowledge."""
    return arm.recalibrator is not None and arm.recalibrator.build().needs_fit


def follows_gap(recipe: Recipe, arm: Arm) -> bool:
    """Return whether an arm's samples are drawn from `train.mixture` by the gap to the teacher."""
    is_mixed = recipe.train.mixture is not None and arm.mixture is not False
    return is_mixed and arm.learn == "knowledge"


def of_arms(units: Iterable[Unit], arms: Sequence[str]) -> list[Unit]:
    """Return the units of some arms, or all units if no arm is given; `teacher` counts as an arm.

    Raises:
        UserError: no unit belongs to one of the arms.
    """
    units = list(units)
    if not arms:
        return units
    known = {unit.arm or "teacher" for unit in units}
    for arm in arms:
        if arm not in known:
            raise UserError(
                f"--arm {arm}: no such arm{did_you_mean(arm, known)}; the recipe has "
                f"{', '.join(sorted(known)) or 'none here'}"
            )
    return [unit for unit in units if (unit.arm or "teacher") in arms]


def with_upstream(units: dict[str, Unit], targets: Iterable[Unit]) -> list[Unit]:
    """Return the targets and everything they need, in an order in which they can run."""
    needed: set[str] = set()
    stack = [unit.key for unit in targets]
    while stack:
        key = stack.pop()
        if key not in needed:
            needed.add(key)
            stack.extend(units[key].needs)
    return [unit for key, unit in units.items() if key in needed]
