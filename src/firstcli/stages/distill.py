"""Stage `distill`: train the students."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.runtime import distributed
from firstcli.stages import checks
from firstcli.stages.base import Stage
from firstcli.stages.calibrate import CALIBRATE
from firstcli.stages.checks import SharedCheck
from firstcli.stages.extract import EXTRACT
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    Model,
    Unit,
    calibration_path,
    models_of,
    needs_fit,
    part_of,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.data.encoded import EncodedStore
    from firstcli.recipe.schema import Arm, Recipe, Training
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.stages.train_model import TrainingFacts
    from firstcli.training.soft_targets import SoftTargetBuilder
    from firstcli.workspace.run import Run


class Distill(Stage):
    """Trains one student per arm and seed."""

    name = "distill"
    help = "Train the students, one per arm, and everything that they need first."
    format = 2  # batches of similar length
    shared = True
    has_arms = True
    checks = (checks.OVERLAP, checks.UNPINNED)

    def key(self, model: Model) -> str:
        return f"{self.name} {model.trained}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for model in models_of(recipe):
            if not model.arm or model.posthoc:
                continue
            arm = recipe.arms[model.arm]
            needs = [EXTRACT.key(part_of(recipe, arm))] if arm.learn == "knowledge" else []
            needs += [CALIBRATE.key(model.arm)] if needs_fit(arm) else []
            artifact = Artifact(folder / "students" / model.name, True)
            yield Unit(
                self.key(model), self.name, artifact, tuple(needs), arm=model.arm, model=model
            )

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.stages import fingerprints

        arm = run.recipe.arms[unit.arm]
        inputs = fingerprints.model(run, "student", unit.seed) | fingerprints.training_data(run)
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs |= fingerprints.training_settings("student.training", _settings(run, arm))
        inputs |= fingerprints.trainer_fields(run.recipe)
        if arm.learn == "knowledge":
            names = ("recalibrator", "mass", "objective", "recalibrate", "top_k")
            inputs |= fingerprints.arm_fields(run.recipe, unit.arm, names)
        return inputs

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        learns_knowledge = run.recipe.arms[unit.arm].learn == "knowledge"
        return (*(EXTRACT.checks if learns_knowledge else ()), *self.checks)

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.stages import inputs, train_model

        rows = inputs.training_rows(run, "student", "train")
        return train_model.check(run, "student", _settings(run, run.recipe.arms[unit.arm]), rows)

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import train_model

        return train_model.disk(run, "student")

    def disk_at_work(self, run: Run, unit: Unit) -> int:
        from firstcli.stages import train_model

        return train_model.disk_at_work(run, "student")

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return probe.training("student", _settings(probe.run, probe.run.recipe.arms[unit.arm]))

    def work(self, run: Run, unit: Unit, folder: Path) -> TrainingFacts:
        """Train the student and save it with a model card."""
        from firstcli.stages import inputs, train_model
        from firstcli.stages.card import model_card

        assert unit.model
        arm = run.recipe.arms[unit.arm]
        settings = _settings(run, arm)
        rows = inputs.training_rows(run, "student", "train")
        targets = None if arm.learn == "labels" else _soft_targets(run, unit.arm, rows)
        rank_swaps = targets.rank_swaps() if targets else 0.0
        job = train_model.TrainingJob(
            what=f"distilling {unit.model.name}",
            role="student",
            settings=settings,
            seed=run.recipe.seed if unit.seed is None else unit.seed,
            rows=rows,
            objective="labels" if arm.learn == "labels" else arm.objective or "topk-tail",
            soft_targets=targets,
        )
        facts = train_model.with_rank_swaps(train_model.train(run, job, folder), rank_swaps)
        if distributed.is_first():
            card = model_card(run, unit.arm, settings, job.seed, facts)
            (folder / "README.md").write_text(card, "utf-8")
        return facts

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        """Print one row per student."""
        from rich.table import Table

        from firstcli.stages.train_model import TrainingFacts

        table = Table(title="students")
        for heading in ("arm", "learned", "steps", "loss", "P", "Q", "folder"):
            table.add_column(heading, overflow="fold")
        for unit in units:
            facts, arm = TrainingFacts.of(run.manifests[unit.key]), run.recipe.arms[unit.arm]
            table.add_row(
                unit.subject,
                arm.recalibrator.name if arm.recalibrator else "labels",
                str(facts.steps),
                f"{facts.loss:.4f}",
                *("–" if mass is None else f"{mass:.4f}" for mass in (facts.P, facts.Q)),
                str(unit.artifact.path),
            )
        run.console.show(table)
        return {unit.subject: run.manifests[unit.key].facts for unit in units}


def _settings(run: Run, arm: Arm) -> Training:
    from firstcli.recipe.schema import training_of

    return training_of(run.recipe.student, arm)


def _soft_targets(run: Run, name: str, rows: EncodedStore) -> SoftTargetBuilder:
    from firstcli.stages import inputs
    from firstcli.training import soft_targets

    arm = run.recipe.arms[name]
    knowledge = inputs.stored_knowledge(run, part_of(run.recipe, arm), rows)
    recalibrator = soft_targets.recalibrator_for(arm, calibration_path(run.folder, name))
    return soft_targets.SoftTargetBuilder(arm, recalibrator, knowledge, rows)


DISTILL = Distill()
