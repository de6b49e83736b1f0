"""Run: bring the units of a command up to date, one after another."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import yaml

from firstcli.api import JSON
from firstcli.errors import UserError
from firstcli.pipeline.plan import (
    PlanRow,
    Request,
    Status,
    check_units,
    fingerprint_inputs,
    open_run,
    plan_result,
    plan_table,
    status_of,
)
from firstcli.pipeline.repair import repair
from firstcli.runtime import distributed
from firstcli.runtime.files import locked, write_text
from firstcli.stages import stage_of, units_of
from firstcli.stages.base import Stage
from firstcli.workspace.artifacts import Manifest, fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, of_arms, with_upstream


def execute(request: Request, stage: Stage) -> dict[str, JSON]:
    """Bring a stage up to date and return its result as JSON values.

    With several processes, the first one decides what to do and all of them do it; the first one
    prints and returns the result.

    Raises:
        UserError: the recipe or its data are wrong, or the work cannot be done.
    """
    run = open_run(request)
    units = units_of(run.recipe, run.folder)
    targets = of_arms(stage.units(run.recipe, run.folder), request.arms)
    if not targets:
        reason = stage.why_nothing(run.recipe)
        raise UserError(f"{request.recipe}: nothing to {stage.name}; {reason}")
    chain = with_upstream(units, targets)
    forced = {unit.key for unit in targets} if request.force else set()
    if request.dry_run:
        rows = _statuses(run, chain, forced)
        _show(run, rows)
        return plan_result(run, rows)

    with _disk_errors_reported(run.folder), distributed.together(), ExitStack() as stack:
        if distributed.by_first(lambda: _only_reads(run, chain, request)):
            rows = distributed.by_first(lambda: _statuses(run, chain, forced))
            _show(run, rows)
        else:
            distributed.by_first(lambda: stack.enter_context(locked(run.folder)))
            rows = distributed.by_first(lambda: _prepared(run, request, chain, targets))
            _bring_up_to_date(run, rows, forced)
        further = stage.finish(run, targets, request.stage_options)
    if not distributed.is_first():
        return {}
    return {**plan_result(run, rows), "result": stage.summary(run, targets), **further}


def _prepared(
    run: Run, request: Request, chain: Sequence[Unit], targets: Sequence[Unit]
) -> list[PlanRow]:
    """Show the plan and check what will run, before anything is written."""
    forced = {unit.key for unit in targets} if request.force else set()
    rows = _statuses(run, chain, forced, repairing=request)
    _show(run, rows)
    pending = [row.unit for row in rows if not row.status.current]
    if problems := check_units(run, pending)[1]:
        raise UserError(*problems)
    if request.only:
        _require_upstream(request, rows, targets)
    _write_recipe(run)
    return rows


def _statuses(
    run: Run, chain: Sequence[Unit], forced: set[str], repairing: Request | None = None
) -> list[PlanRow]:
    """Determine the status of every unit; with `repairing`, finish what a killed run left."""
    rows = []
    for unit in chain:
        if repairing:
            unit.artifact.recover()
            if stage_of(unit).precious and unit.key not in forced:
                requested = bool(repairing.stage_options.get("repair"))
                repair(run, unit, repairing.recipe, requested=requested)
        rows.append(PlanRow(unit, status_of(run, unit, force=unit.key in forced)))
    return rows


def _show(run: Run, rows: Sequence[PlanRow]) -> None:
    if all(row.status.current for row in rows):
        run.console.say("everything is up to date")
    else:
        run.console.show(plan_table(rows))


def _only_reads(run: Run, chain: Sequence[Unit], request: Request) -> bool:
    """Return whether the run folder cannot be written but everything is up to date."""
    if request.force or request.stage_options.get("repair") or not run.folder.exists():
        return False
    writable = os.access(run.folder, os.W_OK)
    return not writable and all(status_of(run, unit).current for unit in chain)


def _require_upstream(request: Request, rows: Sequence[PlanRow], targets: Sequence[Unit]) -> None:
    keys = {unit.key for unit in targets}
    for row in rows:
        if row.unit.key not in keys and not row.status.current:
            raise UserError(
                f"--only: {row.unit.key} is not up to date ({row.status.reason}); run `first "
                f"{row.unit.stage} {request.recipe}` first"
            )


def _write_recipe(run: Run) -> None:
    text = yaml.safe_dump(run.resolved, sort_keys=False, allow_unicode=True)
    path = run.folder / "recipe.yaml"
    if not path.exists() or path.read_text("utf-8") != text:
        write_text(path, text)


def _bring_up_to_date(run: Run, rows: Sequence[PlanRow], forced: set[str]) -> None:
    try:
        for row in rows:
            if not _status_for_all(run, row.unit, forced).current:
                _work(run, row.unit)
    finally:
        if distributed.is_first():
            run.save_memory()


def _status_for_all(run: Run, unit: Unit, forced: set[str]) -> Status:
    """Determine a unit's status once for all processes, and share its manifest."""

    def look() -> tuple[Status, Manifest | None]:
        if manifest := run.manifests.get(unit.key):
            return Status(True, "up to date"), manifest
        return status_of(run, unit, force=unit.key in forced), run.manifests.get(unit.key)

    status, manifest = distributed.by_first(look)
    if manifest is not None:
        run.manifests[unit.key] = manifest
    return status


