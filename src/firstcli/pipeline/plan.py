"""Plan: which units of a command are up to date, why the others will run, and what they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from firstcli.api import JSON
from firstcli.errors import UserError, shortened
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console, duration, size
from firstcli.stages import fingerprints, stage_of, units_of
from firstcli.stages.checks import SharedCheck, check_disk
from firstcli.workspace.artifacts import Manifest, changes
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, of_arms, with_upstream

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a command."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    run_dir: Path | None = None
    only: bool = False
    force: bool = False
    dry_run: bool = False
    probe: bool = False
    processes: int = 1
    json: bool = False
    quiet: bool = False
    stage_options: Mapping[str, Any] = field(default_factory=dict)
    """The options that only the command's stage has."""


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a unit is up to date, and if not, why it will run."""

    current: bool
    reason: str


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One row of the plan."""

    unit: Unit
    status: Status
    size: str = ""
    """The size of the unit's work, in words."""


def open_run(request: Request) -> Run:
    """Load the recipe and name its run folder; nothing is written yet."""
    recipe = load_recipe(request.recipe, request.overrides)
    folder = request.run_dir or Path("runs") / recipe.name
    console = Console(json=request.json, quiet=request.quiet)
    return Run(recipe, recipe.resolved(), folder, console)


def plan(request: Request) -> dict[str, JSON]:
    """Show every unit's status and size, and run every check that needs no weights."""
    run = open_run(request)
    units = units_of(run.recipe, run.folder)
    chain = list(units.values())
    if request.arms:
        of_stages = [unit for unit in chain if stage_of(unit).has_arms]
        chain = with_upstream(units, of_arms(of_stages, request.arms))
    statuses = {unit.key: status_of(run, unit) for unit in chain}
    sizes, problems = check_units(run, chain)
    rows = [PlanRow(unit, statuses[unit.key], sizes.get(unit.key, "")) for unit in chain]
    run.console.show(plan_table(rows))
    run.save_memory()
    if problems:
        raise UserError(*problems)
    if not request.probe:
        return plan_result(run, rows)
    return plan_result(run, rows) | {"probe": _probe(run, rows, request.processes)}


# Status.


def fingerprint_inputs(run: Run, unit: Unit) -> dict[str, str]:
    """Return everything that a unit's result depends on; the units it needs must be up to date."""
    stage = stage_of(unit)
    inputs: dict[str, object] = {"format": stage.format}
    inputs |= {f"result of {key}": run.manifests[key].content for key in unit.needs}
    return fingerprints.as_text(inputs | dict(stage.fingerprint_inputs(run, unit)))


def status_of(run: Run, unit: Unit, *, force: bool = False) -> Status:
    """Determine whether a unit is up to date; a current unit's manifest is kept in the run."""
    manifest = unit.artifact.manifest(run.digests)
    if missing := [key for key in unit.needs if key not in run.manifests]:
        reason = f"after {missing[0]}"
        return Status(False, reason if manifest is None else f"{reason}, if that changes it")
    if force:
        return Status(False, "--force")
    if manifest is None:
        damaged = unit.artifact.damage(run.digests)
        return Status(False, f"damaged: {shortened(damaged, 3)}" if damaged else "not made yet")
    inputs = fingerprint_inputs(run, unit)
    recorded = recorded_inputs(run, manifest, inputs)
    if recorded == inputs:
        run.manifests[unit.key] = manifest
        return Status(True, "up to date")
    differences = changes(recorded, inputs)
    return Status(False, "; ".join(differences[:3]) + (" ..." if len(differences) > 3 else ""))


