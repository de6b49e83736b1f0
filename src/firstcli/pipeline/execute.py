"""Plan and run: which units of a command are up to date, and the work on the others."""

from __future__ import annotations

import errno
import importlib
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from firstcli.errors import UserError, shortened
from firstcli.pipeline.fingerprints import reads_of
from firstcli.pipeline.repair import mend
from firstcli.recipe.load import load_recipe
from firstcli.recipe.schema import Recipe
from firstcli.runtime import distributed
from firstcli.runtime.console import Console, duration, size
from firstcli.runtime.files import locked, write_text
from firstcli.workspace.artifacts import Manifest, changes, fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import Stage, Unit, units_of, wanted, with_upstream

MODULES: dict[Stage, str] = {
    "finetune": "finetune",
    "extract": "extract",
    "calibrate": "calibrate",
    "distill": "distill",
    "eval": "evaluate",
    "report": "report",
}


SHARED: frozenset[Stage] = frozenset(("finetune", "extract", "distill", "eval"))
"""Stages whose work several processes share; the first does the others alone."""


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a unit is up to date, and if not, why it will run."""

    current: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a command was asked for."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    run_dir: Path | None = None
    only: bool = False
    force: bool = False
    dry_run: bool = False
    repair: bool = False
    verify: int = 0
    probe: bool = False
    processes: int = 1
    json: bool = False
    quiet: bool = False


def status_of(run: Run, unit: Unit, *, force: bool = False) -> Status:
    """Look whether a unit is up to date; a current unit's manifest is kept in the run."""
    manifest = unit.artifact.manifest(run.digests)
    missing = [key for key in unit.needs if key not in run.manifests]
    if missing:
        reason = f"after {missing[0]}"
        return Status(False, reason if manifest is None else f"{reason}, if that changes it")
    if force:
        return Status(False, "--force")
    if manifest is None:
        damaged = unit.artifact.damage(run.digests)
        return Status(False, f"damaged: {shortened(damaged, 3)}" if damaged else "not made yet")
    reads = reads_of(run, unit)
    if manifest.fingerprint == fingerprint(reads):
        run.manifests[unit.key] = manifest
        return Status(True, "up to date")
    different = changes(manifest.reads, reads)
    return Status(False, "; ".join(different[:3]) + (" ..." if len(different) > 3 else ""))


def execute(request: Request, stage: Stage) -> dict[str, Any]:
    """Bring a stage up to date and return its result as JSON values.

    With several processes the first decides what to do, and all do it; `summary` is the first's.
    """
    run = open_run(request)
    units = units_of(run.recipe, run.folder)
    targets = wanted(units, stage, request.arms)
    chain = with_upstream(units, targets)
    if not targets:
        raise UserError(f"{request.recipe}: nothing to {stage}; {_why_nothing(run.recipe, stage)}")
    forced = _forced(request, stage, targets)
    if request.dry_run:
        return plan_result(run, show_plan(run, chain, forced, check=False))

    def prepare() -> list[Row]:
        for unit in chain:
            unit.artifact.recover()
            if unit.stage == "extract" and unit.key not in forced:
                mend(run, unit, request.recipe, repair=request.repair)
            status_of(run, unit, force=unit.key in forced)  # tells what those after it depend on
        rows = show_plan(run, chain, forced, check=True)
        if request.only:
            _require_upstream(run, request, chain, targets)
        _write_recipe(run)
        return rows

    with _disk_trouble_told(run.folder), distributed.together(), ExitStack() as stack:
        if distributed.by_first(lambda: _is_only_read(run, chain, request)):
            rows = distributed.by_first(lambda: show_plan(run, chain, forced, check=False))
        else:
            distributed.by_first(lambda: stack.enter_context(locked(run.folder)))
            rows = distributed.by_first(prepare)
            _bring_up_to_date(run, chain, forced)
        verified = _verified(run, targets, request.verify) if request.verify else {}
    if not distributed.is_first():
        return {}
    result = importlib.import_module(f"firstcli.stages.{MODULES[stage]}").summary(run, targets)
    return {**plan_result(run, rows), "result": result, **verified}


def _is_only_read(run: Run, chain: Sequence[Unit], request: Request) -> bool:
    """Say whether the run folder cannot be written and need not be, since all is up to date."""
    if request.force or request.repair or not run.folder.exists():
        return False
    writable = os.access(run.folder, os.W_OK)
    return not writable and all(status_of(run, unit).current for unit in chain)


