"""Stage `calibrate`: fit an arm's recalibrator on the validation part of the knowledge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from firstcli.errors import UserError
from firstcli.stages import checks
from firstcli.stages.base import Facts, Stage
from firstcli.stages.extract import EXTRACT
from firstcli.workspace.artifacts import Artifact, Manifest
from firstcli.workspace.units import Unit, calibration_path, needs_fit

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.recipe.schema import Recipe
    from firstcli.workspace.run import Run


@dataclass(frozen=True, slots=True)
class CalibrationFacts(Facts):
    """What a fitted recalibrator came to, on the rows that it was fitted on."""

    recalibrator: str
    rows: int
    accuracy: float
    confidence_before: float
    confidence_after: float
    ece_before: float
    ece_after: float
    plugin: Mapping[str, JSON] = field(default_factory=dict)
    """The recalibrator's own facts, such as `temperature`."""

    @classmethod
    def of_artifact(cls, artifact: CalibrationArtifact) -> Self:
        return cls._split(artifact.short_facts())

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        return cls._split(manifest.facts)

    @classmethod
    def _split(cls, facts: Mapping[str, JSON]) -> Self:
        own = {field.name for field in fields(cls)}
        known = {name: value for name, value in facts.items() if name in own}
        return cls(**known, plugin={k: v for k, v in facts.items() if k not in own})

    def as_json(self) -> dict[str, JSON]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "plugin"}
        return own | dict(self.plugin)


class Calibrate(Stage):
    """Fits one recalibrator per arm."""

    name = "calibrate"
    help = "Fit each recalibrator on the held-out validation part."
    format = 2  # intervals, criteria, ranks
    checks = (checks.SEEN_ROWS, checks.UNPINNED)

    def key(self, arm: str) -> str:
        return f"{self.name} {arm}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for name, arm in recipe.arms.items():
            if needs_fit(arm):
                artifact = Artifact(calibration_path(folder, name), False)
                needs = (EXTRACT.key("validation"),)
                yield Unit(self.key(name), self.name, artifact, needs, arm=name)

    def why_nothing(self, recipe: Recipe) -> str:
        return "no arm has a recalibrator that is fitted"

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.stages import fingerprints

        names = ("recalibrator", "mass", "recalibrate", "top_k")
        # The answer positions follow from the candidates, which the knowledge does not contain.
        samples = fingerprints.part_samples(run, "validation")
        return fingerprints.arm_fields(run.recipe, unit.arm, names) | samples

    def check(self, run: Run, unit: Unit) -> str:
        arm = run.recipe.arms[unit.arm]
        assert arm.recalibrator
        return f"{arm.recalibrator.name} on {len(run.training.validation)} validation samples"

    def work(self, run: Run, unit: Unit, folder: Path) -> CalibrationFacts:
        from firstcli.recalibration.diagnostics import CalibrationArtifact
        from firstcli.stages import inputs
        from firstcli.training import soft_targets

        arm = run.recipe.arms[unit.arm]
        assert arm.recalibrator and arm.mass
        rows = inputs.training_rows(run, "teacher", "validation")
        knowledge = inputs.stored_knowledge(run, "validation", rows)
        positions = soft_targets.Positions.joined(
            list(soft_targets.recalibrated_chunks(arm, rows, knowledge))
        )
        if not len(positions.topk):
            raise UserError(f"arms.{unit.arm}: no validation position to fit the recalibrator on")
        mass = soft_targets.target_mass(arm, positions)
        recalibrator = arm.recalibrator.build()
        recalibrator.fit(positions.topk, positions.is_label, mass, arm.mass)
        for warning in recalibrator.diagnostics().warnings:
            run.console.warn(f"arms.{unit.arm}: {warning}")
        artifact = CalibrationArtifact.measure(
            recalibrator,
            positions.topk,
            positions.is_label,
            mass,
            name=arm.recalibrator.name,
            options=arm.recalibrator.given,
            positions="decisive" if positions.is_answer.all() else "all",
            mass_mode=arm.mass,
        )
        artifact.save(folder / f"{unit.arm}.json")
        return CalibrationFacts.of_artifact(artifact)

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        """Print one row per arm."""
        title = "recalibrators, on the validation rows that they were fitted on"
        show_fitted(run, title, {unit.arm: unit for unit in units})
        return {unit.arm: run.manifests[unit.key].facts for unit in units}


def show_fitted(run: Run, title: str, units: Mapping[str, Unit]) -> None:
    """Print the facts of fitted recalibrators, one row per arm or model."""
    from rich.table import Table

    from firstcli.recalibration.criteria import CRITERIA

    table = Table(title=title)
    headings = ("fitted for", "recalibrator", "T", "by ECE", "by NLL", "by Brier")
    for heading in (*headings, "rows", "accuracy", "confidence", "ECE"):
        table.add_column(heading)
    for name, unit in units.items():
        facts = CalibrationFacts.of(run.manifests[unit.key])
        temperatures = facts.plugin.get("temperatures", {})
        table.add_row(
            name,
            facts.recalibrator,
            _temperature(facts.plugin),
            *(_number(temperatures.get(criterion)) for criterion in CRITERIA),
            str(facts.rows),
            f"{100 * facts.accuracy:.1f}",
            f"{100 * facts.confidence_before:.1f} -> {100 * facts.confidence_after:.1f}",
            f"{100 * facts.ece_before:.1f} -> {100 * facts.ece_after:.1f}",
        )
    run.console.show(table)


def _temperature(facts: Mapping[str, JSON]) -> str:
    """Format a temperature with its interval, if there is one."""
    text = _number(facts.get("temperature"))
    if "interval" not in facts:
        return text
    low, high = facts["interval"]
    return f"{text} ({low:.3g} to {high:.3g})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


CALIBRATE = Calibrate()