def recorded_inputs(run: Run, manifest: Manifest, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return a manifest's inputs; those that format 1 did not record are assumed unchanged."""
    if manifest.format >= 2:
        return manifest.inputs
    implied = fingerprints.as_text(dict(fingerprints.implied_inputs(run.recipe)))
    missing = {key for key, value in inputs.items() if implied.get(key) == value}
    missing -= manifest.inputs.keys()
    if missing:
        run.console.warn(
            f"{run.folder}: made by firstcli 0.1, which recorded neither versions of plugins nor "
            "defaults of options; they are assumed unchanged"
        )
    return manifest.inputs | {key: inputs[key] for key in missing}


def is_stale(run: Run, unit: Unit, manifest: Manifest) -> bool:
    """Return whether a finished unit's inputs have changed, whatever the state of its files."""
    if any(key not in run.manifests for key in unit.needs):
        return True
    inputs = fingerprint_inputs(run, unit)
    return recorded_inputs(run, manifest, inputs) != inputs


# Checks.


def check_units(run: Run, units: Sequence[Unit]) -> tuple[dict[str, str], list[str]]:
    """Run every check that needs no weights; return each unit's size in words, and all mistakes.

    For units that are up to date, the results are remembered in the run folder.
    """
    problems: list[str] = []
    sizes: dict[str, str] = {}
    content = _content(run) if units else None
    if any(stage_of(unit).uses_models and unit.key not in run.manifests for unit in units):
        run.announce_libraries()
    shared: dict[SharedCheck, bool] = {}
    for unit in units:
        is_pending = unit.key not in run.manifests
        for check in stage_of(unit).checks_of(run, unit):
            shared[check] = shared.get(check, False) or is_pending
    for check, is_pending in shared.items():
        try:
            make = partial(check.run, run)
            _recall(run, content, f"check {check.name}", make, anew=is_pending)
        except UserError as error:
            problems += error.messages
    for unit in units:
        is_pending = unit.key not in run.manifests
        try:
            make_size = partial(stage_of(unit).check, run, unit)
            sizes[unit.key] = _recall(run, content, f"check {unit.key}", make_size, anew=is_pending)
        except UserError as error:
            problems += error.messages
    if not problems:
        problems += _disk_problems(run, [u for u in units if u.key not in run.manifests])
    return sizes, list(dict.fromkeys(problems))


def _content(run: Run) -> dict[str, str] | None:
    """Return what the checks depend on, or None if the data cannot be read."""
    try:
        return fingerprints.all_content(run)
    except UserError:
        return None  # the checks report it


def _recall(
    run: Run, content: dict[str, str] | None, what: str, make: Callable[[], T], *, anew: bool
) -> T:
    return make() if content is None else run.memory.recall(what, content, make, anew=anew)


def _disk_problems(run: Run, pending: Sequence[Unit]) -> list[str]:
    try:
        results = [(stage_of(unit), unit) for unit in pending]
        needed = sum(stage.disk(run, unit) for stage, unit in results)
        needed += max((stage.disk_at_work(run, unit) for stage, unit in results), default=0)
        check_disk(run, needed)
    except UserError as error:
        return list(error.messages)
    return []


# Output.


def plan_table(rows: Sequence[PlanRow]) -> Table:
    table = Table(title=None)
    for heading in ("stage", "what", "state", "estimate"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        state = row.status.reason if row.status.current else f"will run: {row.status.reason}"
        table.add_row(row.unit.stage, row.unit.subject, state, row.size)
    return table


def plan_result(run: Run, rows: Sequence[PlanRow]) -> dict[str, JSON]:
    units = [
        {
            "unit": row.unit.key,
            "up_to_date": row.status.current,
            "reason": row.status.reason,
            "estimate": row.size,
        }
        for row in rows
    ]
    return {"run": str(run.folder), "units": units}


def _probe(run: Run, rows: Sequence[PlanRow], processes: int) -> dict[str, JSON]:
    """Run a few batches of each pending stage, and show what everything will take."""
    from firstcli.stages import probe

    table = Table(title=f"with {processes} process{'es' if processes > 1 else ''} like this one")
    for heading in ("stage", "what", "time", "memory each", "memory each, sharded", "disk"):
        table.add_column(heading)
    measure = probe.Probe(run, processes)
    result: dict[str, Any] = {}
    for unit in (row.unit for row in rows if not row.status.current):
        stage = stage_of(unit)
        if (estimate := measure.estimate(partial(stage.probe, measure, unit))) is None:
            continue
        on_disk = stage.disk(run, unit)
        if math.isnan(estimate.seconds):
            result[unit.key] = {"fits": False, "seconds": 0, "disk": on_disk}
            table.add_row(
                unit.stage, unit.subject, "?", "does not fit one device", "?", size(on_disk)
            )
            continue
        result[unit.key] = {**asdict(estimate), "disk": on_disk}
        sharded = "–" if estimate.sharded is None else size(estimate.sharded)
        cells = (duration(estimate.seconds), size(estimate.memory), sharded, size(on_disk))
        table.add_row(unit.stage, unit.subject, *cells)
    seconds, on_disk = (sum(row[name] for row in result.values()) for name in ("seconds", "disk"))
    table.add_section()
    table.add_row("all", "", duration(seconds), "", "", size(on_disk))
    run.console.show(table)
    return result