def _bring_up_to_date(run: Run, chain: Sequence[Unit], forced: set[str]) -> None:
    try:
        for unit in chain:
            if not _status_for_all(run, unit, forced).current:
                _work(run, unit)
    finally:
        if distributed.is_first():
            run.digests.save()


def _verified(run: Run, units: Sequence[Unit], samples: int) -> dict[str, Any]:
    from firstcli.stages import verify

    return distributed.by_first(
        lambda: {"verified": {unit.key: verify.verify(run, unit, samples) for unit in units}}
    )


def _status_for_all(run: Run, unit: Unit, forced: set[str]) -> Status:
    """Look at a unit's state once, for all processes; its manifest reaches them, too."""

    def look() -> tuple[Status, Manifest | None]:
        return status_of(run, unit, force=unit.key in forced), run.manifests.get(unit.key)

    status, manifest = distributed.by_first(look)
    if manifest is not None:
        run.manifests[unit.key] = manifest
    return status


def plan(request: Request) -> dict[str, Any]:
    """Show every unit's state and estimate, and run every check that needs no weights."""
    run = open_run(request)
    units = units_of(run.recipe, run.folder)
    if request.arms:
        wanted_units = [
            *wanted(units, "distill", request.arms),
            *wanted(units, "eval", request.arms),
        ]
        chain = with_upstream(units, wanted_units)
    else:
        chain = list(units.values())
    rows = [Row(unit, status_of(run, unit)) for unit in chain]
    estimates, problems = check_units(run, chain)
    rows = [replace(row, estimate=estimates.get(row.unit.key, "")) for row in rows]
    run.console.show(plan_table(rows))
    if problems:
        raise UserError(*problems)
    if not request.probe:
        return plan_result(run, rows)
    return plan_result(run, rows) | {"probe": _probed(run, rows, request.processes)}


def _probed(run: Run, rows: Sequence[Row], processes: int) -> dict[str, Any]:
    """Run a few batches of each stage that is to be done, and show what all will take."""
    from firstcli.stages import probe

    table = Table(title=f"with {processes} process{'es' if processes > 1 else ''} like this one")
    for heading in ("stage", "what", "time", "memory each", "memory each, sharded", "disk"):
        table.add_column(heading)
    measure = probe.Probe(run, processes)
    found: dict[str, Any] = {}
    for unit in (row.unit for row in rows if not row.status.current):
        if (estimate := measure.estimate(unit)) is None:
            continue
        on_disk = probe.disk(run, unit)
        _, _, what = unit.key.partition(" ")
        if math.isnan(estimate.seconds):
            found[unit.key] = {"fits": False, "seconds": 0, "disk": on_disk}
            table.add_row(unit.stage, what, "?", "does not fit one device", "?", size(on_disk))
            continue
        found[unit.key] = {**asdict(estimate), "disk": on_disk}
        sharded = size(estimate.sharded) if unit.stage in ("finetune", "distill") else "–"
        cells = (duration(estimate.seconds), size(estimate.memory), sharded, size(on_disk))
        table.add_row(unit.stage, what, *cells)
    seconds, on_disk = (sum(one[name] for one in found.values()) for name in ("seconds", "disk"))
    table.add_section()
    table.add_row("all", "", duration(seconds), "", "", size(on_disk))
    run.console.show(table)
    return found


