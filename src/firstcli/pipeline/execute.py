"""Run: bring the units of a command up to date, one after another."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from firstcli.api import JSON
from firstcli.errors import UserError
from firstcli.pipeline import plan
from firstcli.pipeline.outlook import Outlook
from firstcli.pipeline.repair import repair
from firstcli.recipe.from_run import KEY, arm_of, student_name
from firstcli.recipe.load import mentor_of
from firstcli.runtime import distributed
from firstcli.runtime.console import DONE, duration
from firstcli.runtime.files import locked, write_text
from firstcli.stages import completing_units, stage_of, units_of
from firstcli.stages.base import Stage, facts_in_words
from firstcli.stages.distill import DISTILL
from firstcli.student.refresh import refresh
from firstcli.workspace.artifacts import Manifest, fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, of_arms, with_upstream


def execute(request: plan.Request, stage: Stage) -> dict[str, JSON]:
    """Bring a stage up to date and return its result as JSON values.

    With several processes, the first one decides what to do and all of them do it; the first one
    prints and returns the result.

    Raises:
        UserError: the recipe or its data are wrong, or the work cannot be done.
    """
    bring_mentor_up_to_date(request)
    run = plan.open_run(request)
    rows, targets, finished = bring_up_to_date(run, request, stage)
    if request.dry_run:
        return plan.plan_result(run, rows)
    if not distributed.is_first():
        return {}
    return {**plan.plan_result(run, rows), "result": stage.summary(run, targets), **finished}


def bring_mentor_up_to_date(request: plan.Request) -> None:
    """Train the student that a recipe takes as its teacher, if it names the recipe of that student.

    Nothing is done in several processes, because each launch trains for one run.

    Raises:
        UserError: a recipe or its data are wrong, or the work cannot be done.
    """
    if request.only or request.dry_run or distributed.count() > 1:
        return
    mentor = mentor_of(request.recipe, request.overrides, request.run_dir)
    if mentor is None or not mentor.source.is_file():
        return
    try:
        name = student_name(mentor.source, mentor.arm)
    except UserError as error:
        raise UserError(f"{mentor.place}: {KEY}: {error}") from error
    of_mentor = replace(
        request,
        recipe=mentor.source,
        overrides=(),
        arms=(arm_of(name),),
        run_dir=None,
        force=False,
        stage_options={},
    )
    bring_mentor_up_to_date(of_mentor)
    run = plan.open_run(of_mentor)
    run.console.say(f"the teacher is student '{name}' of {mentor.source}")
    bring_up_to_date(run, of_mentor, DISTILL)


def bring_up_to_date(
    run: Run, request: plan.Request, stage: Stage
) -> tuple[list[plan.PlanRow], list[Unit], dict[str, JSON]]:
    """Do the work of a stage that is not up to date, and of all that it needs.

    Args:
        run: the run.
        request: the command's options; with `dry_run`, the plan is only shown.
        stage: the stage.

    Returns:
        The plan, the stage's units, and what the stage's own options have returned.

    Raises:
        UserError: the recipe or its data are wrong, or the work cannot be done.
    """
    units = units_of(run.recipe, run.folder)
    targets = of_arms(stage.units(run.recipe, run.folder), request.arms)
    if not targets:
        raise UserError(f"{request.recipe}: nothing to {stage.name}; {stage.why_nothing}")
    further = [] if request.only else completing_units(stage, targets, run.recipe, run.folder)
    chain = with_upstream(units, [*targets, *further])
    keys = {unit.key for unit in targets}
    forced = keys if request.force else set()
    if request.dry_run:
        rows = _statuses(run, chain, forced)
        _show(run, rows, request)
        return rows, targets, {}

    with plan.disk_errors_reported(run.folder), distributed.together(), ExitStack() as stack:
        if distributed.by_first(lambda: _only_reads(run, chain, request)):
            rows = distributed.by_first(lambda: _statuses(run, chain, forced))
            _show(run, rows, request)
        else:
            distributed.by_first(lambda: stack.enter_context(locked(run.folder)))
            try:
                rows = distributed.by_first(lambda: _prepared(run, request, chain, keys))
                outlook = Outlook([row.unit for row in rows if not row.current], units.values())
                for unit in chain:
                    if not _is_current(run, unit, forced):
                        _work(run, unit, outlook, request, anew=unit.key in forced)
                    outlook.finish(unit)
                distributed.by_first(lambda: refresh(run))
            finally:
                if distributed.is_first():
                    run.save_memory()
        finished = stage.finish(run, targets, request.stage_options)
    return rows, targets, finished


def _prepared(
    run: Run, request: plan.Request, chain: Sequence[Unit], keys: set[str]
) -> list[plan.PlanRow]:
    """Check what will run and show the plan, before anything is written."""
    forced = keys if request.force else set[str]()

    def status(unit: Unit) -> plan.PlanRow:
        unit.artifact.recover()  # what a killed run has finished
        if stage_of(unit).precious and unit.key not in forced:
            repair(run, unit, request)
        return plan.status_of(run, unit, force=unit.key in forced)

    rows, problems = plan.statuses(chain, status)
    pending = [row for row in rows if not row.current]
    problems += plan.check_units(run, [row.unit for row in pending])[1]
    plan.raise_any(problems)
    for row in pending:
        if request.only and row.unit.key not in keys:
            raise UserError(
                f"--only: {row.unit.key} is not up to date ({row.reason}); run "
                f"`{request.command(row.unit.stage)}` first"
            )
    _show(run, rows, request)
    path = run.folder / "recipe.yaml"
    if not path.exists() or path.read_text("utf-8") != run.recipe_text:
        write_text(path, run.recipe_text)
    return rows


def _statuses(run: Run, chain: Sequence[Unit], forced: set[str]) -> list[plan.PlanRow]:
    def status(unit: Unit) -> plan.PlanRow:
        return plan.status_of(run, unit, force=unit.key in forced)

    rows, problems = plan.statuses(chain, status)
    plan.raise_any(problems)
    return rows


def _show(run: Run, rows: Sequence[plan.PlanRow], request: plan.Request) -> None:
    """Say in one or two lines what will run; the whole table only on request."""
    if all(row.current for row in rows):
        run.console.say("everything is up to date")
        return
    if request.verbose:
        run.console.show(plan.plan_table(rows))
    sentence, phrases = plan.summary(rows)
    run.console.say(sentence, wrap=True)
    if phrases:
        run.console.say_phrases(" ", phrases)


def _only_reads(run: Run, chain: Sequence[Unit], request: plan.Request) -> bool:
    """Return whether the run folder cannot be written but everything is up to date."""
    if request.force or request.stage_options.get("repair") or not run.folder.exists():
        return False
    writable = os.access(run.folder, os.W_OK)
    return not writable and all(plan.status_of(run, unit).current for unit in chain)


def _is_current(run: Run, unit: Unit, forced: set[str]) -> bool:
    """Determine a unit's status once for all processes, and share its manifest."""

    def look() -> Manifest | None:
        if unit.key not in run.manifests:
            plan.status_of(run, unit, force=unit.key in forced)
        return run.manifests.get(unit.key)

    if manifest := distributed.by_first(look):
        run.manifests[unit.key] = manifest
    return manifest is not None


