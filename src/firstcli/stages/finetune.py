"""Stage `finetune`: fine-tune the teacher on the training part's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstcli.recipe import Training
from firstcli.run import Run
from firstcli.stages import students
from firstcli.units import Unit


def _settings(run: Run) -> Training:
    assert run.recipe.teacher and run.recipe.teacher.finetune
    return run.recipe.teacher.finetune


def check(run: Run, unit: Unit) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    return students.check(run, "teacher", _settings(run))


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Train the teacher and save it as a Hugging Face folder."""
    outcome = students.train(
        run, "teacher", _settings(run), None, "labels", folder, "fine-tuning the teacher"
    )
    return outcome.facts


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of the teacher."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
