"""Stage `report`: the paper's Table 1 of this run, its figures, and one page that holds it all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from firstcli.api import Sample
from firstcli.data import splits
from firstcli.knowledge import concentration
from firstcli.metrics.records import EvalRecords
from firstcli.recipe.schema import Arm
from firstcli.reporting.data import ArmFacts, ReportData, TeacherPart
from firstcli.reporting.formats import to_json
from firstcli.reporting.page import write_report
from firstcli.reporting.questions import disputed
from firstcli.reporting.table import paper_table
from firstcli.reporting.terminal import TerminalTable
from firstcli.runtime.console import size
from firstcli.stages.evaluate import load_records
from firstcli.workspace.run import Part, Run
from firstcli.workspace.units import Model, Unit, models_of, units_of

_PARTS: dict[Part, str] = {
    "train": "training",
    "out-of-fold": "training (out of fold)",
    "validation": "validation",
}


def check(run: Run, unit: Unit) -> str:
    """Nothing can go wrong that the stages before do not check."""
    return ""


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Write the report of all evaluations."""
    shutil.rmtree(folder / "figures", ignore_errors=True)  # of an interrupted run
    write_report(folder, _data(run))
    return {"page": str(unit.artifact.path / "index.html")}


def _data(run: Run) -> ReportData:
    """Return what a report shows, with the intervals that were computed for it already."""
    return run.cached("report", lambda: report_data(run))


def report_data(run: Run) -> ReportData:
    """Collect what a report shows."""
    recipe = run.recipe
    records = load_records(run, list(units_of(recipe, run.folder).values()))
    rows = _rows(run)
    return ReportData(
        run=recipe.name,
        recipe=yaml.safe_dump(run.resolved, sort_keys=False, allow_unicode=True),
        members={row: [model.name for model in models] for row, models in rows.items()},
        evaluations=[one.name for one in recipe.evaluate],
        records=records,
        settings=recipe.metrics,
        notes=_notes(run),
        versions=next(iter(run.manifests.values())).versions,
        seconds={
            key: one.seconds for key, one in run.manifests.items() if not key.startswith("report")
        },
        seeds=recipe.seeds,
        calibrations=dict(_calibrations(run)),
        concentration=_concentration(run),
        arms={
            name: _arm_facts(run, name, arm)
            for name, arm in recipe.arms.items()
            if arm.learn == "knowledge"
        },
        top_k=recipe.knowledge.top_k,
        teacher_parts=list(_teacher_parts(run)),
        questions={
            one.name: _questions(
                run,
                one.name,
                {
                    row: records[one.name, models[0].name]
                    for row, models in rows.items()
                    if (one.name, models[0].name) in records
                },
            )
            for one in recipe.evaluate
        },
    )


def _rows(run: Run) -> dict[str, list[Model]]:
    """Return the tables' rows with their models, one a seed."""
    rows: dict[str, list[Model]] = {}
    for model in models_of(run.recipe):
        rows.setdefault(model.row, []).append(model)
    return rows


