"""Stage `finetune`: fine-tune the teacher on the training part's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from firstcli.data.encoded import EncodedStore
from firstcli.recipe.schema import Training
from firstcli.stages import inputs, train_model
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


def _settings(run: Run) -> Training:
    assert run.recipe.teacher and run.recipe.teacher.finetune
    return run.recipe.teacher.finetune


def _rows(run: Run, unit: Unit) -> EncodedStore:
    if unit.fold is None:
        return inputs.training_rows(run, "teacher", "train")
    return inputs.rows_of_fold(run, unit.fold, seen=True)


def check(run: Run, unit: Unit) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    return train_model.check(run, "teacher", _settings(run), _rows(run, unit))


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Train the teacher and save it as a Hugging Face folder."""
    settings, rows = _settings(run), _rows(run, unit)
    what = "fine-tuning the teacher" + (f" of fold {unit.fold}" if unit.fold else "")
    seed = run.recipe.seed
    return train_model.train(
        run, "teacher", settings, seed, rows, None, "labels", folder, what
    ).facts


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Return the facts of the teacher."""
    return {unit.key: run.manifests[unit.key].facts for unit in units}
