"""Stage `report`: the paper's Table 1 of this run, its figures, and one page that holds it all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from firstcli import splits
from firstcli.reporting import ReportData
from firstcli.reporting.formats import TerminalTable, to_json
from firstcli.reporting.page import write_report
from firstcli.reporting.table import paper_table
from firstcli.run import Run
from firstcli.stages.evaluate import load_records
from firstcli.units import Unit, models_of, units_of


def check(run: Run, unit: Unit) -> str:
    """Nothing can go wrong that the stages before do not check."""
    return ""


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the report of all evaluations."""
    shutil.rmtree(folder / "figures", ignore_errors=True)  # of an interrupted run
    write_report(folder, report_data(run))
    return {"page": str(unit.artifact.path / "index.html")}


def report_data(run: Run) -> ReportData:
    """Collect what a report shows."""
    recipe = run.recipe
    units = units_of(recipe, run.folder)
    return ReportData(
        run=recipe.name,
        recipe=yaml.safe_dump(run.resolved, sort_keys=False, allow_unicode=True),
        models=[model.name for model in models_of(recipe)],
        evaluations=[one.name for one in recipe.evaluate],
        records=load_records(run, list(units.values())),
        settings=recipe.metrics,
        notes=_notes(run),
        versions=next(iter(run.manifests.values())).versions,
    )


def _notes(run: Run) -> list[tuple[str, str]]:
    """Say what was trained on, what was fitted and where label smoothing changed the ranks."""
    training = run.training
    used = max(
        manifest.facts["samples"]
        for key, manifest in run.manifests.items()
        if key.startswith("distill ")
    )
    left_out = len(training.train) - used
    notes = [
        (
            "data",
            f"{used} training samples{f' ({left_out} more left out)' if left_out else ''}; "
            f"{len(training.validation)} held out, on which no model was trained",
        )
    ]
    for one in run.recipe.evaluate:
        trained = [*training.train, *training.validation]
        if shared := splits.overlap(trained, run.evaluation_samples(one.name)):
            notes.append((one.name, f"{shared} of its prompts also occur in the training split"))
    for key in ("extract train", "extract validation"):
        if key in run.manifests:
            facts = run.manifests[key].facts
            notes.append(
                (
                    f"knowledge, {key.split()[1]} part",
                    f"{facts['positions']} positions, mean mass of the top "
                    f"{run.recipe.knowledge.top_k}: {facts['mean_top_k_mass']:.4f}, "
                    f"{facts['bytes_per_position']:.1f} bytes a position, probabilities off by "
                    f"{facts['mean_probability_error']:.1g} on average",
                )
            )
    for arm in run.recipe.arms:
        if f"calibrate {arm}" in run.manifests:
            facts = run.manifests[f"calibrate {arm}"].facts
            fitted = f"{facts['recalibrator']} on {facts['rows']} rows"
            if "temperature" in facts:
                fitted += f": T = {facts['temperature']:.4g} by {facts['criterion']}"
            if facts.get("at_grid_end"):
                fitted += ", at the end of its grid"
            notes.append((arm, fitted))
        first = next(one for one in models_of(run.recipe) if one.arm == arm)
        swaps = run.manifests[f"distill {first.trained}"].facts.get("rank_swaps")
        if swaps:
            notes.append(
                (arm, f"{100 * swaps:.1f} % of re-calibrated rows changed their top token")
            )
    return notes


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Print Table 1 and where the page is; return the table."""
    data = report_data(run)
    run.console.show(TerminalTable(paper_table(data)))
    for label, text in data.notes:
        run.console.say(f"{label}: {text}")
    page = units[0].artifact.path / "index.html"
    run.console.say(f"report: {page}")
    return {"page": str(page), **json.loads(to_json(data))}