def open_run(request: Request) -> Run:
    """Load the recipe and name its run folder; nothing is written yet."""
    loaded = load_recipe(request.recipe, request.overrides)
    folder = request.run_dir or Path("runs") / loaded.recipe.name
    console = Console(json=request.json, quiet=request.quiet)
    return Run(loaded.recipe, loaded.resolved, folder, console)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the plan."""

    unit: Unit
    status: Status
    estimate: str = ""


def show_plan(run: Run, chain: Sequence[Unit], forced: set[str], *, check: bool) -> list[Row]:
    """Print what is up to date and what will run; with `check`, refuse what cannot work."""
    rows = [Row(unit, status_of(run, unit, force=unit.key in forced)) for unit in chain]
    pending = [row.unit for row in rows if not row.status.current]
    if pending:
        run.console.show(plan_table(rows))
    else:
        run.console.say("everything is up to date")
    if check and (problems := check_units(run, pending)[1]):
        raise UserError(*problems)
    return rows


def check_units(run: Run, units: Sequence[Unit]) -> tuple[dict[str, str], list[str]]:
    """Run every check that needs no weights; returns an estimate a unit, and all mistakes."""
    estimates: dict[str, str] = {}
    problems: list[str] = []
    if units:
        from firstcli.stages import inputs

        problems += inputs.general_problems(run, units)
    for unit in units:
        module = importlib.import_module(f"firstcli.stages.{MODULES[unit.stage]}")
        try:
            estimates[unit.key] = module.check(run, unit)
        except UserError as error:
            problems += error.messages
    return estimates, list(dict.fromkeys(problems))


def plan_table(rows: Sequence[Row]) -> Table:
    table = Table(title=None)
    for heading in ("stage", "what", "state", "estimate"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        _, _, what = row.unit.key.partition(" ")
        state = row.status.reason if row.status.current else f"will run: {row.status.reason}"
        table.add_row(row.unit.stage, what, state, row.estimate)
    return table


def plan_result(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    units = [
        {
            "unit": row.unit.key,
            "up_to_date": row.status.current,
            "reason": row.status.reason,
            "estimate": row.estimate,
        }
        for row in rows
    ]
    return {"run": str(run.folder), "units": units}


def _forced(request: Request, stage: Stage, targets: Sequence[Unit]) -> set[str]:
    return {unit.key for unit in targets} if request.force else set()


def _require_upstream(
    run: Run, request: Request, chain: Sequence[Unit], targets: Sequence[Unit]
) -> None:
    keys = {unit.key for unit in targets}
    for unit in chain:
        if unit.key not in keys and unit.key not in run.manifests:
            status = status_of(run, unit)
            raise UserError(
                f"--only: {unit.key} is not up to date ({status.reason}); run `first {unit.stage} "
                f"{request.recipe}` first"
            )


def _why_nothing(recipe: Recipe, stage: Stage) -> str:
    if stage == "finetune":
        return "the recipe has no teacher.finetune"
    if stage == "extract":
        return "every arm learns labels"
    return "no arm has a recalibrator that is fitted"


def _write_recipe(run: Run) -> None:
    text = yaml.safe_dump(run.resolved, sort_keys=False, allow_unicode=True)
    path = run.folder / "recipe.yaml"
    if not path.exists() or path.read_text("utf-8") != text:
        write_text(path, text)


def _work(run: Run, unit: Unit) -> None:
    """Run one unit and make its artifact; what it left half-done is taken up again next time."""
    module = importlib.import_module(f"firstcli.stages.{MODULES[unit.stage]}")
    reads = distributed.by_first(lambda: reads_of(run, unit))
    began = time.monotonic()
    run.console.say(f"{unit.key} ...")
    work = distributed.by_first(lambda: unit.artifact.begin(fingerprint(reads)))
    facts: dict[str, Any] = {}
    if unit.stage in SHARED or distributed.is_first():
        try:
            facts = module.work(run, unit, work)
        except UserError as error:
            raise UserError(*(f"{unit.key}: {message}" for message in error.messages)) from error
    distributed.wait()
    seconds = time.monotonic() - began
    manifest = distributed.by_first(
        lambda: unit.artifact.commit(unit.key, reads, facts, seconds, _versions(), run.digests)
    )
    run.manifests[unit.key] = manifest
    run.console.say(f"{unit.key}: {_summary_line(manifest)}")


@contextmanager
def _disk_trouble_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _cannot_write(error, folder)) is None:
            raise
        raise UserError(
            f"run directory {folder}: cannot be written: {reason}; finished work is kept, mend it "
            "and run the same command again"
        ) from error


def _cannot_write(error: Exception, folder: Path) -> str | None:
    """Say that the disk is at fault, if it is; libraries report that in types of their own."""
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        ours = Path(str(error.filename)).absolute().is_relative_to(folder.absolute())
        return str(error.strerror) if ours else None
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    while not folder.exists():
        folder = folder.parent
    if full or "os error 28" in str(error) or shutil.disk_usage(folder).free < 2**20:
        return "no space left on the disk"
    return None


def _summary_line(manifest: Manifest) -> str:
    told = [f"{name} {text}" for name, value in manifest.facts.items() if (text := _told(value))]
    return ", ".join([*told, f"{manifest.seconds:.1f} s"])


def _told(value: object) -> str:
    """Return a fact in words; what is false or a table of its own says nothing here."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(map(_told, value))
    return "" if isinstance(value, dict) else str(value)


def _versions() -> dict[str, str]:
    names = ("firstcli", "torch", "transformers", "tokenizers", "pyarrow")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    found |= {"processes": str(distributed.count())} if distributed.count() > 1 else {}
    return dict(sorted(found.items()))  # as a manifest that was read has them