def _calibrations(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what was fitted, by row; of a temperature behind a model that of the first seed."""
    for row, (first, *_) in _rows(run).items():
        name = first.name if first.posthoc else first.arm
        path = run.folder / "calibration" / f"{name}.json"
        if (first.posthoc or f"calibrate {first.arm}" in run.manifests) and path.exists():
            yield row, json.loads(path.read_text("utf-8"))


def _concentration(run: Run) -> dict[str, Any] | None:
    parts: tuple[Part, ...] = ("train", "out-of-fold")
    paths = [
        run.folder / "knowledge" / part / concentration.NAME
        for part in parts
        if f"extract {part}" in run.manifests
    ]
    found = [path for path in paths if path.exists()]
    return json.loads(found[0].read_text("utf-8")) if found else None


def _arm_facts(run: Run, name: str, arm: Arm) -> ArmFacts:
    assert arm.recalibrator
    options = dict(arm.recalibrator.options)
    fixed = options.pop("temperature", None)
    kind = [arm.recalibrator.name, *(f"{key} {value}" for key, value in options.items())]
    defaults = Arm()
    for key in ("objective", "mass", "recalibrate", "out_of_fold"):
        if (value := getattr(arm, key)) != getattr(defaults, key):
            kind.append(f"{key.replace('_', ' ')} {value}")
    changed = arm.training.model_dump(exclude_none=True) if arm.training else {}
    kind += [f"{key.replace('_', ' ')} {value}" for key, value in changed.items()]
    first = next(one for one in models_of(run.recipe) if one.arm == name)
    return ArmFacts(
        kind=", ".join(kind),
        temperature=None if fixed is None else float(fixed),
        top_k=arm.top_k or run.recipe.knowledge.top_k,
        mass=run.manifests[f"distill {first.trained}"].facts.get("P"),
    )


def _teacher_parts(run: Run) -> Iterator[TeacherPart]:
    for part, name in _PARTS.items():
        if f"extract {part}" in run.manifests:
            facts = run.manifests[f"extract {part}"].facts
            yield TeacherPart(name, facts["confidence"], facts["accuracy"], facts["judged"])


def _questions(run: Run, evaluation: str, answered: dict[str, EvalRecords]) -> list[Sample]:
    """Return the questions that divide the rows most."""
    chosen = disputed(answered)
    wanted = set(chosen)
    found = {one.id: one for one in run.evaluation_samples(evaluation) if one.id in wanted}
    return [found[id] for id in chosen]


def _notes(run: Run) -> list[tuple[str, str]]:
    """Say what was trained on, what was fitted and where label smoothing changed the ranks."""
    return [*_notes_on_data(run), *_notes_on_knowledge(run), *_notes_on_calibration(run)]


def _notes_on_data(run: Run) -> Iterator[tuple[str, str]]:
    training = run.training
    used = max(
        manifest.facts["samples"]
        for key, manifest in run.manifests.items()
        if key.startswith("distill ")
    )
    left_out = len(training.train) - used
    yield (
        "data",
        f"{used} training samples{f' ({left_out} more left out)' if left_out else ''}; "
        f"{len(training.validation)} held out, on which no model was trained",
    )
    for one in run.recipe.evaluate:
        trained = [*training.train, *training.validation]
        if shared := splits.overlap(trained, run.evaluation_samples(one.name)):
            yield one.name, f"{shared} of its prompts also occur in the training split"


def _notes_on_knowledge(run: Run) -> Iterator[tuple[str, str]]:
    for part, name in _PARTS.items():
        if (key := f"extract {part}") in run.manifests:
            facts = run.manifests[key].facts
            weight = sum(file["size"] for file in run.manifests[key].files.values())
            yield (
                f"knowledge of {name} rows",
                f"{facts['positions']} positions in {size(weight)}, mean mass of the top "
                f"{run.recipe.knowledge.top_k}: {facts['mean_top_k_mass']:.4f}, "
                f"{facts['bytes_per_position']:.1f} bytes a position, probabilities off by "
                f"{facts['mean_probability_error']:.1g} on average",
            )


def _notes_on_calibration(run: Run) -> Iterator[tuple[str, str]]:
    for row, found in _calibrations(run):
        fitted = f"{found['recalibrator']} on {found['rows']} rows"
        if "temperature" in found:
            fitted += f": T = {found['temperature']:.4g} by {found['criterion']}"
        if interval := found.get("state", {}).get("interval"):
            fitted += " (95 % of resamplings: {:.3g} to {:.3g})".format(*interval)
        for key, remark in _REMARKS.items():
            fitted += remark * bool(found.get("state", {}).get(key))
        of_several = row.endswith(" + T") and run.recipe.seeds and row != "teacher + T"
        yield (
            row,
            fitted + (f"; seed {run.recipe.seeds[0]}, each has its own" if of_several else ""),
        )
    for row, (first, *_) in _rows(run).items():
        trained = run.manifests.get(f"distill {first.trained}")
        if not first.posthoc and trained and (swaps := trained.facts.get("rank_swaps")):
            yield row, f"{100 * swaps:.1f} % of re-calibrated rows changed their top token"


_REMARKS = {
    "at_grid_end": ", at the end of its grid",
    "flat": ", hardly better than others",
    "few_rows": "; these are few rows",
}


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Print Table 1 and where the page is; return the table."""
    data = _data(run)
    run.console.show(TerminalTable(paper_table(data)))
    for label, text in data.notes:
        run.console.say(f"{label}: {text}")
    page = units[0].artifact.path / "index.html"
    run.console.say(f"report: {page}")
    return {"page": str(page), **json.loads(to_json(data))}