def _work(run: Run, unit: Unit, outlook: Outlook, request: plan.Request, *, anew: bool) -> None:
    """Do a unit's work and make its artifact; an interrupted run's work is resumed.

    Args:
        run: the run.
        unit: the unit.
        outlook: what remains to be done.
        request: the command's options.
        anew: whether the user asks for work that is up to date to be done again.
    """
    stage = stage_of(unit)
    inputs = distributed.by_first(lambda: plan.fingerprint_inputs(run, unit))
    outlook.begin(unit)
    overall = partial(outlook.in_words, run.console.seconds_left)
    with run.console.work(unit.key, overall):
        manifest = _made(run, unit, inputs, anew=anew)
    run.manifests[unit.key] = manifest
    outlook.finish(unit, manifest.seconds)
    head = f"{DONE} {unit.key:<{outlook.widths.get(unit.stage, 0)}}"
    took = duration(manifest.seconds) if manifest.seconds >= 1 else ""
    run.console.say_phrases(head, stage.in_words(run, unit), took)
    if request.verbose:
        run.console.say_phrases(" ", facts_in_words(manifest.facts))
    if outlook.remains:
        run.console.say_if_due(overall())


def _made(run: Run, unit: Unit, inputs: dict[str, str], *, anew: bool) -> Manifest:
    stage, began, work = stage_of(unit), time.monotonic(), fingerprint(inputs)

    def begin() -> Path:
        if anew and not unit.artifact.is_begun(work):
            stage.forget(run, unit)
        return unit.artifact.begin(work)

    folder = distributed.by_first(begin)
    facts = None
    if stage.shared or distributed.is_first():
        try:
            facts = stage.work(run, unit, folder)
        except UserError as error:
            raise UserError(*(f"{unit.key}: {message}" for message in error.messages)) from error
    distributed.wait()
    seconds, values = time.monotonic() - began, facts.as_json() if facts else {}
    return distributed.by_first(
        lambda: unit.artifact.commit(unit.key, inputs, values, seconds, _versions(), run.digests)
    )


def _versions() -> dict[str, str]:
    names = ("firstcli", "torch", "transformers", "tokenizers", "pyarrow")
    versions = {"python": platform.python_version(), **{name: version(name) for name in names}}
    if distributed.count() > 1:
        versions["processes"] = str(distributed.count())
    return dict(sorted(versions.items()))  # in the order in which a manifest is read back
