"""The stages, in the order in which they run: the one table that the rest of the program reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.stages.base import Stage
from firstcli.stages.calibrate import CALIBRATE
from firstcli.stages.distill import DISTILL
from firstcli.stages.evaluate import EVALUATE
from firstcli.stages.extract import EXTRACT
from firstcli.stages.finetune import FINETUNE
from firstcli.stages.posthoc import POSTHOC
from firstcli.stages.report import REPORT
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from firstcli.recipe.schema import Recipe

STAGES: list[Stage] = [FINETUNE, EXTRACT, CALIBRATE, DISTILL, POSTHOC, EVALUATE, REPORT]


def stage_of(unit: Unit) -> Stage:
    """Return the stage that owns a unit."""
    return next(stage for stage in STAGES if stage.name == unit.stage)


def units_of(recipe: Recipe, folder: Path) -> dict[str, Unit]:
    """Return every unit of a recipe by its key, in an order in which they can run."""
    return {unit.key: unit for stage in STAGES for unit in stage.units(recipe, folder)}
