"""Stage `finetune`: fine-tune the teacher on the labels; and what both training stages share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Stage, TrainingFacts
from firstcli.stages.checks import SharedCheck
from firstcli.workspace.artifacts import CHECKPOINTS, Artifact
from firstcli.workspace.units import Unit, further_teachers, part_of, teacher_path

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
        from firstcli.stages import role_models

        saved = run.training_settings(unit).saved
        model = 0 if saved == "adapter" else role_models.weights(run, unit.role)
        adapter = 0 if saved == "merged" else role_models.trainable_weights(run, unit)
        width = 4 if fingerprints.saved_dtype(run, unit) == "float32" else 2
        return width * model + 4 * adapter  # adapters are saved in float32

    def disk_at_work(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import role_models

        # Two checkpoints, each with the weights that are trained and Adam's two moments.
        return 24 * role_models.trainable_weights(run, unit)

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return probe.training(unit)

    def resumption(self, run: Run, unit: Unit) -> str:
        from firstcli.training import checkpoints

        return checkpoints.resumption(unit.artifact.work / CHECKPOINTS)

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        return TrainingFacts.of(run.manifests[unit.key].facts).in_words(run.recipe.knowledge.top_k)


class Finetune(TrainingStage):
    """Trains the teacher, and further ones: per seed of it, and per fold of `knowledge.folds`."""

    name = "finetune"
    help = "Fine-tune the teacher."
    example = "recipe.yaml --set teacher.finetune.epochs=2"
    format = 3  # float32 logits of half-precision products
    why_nothing = "the recipe has no teacher.finetune"

    def key(self, fold: int | None = None, seed: int | None = None) -> str:
        if seed is not None:
            return f"{self.name} seed {seed}"
        return self.name if fold is None else f"{self.name} fold {fold}"

    def teacher_keys(self, recipe: Recipe, seed: int | None = None) -> tuple[str, ...]:
        """Return the key of the unit that makes the teacher, or a further one, if there is one."""
        return (self.key(seed=seed),) if recipe.teacher and recipe.teacher.finetune else ()

    def fold_keys(self, recipe: Recipe) -> tuple[str, ...]:
        return tuple(self.key(fold) for fold in _folds(recipe))

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        if self.teacher_keys(recipe):
            yield Unit(self.key(), self.name, Artifact(teacher_path(folder), True))
        for seed in further_teachers(recipe):
            artifact = Artifact(teacher_path(folder, seed), True)
            yield Unit(self.key(seed=seed), self.name, artifact, teacher_seed=seed)
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
        title += "" if unit.teacher_seed is None else f" of seed {unit.teacher_seed}"
        return train_model.train(run, unit, folder, title)


def _folds(recipe: Recipe) -> range:
    """Return the folds that need a teacher: those that an arm learns from."""
    arms = [arm for arm in recipe.arms.values() if arm.learn == "knowledge"]
    needed = any(part_of(recipe, arm) == "out-of-fold" for arm in arms)
    return range(1, (recipe.knowledge.folds or 0) + 1 if needed else 1)


FINETUNE = Finetune()
