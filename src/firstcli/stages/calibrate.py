"""Stage `calibrate`: fit an arm's recalibrator on the validation part of the knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from firstcli.errors import UserError
from firstcli.recalibration.criteria import CRITERIA
from firstcli.recalibration.diagnostics import CalibrationArtifact
from firstcli.recipe.schema import recalibrator_of
from firstcli.stages import inputs
from firstcli.training import soft_targets
from firstcli.training.soft_targets import Positions
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


def check(run: Run, unit: Unit) -> str:
    """Nothing can go wrong that extraction does not check."""
    arm = run.recipe.arms[unit.arm]
    assert arm.recalibrator
    return f"{arm.recalibrator.name} on {len(run.training.validation)} validation samples"


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Fit and write the state, with what it was fitted on and for."""
    arm = run.recipe.arms[unit.arm]
    assert arm.recalibrator and arm.mass
    rows = inputs.training_rows(run, "teacher", "validation")
    knowledge = inputs.stored_knowledge(run, "validation", rows)
    chosen = Positions.joined(list(soft_targets.recalibrated_of(arm, rows, knowledge)))
    if not len(chosen.topk):
        raise UserError(f"arms.{unit.arm}: no validation position to fit the recalibrator on")
    mass = soft_targets.taught_mass(arm, chosen)
    recalibrator = recalibrator_of(arm)
    recalibrator.fit(chosen.topk, chosen.is_label, mass, arm.mass)
    for warning in recalibrator.diagnostics().warnings:
        run.console.warn(f"arms.{unit.arm}: {warning}")
    artifact = CalibrationArtifact.measure(
        recalibrator,
        chosen.topk,
        chosen.is_label,
        mass,
        name=arm.recalibrator.name,
        options=arm.recalibrator.options,
        positions="decisive" if not chosen.decisive.size or chosen.decisive.all() else "all",
        mass_mode=arm.mass,
    )
    artifact.save(folder / f"{unit.arm}.json")
    return artifact.short_facts()


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Show what was fitted, an arm a row."""
    table = Table(title="recalibrators, on the validation rows that they were fitted on")
    headings = ("arm", "recalibrator", "T", "by ECE", "by NLL", "by Brier")
    for heading in (*headings, "rows", "accuracy", "confidence", "ECE"):
        table.add_column(heading)
    for unit in units:
        facts = run.manifests[unit.key].facts
        table.add_row(
            unit.arm,
            facts["recalibrator"],
            _temperature(facts),
            *(_number(facts.get("temperatures", {}).get(name)) for name in CRITERIA),
            str(facts["rows"]),
            f"{100 * facts['accuracy']:.1f}",
            f"{100 * facts['confidence_before']:.1f} -> {100 * facts['confidence_after']:.1f}",
            f"{100 * facts['ece_before']:.1f} -> {100 * facts['ece_after']:.1f}",
        )
    run.console.show(table)
    return {unit.arm: run.manifests[unit.key].facts for unit in units}


def _temperature(facts: Mapping[str, Any]) -> str:
    """Write a temperature with its interval, where there is one."""
    shown = _number(facts.get("temperature"))
    if "interval" not in facts:
        return shown
    low, high = facts["interval"]
    return f"{shown} ({low:.3g} to {high:.3g})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
