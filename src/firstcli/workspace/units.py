"""Units of work, a pure function of the recipe: the least that is redone, and what needs what.

    finetune -> extract -> calibrate -> distill -> eval -> report

A unit is (stage, arm) or (stage, model, evaluation); arms with several seeds have several models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.schema import Arm, Recipe, recalibrator_of
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.run import Part, Role

Stage = Literal["finetune", "extract", "calibrate", "distill", "eval", "report"]
STAGES: tuple[Stage, ...] = ("finetune", "extract", "calibrate", "distill", "eval", "report")


@dataclass(frozen=True, slots=True)
class Model:
    """One whose answers are recorded: the teacher or a student, as it is or followed by its T."""

    arm: str = ""
    """Whose student it is; empty for the teacher."""
    seed: int | None = None
    """Which of the recipe's seeds trained it, if it has some."""
    posthoc: bool = False
    """Whether the model is followed by its own temperature."""

    @property
    def trained(self) -> str:
        """The name of the model itself, which is its folder's: `first` or `first@1`."""
        return (self.arm or "teacher") + ("" if self.seed is None else f"@{self.seed}")

    @property
    def name(self) -> str:
        """The name of its records: `first@1`, or `first@1+T` where a temperature follows."""
        return self.trained + ("+T" if self.posthoc else "")

    @property
    def row(self) -> str:
        """What tables call it, whatever its seed: `first`, or `first + T`."""
        return (self.arm or "teacher") + (" + T" if self.posthoc else "")


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that is redone."""

    key: str
    stage: Stage
    artifact: Artifact
    needs: tuple[str, ...] = ()
    part: Part = "train"
    fold: int | None = None
    """Which part of the training rows a teacher is not fine-tuned on; None: it sees all."""
    arm: str = ""
    evaluation: str = ""
    model: Model | None = None
    """Which model is trained or evaluated; with no `evaluation`, whose temperature is fitted."""

    @property
    def seed(self) -> int | None:
        """Which of the recipe's seeds drives it; None: the recipe's one `seed`."""
        return self.model.seed if self.model else None

    @property
    def role(self) -> Role:
        """Whose tokenizer the unit works with."""
        return "student" if self.model and self.model.arm else "teacher"


def models_of(recipe: Recipe) -> list[Model]:
    """Return all models in the order of the tables: a row's seeds beside one another."""
    found: list[Model] = []
    if recipe.teacher:
        found.append(Model())
        found += [Model(posthoc=True)] if recipe.teacher.posthoc else []
    seeds: tuple[int | None, ...] = recipe.seeds or (None,)
    for name, arm in recipe.arms.items():
        for posthoc in (False, True) if arm.posthoc else (False,):
            found += [Model(name, seed, posthoc) for seed in seeds]
    return found


def units_of(recipe: Recipe, folder: Path) -> dict[str, Unit]:
    """Return every unit of a recipe in an order in which they can run."""
    units = [*_units_of_teachers(recipe, folder), *_units_of_students(recipe, folder)]
    for evaluation in recipe.evaluate:
        units += [_evaluation(recipe, folder, evaluation.name, one) for one in models_of(recipe)]
    needs = tuple(unit.key for unit in units if unit.stage in ("calibrate", "eval"))
    units.append(Unit("report", "report", Artifact(folder / "report", True), needs))
    return {unit.key: unit for unit in units}


