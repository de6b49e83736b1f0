"""The stages, in the order in which they run: the one table that the rest of the program reads."""

from __future__ import annotations

from collections.abc import Iterable
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
from firstcli.stages.respond import RESPOND
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from firstcli.recipe.schema import Recipe

STAGES: list[Stage] = [
    *(FINETUNE, RESPOND, EXTRACT, CALIBRATE),
    *(DISTILL, POSTHOC, EVALUATE, REPORT),
]


def stage_of(unit: Unit) -> Stage:
    """Return the stage that owns a unit."""
    return next(stage for stage in STAGES if stage.name == unit.stage)


def units_of(recipe: Recipe, folder: Path) -> dict[str, Unit]:
    """Return every unit of a recipe by its key, in an order in which they can run."""
    return {unit.key: unit for stage in STAGES for unit in stage.units(recipe, folder)}


def completing_units(
    stage: Stage, targets: Iterable[Unit], recipe: Recipe, folder: Path
) -> list[Unit]:
    """Return the units of other stages without which a command's targets are incomplete.

    Args:
        stage: the command's stage.
        targets: its units.
        recipe: the recipe.
        folder: the run folder.
    """
    trained = {unit.model.trained for unit in targets}
    units = [
        unit for other in STAGES if other.completes is stage for unit in other.units(recipe, folder)
    ]
    return [unit for unit in units if unit.model.trained in trained]
