"""Stage `finetune`: fine-tune the teacher on the training part's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstcli import models, training, training_arguments
from firstcli.artifacts import CHECKPOINTS
from firstcli.recipe import Training
from firstcli.run import Run
from firstcli.stages import inputs
from firstcli.stages.students import estimate, save
from firstcli.units import Unit


def _settings(run: Run) -> Training:
    assert run.recipe.teacher and run.recipe.teacher.finetune
    return run.recipe.teacher.finetune


def check(run: Run, unit: Unit) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    device = models.device_of(inputs.family(run, "teacher"))
    training_arguments.arguments(
        run.folder, _settings(run), run.recipe.trainer, run.recipe.seed, device
    )
    return estimate(run, "teacher", _settings(run))


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Train the teacher and save it as a Hugging Face folder."""
    settings = _settings(run)
    device = models.device_of(inputs.family(run, "teacher"))
    rows = inputs.training_rows(run, "teacher", "train")
    model = inputs.starting_model(run, "teacher", settings.dtype)
    tokenizer = inputs.tokenizer(run, "teacher")
    args = training_arguments.arguments(
        folder / CHECKPOINTS, settings, run.recipe.trainer, run.recipe.seed, device
    )
    outcome = training.train(
        model, rows, None, "labels", args, run.console, "fine-tuning the teacher"
    )
    save(model, tokenizer, folder, outcome)
    return {
        "samples": len(rows),
        "steps": outcome.steps,
        "positions": outcome.positions,
        "loss": outcome.loss,
    }


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of the teacher."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
