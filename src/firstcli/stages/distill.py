"""Stage `distill`: train the students."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from firstcli.stages import checks, fingerprints
from firstcli.stages.base import TrainingFacts
from firstcli.stages.calibrate import CALIBRATE, candidate_tokens
from firstcli.stages.checks import SharedCheck
from firstcli.stages.extract import EXTRACT
from firstcli.stages.finetune import TrainingStage
from firstcli.stages.respond import RESPOND
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    STUDENTS,
    Model,
    Unit,
    calibration_path,
    fitted_name,
    follows_gap,
    learned_parts,
    model_path,
    models_of,
    needs_fit,
    recalibrated_together,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.sections import Arm
    from firstcli.workspace.run import Run
    from firstcli.workspace.units import Role


class Distill(TrainingStage):
    """Trains one student per arm and seed."""

    name = "distill"
    help = "Train the students, one per arm, after everything that they need."
    example = "recipe.yaml --arm first-logit"
    format = 3  # float32 logits of half-precision products
    has_arms = True

    def key(self, model: Model) -> str:
        return f"{self.name} {model.trained}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for model in models_of(recipe):
            if not model.arm or model.posthoc:
                continue
            arm = recipe.arms[model.arm]
            parts = learned_parts(recipe, arm) if arm.learn == "knowledge" else ()
            needs = [key for part in parts for key in EXTRACT.keys(recipe, arm, part)]
            if arm.learn == "labels" and arm.augment:
                needs += RESPOND.keys_of_copies(recipe)
            needs += CALIBRATE.keys(recipe, model.arm) if needs_fit(arm) else []
            needs += [EXTRACT.key("validation")] if follows_gap(recipe, arm) else []
            artifact = Artifact(model_path(folder, model), True)
            yield Unit(self.key(model), self.name, artifact, tuple(needs), model=model)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        inputs = super().fingerprint_inputs(run, unit)
        if run.recipe.arms[unit.arm].learn == "labels":
            return inputs
        parts = learned_parts(run.recipe, run.recipe.arms[unit.arm])
        if "unlabelled" in parts:
            inputs = {**inputs, "unlabelled samples": run.part_content("unlabelled")}
        if follows_gap(run.recipe, run.recipe.arms[unit.arm]):
            inputs = {**inputs, **fingerprints.mixture(run)}
        names = ("recalibrator", "mass", "objective", "span_weights", "recalibrate", "top_k")
        return {**inputs, **fingerprints.arm_fields(run.recipe, unit.arm, names)}

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        learns_knowledge = run.recipe.arms[unit.arm].learn == "knowledge"
        of_knowledge = EXTRACT.checks_of_knowledge(run) if learns_knowledge else ()
        return (*of_knowledge, checks.EXAMPLE, *super().checks_of(run, unit))

    def check(self, run: Run, unit: Unit) -> str:
        arm = run.recipe.arms[unit.arm]
        if arm.recalibrator and not needs_fit(arm):  # `calibrate` checks the others
            from firstcli.stages import teacher_knowledge

            width = teacher_knowledge.knowledge_width(run)
            arm.recalibrator.build().check(min(arm.top_k or width, width), 0)
        if follows_gap(run.recipe, arm):
            from firstcli.stages import mixing

            mixing.check(run, unit)
        return super().check(run, unit)

    def work(self, run: Run, unit: Unit, folder: Path) -> TrainingFacts:
        from firstcli.stages import inputs, mixing, shared_tokens, teacher_knowledge, train_model
        from firstcli.training import soft_targets

        arm, title = run.recipe.arms[unit.arm], f"distilling {unit.subject}"
        if arm.augment:
            checks.warn_of_written_copies(run)
        if arm.learn == "labels":
            facts = train_model.train(run, unit, folder, title)
        else:
            rows = inputs.rows_of(run, unit)
            parts = learned_parts(run.recipe, arm)
            for part in parts:
                checks.require_same_tokens(run, part)
            teachers = [
                soft_targets.Recalibration(
                    soft_targets.recalibrator_for(
                        arm, calibration_path(run.folder, fitted_name(unit.arm, group[0]))
                    ),
                    teacher_knowledge.knowledge_of(run, arm, group),
                )
                for group in recalibrated_together(run.recipe, arm)
            ]
            recalibrator = teachers[0].recalibrator
            over_candidates = run.recipe.knowledge.over_candidates
            role: Role = "student" if over_candidates else "teacher"  # whose tokens these are
            candidates: dict[str, tuple[int, ...]] = {}
            for part in parts:
                candidates |= candidate_tokens(run, recalibrator, part, role)
            targets = soft_targets.SoftTargetBuilder(
                arm,
                recalibrator,
                teachers[0].knowledge,
                rows,
                run.recipe.train.task.name,
                candidates,
                None if over_candidates else shared_tokens.exchanged_eos(run),
                over_candidates,
                _without_label(run, arm),
                run.recipe.knowledge.draws,
                teachers[1:],
            )
            swaps = targets.rank_swaps()
            mixture = mixing.plan(run, unit) if follows_gap(run.recipe, arm) else None
            facts = train_model.train(
                run, unit, folder, title, train_model.objective_of(arm), targets, mixture
            )
            facts = replace(facts, rank_swaps=swaps or None)
            if run.recipe.knowledge.draws is not None:  # nothing is outside what was drawn
                facts = replace(facts, P=None, Q=None)
            if "unlabelled" in parts:
                facts = replace(facts, unlabelled=len(inputs.student_rows(run, "unlabelled")))
            if "written" in parts:
                facts = replace(facts, written=len(inputs.student_rows(run, "written")))
        return facts

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        arm = run.recipe.arms[unit.arm]
        return TrainingFacts.of(run.manifests[unit.key].facts).in_words(
            arm.top_k or run.recipe.knowledge.width
        )

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        table = Table("arm", "learned", "steps", "loss", "P", "Q", title="students")
        for unit in units:
            facts = TrainingFacts.of(run.manifests[unit.key].facts)
            arm = run.recipe.arms[unit.arm]
            table.add_row(
                unit.subject,
                arm.recalibrator.name if arm.recalibrator else "labels",
                str(facts.steps),
                f"{facts.loss:.4f}",
                *("–" if mass is None else f"{mass:.4f}" for mass in (facts.P, facts.Q)),
            )
        run.console.show(table)
        run.console.say(f"each student is in its folder: {run.folder / STUDENTS}/ARM")
        return {unit.subject: run.manifests[unit.key].facts for unit in units}


def _without_label(run: Run, arm: Arm) -> frozenset[str]:
    """Return the ids of a student's rows without a label, if its objective uses labels.

    Copies have none: their words have changed, and their sample's label may no longer be right.
    """
    from firstcli.stages import inputs

    if arm.objective is None or not arm.objective.plugin.needs_labels:
        return frozenset()
    parts = [p for p in learned_parts(run.recipe, arm) if p in ("unlabelled", "copies")]
    return frozenset(row.id for part in parts for row in inputs.student_rows(run, part))


DISTILL = Distill()
