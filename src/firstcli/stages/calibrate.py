"""Stage `calibrate`: fit an arm's recalibrator on the validation part of the knowledge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from firstcli import metrics
from firstcli.errors import UserError
from firstcli.recalibration.builtin import FEW_ROWS, SingleTemperature
from firstcli.recalibration.criteria import CRITERIA
from firstcli.recipe.schema import recalibrator_of
from firstcli.stages import inputs
from firstcli.training import soft_targets
from firstcli.training.soft_targets import Positions
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray, Recalibrator


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
    chosen = Positions.joined(list(soft_targets.recalibrated_of(arm, rows, knowledge)))
    if not len(chosen.topk):
        raise UserError(f"arms.{unit.arm}: no validation position to fit the recalibrator on")
    mass = soft_targets.taught_mass(arm, chosen)
    recalibrator = recalibrator_of(arm)
    recalibrator.fit(chosen.topk, chosen.is_label, mass)
    for warning in warnings(f"arms.{unit.arm}", recalibrator):
        run.console.warn(warning)
    found = judged(recalibrator, chosen.topk, chosen.is_label, mass)
    artifact = {
        **found,
        "recalibrator": arm.recalibrator.name,
        "options": arm.recalibrator.given,
        "mass": arm.mass,
        "positions": "decisive" if not chosen.decisive.size or chosen.decisive.all() else "all",
    }
    path = folder / f"{unit.arm}.json"
    path.write_text(json.dumps(artifact, indent=1, sort_keys=True) + "\n", "utf-8")
    return {"recalibrator": arm.recalibrator.name, **facts_of(found)}


def judged(
    recalibrator: Recalibrator[Any],
    topk: FloatArray,
    is_label: BoolArray,
    mass: FloatArray,
) -> dict[str, Any]:
    """Return what a fitted recalibrator does to the rows that it was fitted on, as JSON.

    `before` is the model's own probability, `after` what is taught, mass times target: over all
    rows for the most likely token, and in `ranks` for each of the k.

    Args:
        recalibrator: fitted.
        topk: the model's probabilities, (N, k).
        is_label: which of the k tokens is the true one, (N, k).
        mass: total probability that is taught to the k tokens, (N,).
    """
    state = recalibrator.state()
    after = mass[:, None] * recalibrator.transform(topk)  # (N, k)
    ranks = _ranks(topk, after, is_label)
    correct = is_label[:, 0]
    return {
        **_temperature_facts(recalibrator),
        "rows": state.get("rows", len(topk)),
        "accuracy": ranks[0]["frequency"],
        "confidence_before": ranks[0]["confidence_before"],
        "confidence_after": ranks[0]["confidence_after"],
        # In-sample: the rows that the state was fitted on.
        "ece_before": metrics.ece(np.minimum(topk[:, 0], 1.0), correct),
        "ece_after": metrics.ece(np.minimum(after[:, 0], 1.0), correct),
        "ranks": ranks,
        "state": state,
    }


def _temperature_facts(recalibrator: Recalibrator[Any]) -> dict[str, Any]:
    """Return what is told of a temperature; another plugin's state may hold anything."""
    if not isinstance(recalibrator, SingleTemperature):
        return {}
    state = recalibrator.state()
    if not recalibrator.needs_fit:
        return {"temperature": state["temperature"]}
    told = ("temperature", "interval", "criterion", "at_grid_end", "flat")
    by_criterion = {name: fit["temperature"] for name, fit in state["criteria"].items()}
    return {key: state[key] for key in told} | {"temperatures": by_criterion}


def _ranks(before: FloatArray, after: FloatArray, is_label: BoolArray) -> list[dict[str, Any]]:
    """Compare, rank by rank, what is believed and how often it is so (the paper's Figure 3)."""
    return [
        {
            "rank": rank + 1,
            "confidence_before": float(before[:, rank].mean()),
            "confidence_after": float(after[:, rank].mean()),
            "frequency": float(is_label[:, rank].mean()),
            "n": len(before),
        }
        for rank in range(before.shape[1])
    ]


def facts_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest keeps of `judged`: without the long parts."""
    return {key: value for key, value in found.items() if key not in ("ranks", "state")}


def warnings(where: str, recalibrator: Recalibrator[Any]) -> list[str]:
    """Say what makes a fitted temperature doubtful; `where` names the arm or model."""
    if not isinstance(recalibrator, SingleTemperature) or not recalibrator.needs_fit:
        return []
    state = recalibrator.state()
    low, high = state["interval"]
    fitted = (
        f"{where}: T = {state['temperature']:.3g}, fitted by {state['criterion']} on "
        f"{state['rows']} rows (95 % interval {low:.3g} to {high:.3g})"
    )
    if state["at_grid_end"]:  # interval and spread say little there
        return [
            f"{where}: T = {state['temperature']:.3g}, fitted by {state['criterion']} on "
            f"{state['rows']} rows, lies at the end of the searched range, so the best may lie "
            "beyond; one temperature may not be what these rows need"
        ]
    found = []
    if state["few_rows"]:
        found.append(
            f"{fitted}, would scatter by about {state['spread']:.2g} over such validation parts; "
            f"raise train.validation to have {FEW_ROWS} rows or more"
        )
    elif state["flat"]:  # with few rows no wonder
        found.append(
            f"{fitted}, is hardly determined by these rows; raise train.validation, or give a "
            "fixed `temperature`"
        )
    return found


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
