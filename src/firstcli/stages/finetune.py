"""Stage `finetune`: fine-tune the teacher on the labels; and what both training stages share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Stage, TrainingFacts
from firstcli.stages.checks import SharedCheck
from firstcli.workspace.artifacts import CHECKPOINTS, Artifact
from firstcli.workspace.units import Unit, part_of

if TYPE_CHECKING:
    from firstcli.recipe.schema import Recipe
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.workspace.run import Run


class TrainingStage(Stage):
    """A stage whose units train one model each."""

    shared = True
    checks = (checks.OVERLAP, checks.UNPINNED)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        return fingerprints.training(run, unit)

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        return (*self.checks, checks.WEIGHTS[unit.role])

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.stages import train_model

        return train_model.check(run, unit)

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import inputs

        width = 4 if fingerprints.saved_dtype(run, unit) == "float32" else 2
        return width * inputs.weights(run, unit.role)

    def disk_at_work(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import inputs

        # Two checkpoints, each with the float32 weights and Adam's two moments.
        return 24 * inputs.weights(run, unit.role)

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate:
        return probe.training(unit)

    def resumption(self, folder: Path) -> str:
        from firstcli.training import checkpoints

        return checkpoints.resumption(folder / CHECKPOINTS)

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        return TrainingFacts.of(run.manifests[unit.key].facts).in_words(run.recipe.knowledge.top_k)


class Finetune(TrainingStage):
    """Trains the teacher, and with `knowledge.folds` one more teacher per fold."""

    name = "finetune"
    help = "Fine-tune the teacher."
    example = "recipe.yaml --set teacher.finetune.epochs=2"
    format = 3  # float32 logits of half-precision products
    why_nothing = "the recipe has no teacher.finetune"

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

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        inputs = super().fingerprint_inputs(run, unit)
        if unit.fold is None:
            return inputs
        return {**inputs, "fold": f"{unit.fold} of {run.recipe.knowledge.folds}"}

    def work(self, run: Run, unit: Unit, folder: Path) -> TrainingFacts:
        from firstcli.stages import train_model

        title = "fine-tuning the teacher" + (f" of fold {unit.fold}" if unit.fold else "")
        return train_model.train(run, unit, folder, title)


def _folds(recipe: Recipe) -> range:
    """Return the folds that need a teacher: those that an arm learns from."""
    arms = [arm for arm in recipe.arms.values() if arm.learn == "knowledge"]
    needed = any(part_of(recipe, arm) == "out-of-fold" for arm in arms)
    return range(1, (recipe.knowledge.folds or 0) + 1 if needed else 1)


FINETUNE = Finetune()