def _units_of_teachers(recipe: Recipe, folder: Path) -> Iterator[Unit]:
    """Yield what is done once: teachers, their knowledge, the recalibrators."""
    knowing = {name: arm for name, arm in recipe.arms.items() if arm.learn == "knowledge"}
    teacher = _teacher(recipe)
    if teacher:
        yield Unit("finetune", "finetune", Artifact(folder / "teacher", True))
    parts: dict[Part, tuple[str, ...]] = {part_of(recipe, arm): teacher for arm in knowing.values()}
    if "out-of-fold" in parts:
        folds = range(1, (recipe.knowledge.folds or 0) + 1)
        for fold in folds:
            artifact = Artifact(folder / "folds" / str(fold), True)
            yield Unit(f"finetune fold {fold}", "finetune", artifact, fold=fold)
        parts["out-of-fold"] = tuple(f"finetune fold {fold}" for fold in folds)
    fitted = [name for name, arm in knowing.items() if needs_fit(arm)]
    if fitted:
        parts["validation"] = teacher
    for part, needs in parts.items():
        artifact = Artifact(folder / "knowledge" / part, True)
        yield Unit(f"extract {part}", "extract", artifact, needs, part=part)
    for name in fitted:
        artifact = Artifact(folder / "calibration" / f"{name}.json", False)
        after = ("extract validation",)
        yield Unit(f"calibrate {name}", "calibrate", artifact, after, arm=name)


def _units_of_students(recipe: Recipe, folder: Path) -> Iterator[Unit]:
    """Yield every student, and the temperature of every model that is followed by one."""
    for model in models_of(recipe):
        if model.posthoc:
            artifact = Artifact(folder / "calibration" / f"{model.name}.json", False)
            needs = _trained(recipe, model)
            yield Unit(f"eval {model.name}", "eval", artifact, needs, arm=model.arm, model=model)
        elif model.arm:
            arm = recipe.arms[model.arm]
            needs = (f"extract {part_of(recipe, arm)}",) if arm.learn == "knowledge" else ()
            needs += (f"calibrate {model.arm}",) if needs_fit(arm) else ()
            artifact = Artifact(folder / "students" / model.name, True)
            key = f"distill {model.name}"
            yield Unit(key, "distill", artifact, needs, arm=model.arm, model=model)


def _evaluation(recipe: Recipe, folder: Path, evaluation: str, model: Model) -> Unit:
    path = folder / "eval" / evaluation / f"{model.name}.parquet"
    if model.posthoc:  # the model's own answers, read in another way
        needs: tuple[str, ...] = (f"eval {evaluation}/{model.trained}", f"eval {model.name}")
    else:
        needs = _trained(recipe, model)
    return Unit(
        f"eval {evaluation}/{model.name}",
        "eval",
        Artifact(path, False),
        needs,
        arm=model.arm,
        evaluation=evaluation,
        model=model,
    )


def _teacher(recipe: Recipe) -> tuple[str, ...]:
    return ("finetune",) if recipe.teacher and recipe.teacher.finetune else ()


def _trained(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """Return what must be done before a model answers."""
    return (f"distill {model.trained}",) if model.arm else _teacher(recipe)


def part_of(recipe: Recipe, arm: Arm) -> Part:
    """Return which knowledge an arm learns from."""
    folded = recipe.knowledge.folds is not None if arm.out_of_fold is None else arm.out_of_fold
    return "out-of-fold" if folded else "train"


def needs_fit(arm: Arm) -> bool:
    return arm.learn == "knowledge" and recalibrator_of(arm).needs_fit


def wanted(units: dict[str, Unit], stage: Stage, arms: Sequence[str]) -> list[Unit]:
    """Return the units of a stage, limited to some arms where the stage has arms."""
    chosen = [unit for unit in units.values() if unit.stage == stage]
    if arms:
        known = {_named(unit) for unit in chosen} - {""}
        for arm in arms:
            if arm not in known:
                raise UserError(
                    f"--arm {arm}: no such arm{did_you_mean(arm, known)}; the recipe has "
                    f"{', '.join(sorted(known)) or 'none here'}"
                )
        chosen = [unit for unit in chosen if _named(unit) in arms]
    return chosen


def _named(unit: Unit) -> str:
    return unit.arm or ("teacher" if unit.model else "")


def with_upstream(units: dict[str, Unit], targets: Iterable[Unit]) -> list[Unit]:
    """Return the targets and all that they need, in an order in which they can run."""
    needed: set[str] = set()
    stack = [unit.key for unit in targets]
    while stack:
        key = stack.pop()
        if key not in needed:
            needed.add(key)
            stack.extend(units[key].needs)
    return [unit for key, unit in units.items() if key in needed]
