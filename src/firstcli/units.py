"""Units of work, a pure function of the recipe: the least that is redone, and what needs what.

    finetune -> extract -> calibrate -> distill -> eval -> report

A unit is (stage, arm) or (stage, model, evaluation).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from firstcli.artifacts import Artifact
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe import Arm, Recipe, recalibrator_of
from firstcli.run import Part, Role

Stage = Literal["finetune", "extract", "calibrate", "distill", "eval", "report"]
STAGES: tuple[Stage, ...] = ("finetune", "extract", "calibrate", "distill", "eval", "report")


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that is redone."""

    key: str
    stage: Stage
    artifact: Artifact
    needs: tuple[str, ...] = ()
    part: Part = "train"
    arm: str = ""
    evaluation: str = ""
    model: str = ""
    """`teacher` or an arm's name."""

    @property
    def role(self) -> Role:
        """Whose tokenizer the unit works with."""
        of_student = self.stage == "distill" or (self.stage == "eval" and self.model != "teacher")
        return "student" if of_student else "teacher"


def units_of(recipe: Recipe, folder: Path) -> dict[str, Unit]:
    """Return every unit of a recipe in an order in which they can run."""
    units: list[Unit] = []
    arms = recipe.arms
    knowing = {name: arm for name, arm in arms.items() if arm.learn == "knowledge"}
    teacher: tuple[str, ...] = ("finetune",) if recipe.teacher and recipe.teacher.finetune else ()
    if teacher:
        units.append(Unit("finetune", "finetune", Artifact(folder / "teacher", True)))
    fitted = [name for name, arm in knowing.items() if needs_fit(arm)]
    parts: list[Part] = ["train"] if knowing else []
    if fitted:
        parts.append("validation")
    for part in parts:
        artifact = Artifact(folder / "knowledge" / part, True)
        units.append(Unit(f"extract {part}", "extract", artifact, teacher, part=part))
    for name in fitted:
        artifact = Artifact(folder / "calibration" / f"{name}.json", False)
        after = ("extract validation",)
        units.append(Unit(f"calibrate {name}", "calibrate", artifact, after, arm=name))
    for name in arms:
        needs: tuple[str, ...] = ("extract train",) if name in knowing else ()
        needs += (f"calibrate {name}",) if name in fitted else ()
        artifact = Artifact(folder / "students" / name, True)
        units.append(Unit(f"distill {name}", "distill", artifact, needs, arm=name, model=name))
    for evaluation in recipe.evaluate:
        for model in (*(["teacher"] if recipe.teacher else []), *arms):
            needs = teacher if model == "teacher" else (f"distill {model}",)
            path = folder / "eval" / evaluation.name / f"{model}.parquet"
            key = f"eval {evaluation.name}/{model}"
            units.append(
                Unit(
                    key,
                    "eval",
                    Artifact(path, False),
                    needs,
                    evaluation=evaluation.name,
                    model=model,
                )
            )
    needs = tuple(unit.key for unit in units if unit.stage in ("calibrate", "eval"))
    units.append(Unit("report", "report", Artifact(folder / "report", True), needs))
    return {unit.key: unit for unit in units}


def needs_fit(arm: Arm) -> bool:
    return arm.learn == "knowledge" and recalibrator_of(arm).needs_fit


def wanted(units: dict[str, Unit], stage: Stage, arms: Sequence[str]) -> list[Unit]:
    """Return the units of a stage, limited to some arms where the stage has arms."""
    chosen = [unit for unit in units.values() if unit.stage == stage]
    if arms:
        known = {unit.model or unit.arm for unit in chosen} - {""}
        for arm in arms:
            if arm not in known:
                raise UserError(
                    f"--arm {arm}: no such arm{did_you_mean(arm, known)}; the recipe has "
                    f"{', '.join(sorted(known)) or 'none here'}"
                )
        chosen = [unit for unit in chosen if (unit.model or unit.arm) in arms]
    return chosen


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
