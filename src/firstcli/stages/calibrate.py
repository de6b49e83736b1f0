"""Stage `calibrate`: fit an arm's recalibrator on the validation part of the knowledge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from firstcli import metrics, teaching
from firstcli.errors import UserError
from firstcli.recipe import recalibrator_of
from firstcli.run import Run
from firstcli.stages import inputs
from firstcli.teaching import Positions
from firstcli.units import Unit


def check(run: Run, unit: Unit) -> str:
    """Nothing can go wrong that extraction does not check."""
    arm = run.recipe.arms[unit.arm]
    assert arm.recalibrator
    return f"{arm.recalibrator.name} on {len(run.training.validation)} validation samples"


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Fit and write the state, with what it was fitted on and for."""
    arm = run.recipe.arms[unit.arm]
    assert arm.recalibrator
    rows = inputs.training_rows(run, "teacher", "validation")
    knowledge = inputs.stored_knowledge(run, "validation", rows)
    chosen = Positions.joined(list(teaching.recalibrated_of(arm, rows, knowledge)))
    if not len(chosen.topk):
        raise UserError(f"arms.{unit.arm}: no validation position to fit the recalibrator on")
    mass = teaching.taught_mass(arm, chosen)
    recalibrator = recalibrator_of(arm)
    recalibrator.fit(chosen.topk, chosen.is_true, mass)
    state = recalibrator.state()
    _warn(run, unit.arm, state)
    before, after = chosen.topk[:, 0], mass * recalibrator.transform(chosen.topk)[:, 0]
    correct = chosen.is_true[:, 0]
    facts: dict[str, Any] = {
        "recalibrator": arm.recalibrator.name,
        **{
            str(key): state[key]
            for key in ("temperature", "criterion", "at_grid_end")
            if key in state
        },
        "rows": state.get("rows", len(chosen.topk)),
        "accuracy": float(correct.mean()),
        "confidence_before": float(before.mean()),
        "confidence_after": float(after.mean()),
        # In-sample: the rows that the state was fitted on.
        "ece_before": metrics.ece(np.minimum(before, 1.0), correct),
        "ece_after": metrics.ece(np.minimum(after, 1.0), correct),
    }
    artifact = {
        **facts,
        "options": arm.recalibrator.options,
        "mass": arm.mass,
        "positions": "decisive" if not chosen.decisive.size or chosen.decisive.all() else "all",
        "state": state,
    }
    path = folder / f"{unit.arm}.json"
    path.write_text(json.dumps(artifact, indent=1, sort_keys=True) + "\n", "utf-8")
    return facts


def _warn(run: Run, arm: str, state: dict[str, Any]) -> None:
    if state.get("at_grid_end"):
        run.console.warn(
            f"arms.{arm}: the best temperature {state['temperature']} lies at the end of the grid"
        )
    if state.get("few_rows"):
        run.console.warn(f"arms.{arm}: fitted on few rows only; its temperature will scatter")


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Show what was fitted, an arm a row."""
    table = Table(title="recalibrators, on the validation rows that they were fitted on")
    headings = ("arm", "recalibrator", "T", "rows", "accuracy", "confidence", "ECE")
    for heading in headings:
        table.add_column(heading)
    for unit in units:
        facts = run.manifests[unit.key].facts
        temperature = facts.get("temperature")
        table.add_row(
            unit.arm,
            facts["recalibrator"],
            "–" if temperature is None else f"{temperature:.3g}",
            str(facts["rows"]),
            f"{100 * facts['accuracy']:.1f}",
            f"{100 * facts['confidence_before']:.1f} -> {100 * facts['confidence_after']:.1f}",
            f"{100 * facts['ece_before']:.1f} -> {100 * facts['ece_after']:.1f}",
        )
    run.console.show(table)
    return {unit.arm: run.manifests[unit.key].facts for unit in units}
