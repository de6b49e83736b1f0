"""Stage `finetune`: fine-tune the teacher on the labels of the training part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.stages import checks
from firstcli.stages.base import Stage
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Unit, part_of

if TYPE_CHECKING:
    from firstcli.data.encoded import EncodedStore
    from firstcli.recipe.schema import Recipe, Training
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.stages.train_model import TrainingFacts
    from firstcli.workspace.run import Run


class Finetune(Stage):
    """Trains the teacher, and with `knowledge.folds` one more teacher per fold."""

    name = "finetune"
    help = "Fine-tune the teacher."
    format = 2  # batches of similar length
    shared = True
    checks = (checks.OVERLAP, checks.UNPINNED)

    def key(self, fold: int | None = None) -> str:
        return self.name if fold is None else f"{self.name} fold {fold}"

    def teacher_keys(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the key of the unit that makes the teacher, if there is one."""
        return (self.key(),) if recipe.teacher and recipe.teacher.finetune else ()

    def fold_keys(self, recipe: Recipe) -> tuple[str, ...]:
        return tuple(self.key(fold) for fold in _folds(recipe))

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        if self.teacher_keys(recipe):
            yield Unit(self.key(), self.name, Artifact(folder / "teacher", True))
        for fold in _folds(recipe):
            artifact = Artifact(folder / "folds" / str(fold), True)
            yield Unit(self.key(fold), self.name, artifact, fold=fold)

    def why_nothing(self, recipe: Recipe) -> str:
        return "the recipe has no teacher.finetune"

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.stages import fingerprints

        inputs = fingerprints.model(run, "teacher") | fingerprints.training_data(run)
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs |= fingerprints.training_settings("teacher.finetune", _settings(run))
        inputs |= fingerprints.trainer_fields(run.recipe)
        if unit.fold:
            inputs["fold"] = f"{unit.fold} of {run.recipe.knowledge.folds}"
        return inputs

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.stages import train_model

        return train_model.check(run, "teacher", _settings(run), _rows(run, unit))

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import train_model

        return train_model.disk(run, "teacher")

    def disk_at_work(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import train_model

        return train_model.disk_at_work(run, "teacher")

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return probe.training("teacher", _settings(probe.run), unit.fold)

    def work(self, run: Run, unit: Unit, folder: Path) -> TrainingFacts:
        from firstcli.stages import train_model

        what = "fine-tuning the teacher" + (f" of fold {unit.fold}" if unit.fold else "")
        job = train_model.TrainingJob(
            what, "teacher", _settings(run), run.recipe.seed, _rows(run, unit), "labels", None
        )
        return train_model.train(run, job, folder)


def _folds(recipe: Recipe) -> range:
    """Return the folds that need a teacher: those that an arm learns from."""
    arms = [arm for arm in recipe.arms.values() if arm.learn == "knowledge"]
    needed = any(part_of(recipe, arm) == "out-of-fold" for arm in arms)
    return range(1, (recipe.knowledge.folds or 0) + 1 if needed else 1)


def _settings(run: Run) -> Training:
    assert run.recipe.teacher and run.recipe.teacher.finetune
    return run.recipe.teacher.finetune


def _rows(run: Run, unit: Unit) -> EncodedStore:
    from firstcli.stages import inputs

    if unit.fold is None:
        return inputs.training_rows(run, "teacher", "train")
    return inputs.rows_of_fold(run, unit.fold, seen=True)


FINETUNE = Finetune()