def _work(run: Run, unit: Unit) -> None:
    """Do a unit's work and make its artifact; an interrupted run's work is resumed."""
    stage = stage_of(unit)
    inputs = distributed.by_first(lambda: fingerprint_inputs(run, unit))
    began = time.monotonic()
    run.console.say(f"{unit.key} ...")
    folder = distributed.by_first(lambda: unit.artifact.begin(fingerprint(inputs)))
    facts = None
    if stage.shared or distributed.is_first():
        try:
            facts = stage.work(run, unit, folder)
        except UserError as error:
            raise UserError(*(f"{unit.key}: {message}" for message in error.messages)) from error
    distributed.wait()
    seconds = time.monotonic() - began
    manifest = distributed.by_first(
        lambda: unit.artifact.commit(
            unit.key,
            inputs,
            facts.as_json() if facts else {},
            seconds,
            _versions(),
            run.digests,
        )
    )
    run.manifests[unit.key] = manifest
    run.console.say(f"{unit.key}: {_summary_line(manifest)}")


@contextmanager
def _disk_errors_reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _disk_error(error, folder)) is None:
            raise
        raise UserError(
            f"run directory {folder}: cannot be written: {reason}; finished work is kept, fix this "
            "and run the same command again"
        ) from error


def _disk_error(error: Exception, folder: Path) -> str | None:
    """Return what is wrong with the disk if that caused an error of any library."""
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        inside = Path(str(error.filename)).absolute().is_relative_to(folder.absolute())
        return str(error.strerror) if inside else None
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    while not folder.exists():
        folder = folder.parent
    if full or "os error 28" in str(error) or shutil.disk_usage(folder).free < 2**20:
        return "no space left on the disk"
    return None


def _summary_line(manifest: Manifest) -> str:
    facts = [f"{name} {text}" for name, value in manifest.facts.items() if (text := _text(value))]
    return ", ".join([*facts, f"{manifest.seconds:.1f} s"])


def _text(value: object) -> str:
    """Return a fact in words; False and nested facts are left out."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " to ".join(map(_text, value))
    return "" if isinstance(value, dict) else str(value)


def _versions() -> dict[str, str]:
    names = ("firstcli", "torch", "transformers", "tokenizers", "pyarrow")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    if distributed.count() > 1:
        versions["processes"] = str(distributed.count())
    return dict(sorted(versions.items()))  # in the order in which a manifest is read back
