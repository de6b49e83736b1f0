"""Plan: which units of a command are up to date, why the others will run, and what they need."""

from __future__ import annotations

import errno
import math
import os
import platform
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.markup import escape
from rich.table import Table

from firstcli.api import JSON
from firstcli.errors import UserError, one_per_cause, shortened
from firstcli.pipeline import shifted
from firstcli.pipeline.example import example_text, samples_text
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console, duration, size
from firstcli.stages import fingerprints, stage_of, units_of
from firstcli.stages.checks import EXAMPLE, SharedCheck
from firstcli.workspace.artifacts import Manifest, changes, fingerprint
from firstcli.workspace.data_decisions import state_data
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, of_arms, with_upstream

T = TypeVar("T")

NEVER_RUN = "not run yet"
INTERRUPTED = "interrupted"
MAX_REASONS = 3
"""Reasons in the summary of a plan; the table has all of them."""


@dataclass(frozen=True, slots=True)
class Request:
    """The options of a command."""

    recipe: Path
    overrides: Sequence[str] = ()
    arms: Sequence[str] = ()
    run_dir: Path | None = None
    only: bool = False
    force: bool = False
    dry_run: bool = False
    probe: bool = False
    show: int = 0
    processes: int = 1
    verbose: bool = False
    json: bool = False
    quiet: bool = False
    stage_options: Mapping[str, Any] = field(default_factory=dict)
    """The options that only the command's stage has."""

    def command(self, stage: str) -> str:
        """Return the command line of a stage for the same recipe and run folder."""
        words = ["first", stage, str(self.recipe)]
        words += ["--run-dir", str(self.run_dir)] if self.run_dir else []
        words += [word for override in self.overrides for word in ("--set", override)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One row of the plan: whether a unit is up to date, and if not, why it will run."""

    unit: Unit
    current: bool
    reason: str
    size: str = ""
    """The size of the unit's work, in words."""
    resumes: str = ""
    """Where the work goes on that an interrupted run has begun."""
    depends: bool = False
    """Whether the unit will only run if the result of another one changes."""

    @property
    def state(self) -> str:
        """Whether and why the unit will run, in words."""
        if self.current:
            return self.reason
        resumes = f"; resumes at {self.resumes}" if self.resumes else ""
        return f"will run: {self.reason}{resumes}"


def open_run(request: Request) -> Run:
    """Load the recipe and name its run folder; nothing is written yet."""
    recipe = load_recipe(request.recipe, request.overrides, request.run_dir)
    folder = request.run_dir or recipe.run_folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run folder {folder}: is not a folder; choose a different --run-dir")
    run = Run(recipe, folder, Console(json=request.json, quiet=request.quiet))
    with disk_errors_reported(folder):
        state_data(run)
    return run


def plan(request: Request) -> dict[str, JSON]:
    """Show every unit's status and size, and run every check that needs no weights."""
    return plan_run(open_run(request), request)


def plan_run(run: Run, request: Request, chosen: Sequence[Unit] | None = None) -> dict[str, JSON]:
    """Show the plan of an open run, as `plan` does.

    Args:
        run: the run.
        request: the command's options.
        chosen: the units of the plan, with all that they need; None for those of the recipe.
    """
    units = units_of(run.recipe, run.folder)
    chain = list(units.values() if chosen is None else chosen)
    if request.arms and chosen is None:
        of_stages = [unit for unit in chain if stage_of(unit).has_arms]
        chain = with_upstream(units, of_arms(of_stages, request.arms))
    rows, problems = statuses(chain, partial(status_of, run))
    results, found = check_units(run, chain, trusting=True)
    if run.caches.are_waiting or not problems + found:
        with suppress(OSError):  # the folder is only to remember what was found out
            run.folder.mkdir(parents=True, exist_ok=True)
    run.save_memory()
    raise_any(problems + found)
    rows = [replace(row, size=results.get(row.unit.key, "")) for row in rows]
    run.console.show(plan_table(rows))
    result = plan_result(run, rows)
    if added := [*shifted.added_questions(run, chain)]:
        result["shifts"] = [each._asdict() for each in added]
        for each in added:
            run.console.say(str(each))
    if example := results.get(EXAMPLE.name):
        result["example"] = example
        if not request.show:
            run.console.show(example_text(example))
    if request.show:
        result["samples"] = _show_samples(run, request.show)
    return result | {"probe": _probe(run, rows, request.processes)} if request.probe else result


def _show_samples(run: Run, count: int) -> list[dict[str, JSON]]:
    """Show the first training samples with all their tokens."""
    run.announce_libraries()
    from firstcli.stages.example import encoded_samples

    samples = encoded_samples(run, count)
    run.console.show(samples_text(samples))
    return samples


def fingerprint_inputs(run: Run, unit: Unit) -> dict[str, str]:
    """Return everything that a unit's result depends on; the units it needs must be up to date."""
    stage = stage_of(unit)
    inputs: dict[str, object] = {"format": stage.format}
    inputs |= {f"result of {key}": run.manifests[key].content for key in unit.needs}
    return fingerprints.as_text(inputs | dict(stage.fingerprint_inputs(run, unit)))


def status_of(run: Run, unit: Unit, *, force: bool = False) -> PlanRow:
    """Determine whether a unit is up to date; a current unit's manifest is kept in the run."""
    manifest = unit.artifact.manifest(run.digests)
    if missing := [key for key in unit.needs if key not in run.manifests]:
        if manifest:
            return PlanRow(unit, False, f"after {missing[0]}, if its result changes", depends=True)
        return PlanRow(unit, False, f"after {missing[0]}")
    resumes = _resumption(run, unit)
    if force:
        return PlanRow(unit, False, "--force", resumes=resumes)
    if manifest is None:
        damaged = unit.artifact.damage(run.digests)
        never = INTERRUPTED if resumes else NEVER_RUN
        reason = f"damaged: {shortened(damaged, 3)}" if damaged else never
        return PlanRow(unit, False, reason, resumes=resumes)
    inputs = fingerprint_inputs(run, unit)
    recorded = recorded_inputs(run, manifest, inputs)
    if recorded == inputs:
        run.manifests[unit.key] = manifest
        return PlanRow(unit, True, "up to date")
    differences = changes(recorded, inputs)
    more = " ..." if len(differences) > 3 else ""
    return PlanRow(unit, False, "; ".join(differences[:3]) + more, resumes=resumes)


def _resumption(run: Run, unit: Unit) -> str:
    """Return where work goes on that an interrupted run has begun; empty if it starts anew."""
    artifact = unit.artifact
    if not artifact.work.is_dir():
        return ""
    begun = artifact.is_begun(fingerprint(fingerprint_inputs(run, unit)))
    return stage_of(unit).resumption(run, unit) if begun else ""


def statuses(
    units: Iterable[Unit], status: Callable[[Unit], PlanRow]
) -> tuple[list[PlanRow], list[str]]:
    """Return the status of every unit, and what keeps some from being determined.

    An existing artifact is compared with its inputs, which a mistake in data or models makes
    unreadable; the checks report the same mistake if nothing exists yet.
    """
    rows: list[PlanRow] = []
    problems: list[str] = []
    for unit in units:
        try:
            rows.append(status(unit))
        except UserError as error:
            problems += error.messages
            rows.append(PlanRow(unit, False, "its inputs cannot be read"))
    return rows, problems


def raise_any(problems: Iterable[str]) -> None:
    """Raise UserError with one message per cause, if there is any."""
    if messages := one_per_cause(problems):
        raise UserError(*messages)


def recorded_inputs(run: Run, manifest: Manifest, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return a manifest's inputs; those that earlier versions did not record count as unchanged."""
    recorded = manifest.inputs | _first_seen_sources(run, manifest, inputs)
    if manifest.format >= 2:
        return recorded
    implied = fingerprints.as_text(dict(fingerprints.implied_inputs(run.recipe)))
    missing = {key for key, value in inputs.items() if implied.get(key) == value}
    missing -= recorded.keys()
    if missing:
        run.console.warn(
            f"{run.folder}: made by firstcli 0.1, which recorded neither versions of plugins nor "
            "defaults of options; they are assumed unchanged"
        )
    return recorded | {key: inputs[key] for key in missing}


def _first_seen_sources(run: Run, manifest: Manifest, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return the code of the plugins of an artifact that was made before it was recorded.

    It is taken to be what this version finds when it sees the run for the first time, so that the
    artifact is up to date until the code changes.
    """

    def first_seen(key: str) -> str:
        run.console.warn(
            f"{run.folder}: made before the code of plugins was recorded; that of "
            f"{key.removeprefix(fingerprints.SOURCE_OF).strip()} is assumed unchanged"
        )
        return inputs[key]

    missing = [key for key in inputs if key.startswith(fingerprints.SOURCE_OF)]

    def plugin(key: str) -> dict[str, str]:
        identity = f"plugin of{key.removeprefix(fingerprints.SOURCE_OF)}"
        return {"plugin": inputs[identity]}

    return {
        key: run.memory.recall(
            f"first seen {key}", plugin(key), partial(first_seen, key), permanent=True
        )
        for key in missing
        if key not in manifest.inputs
    }


@dataclass(frozen=True, slots=True)
class Recollection:
    """Results of checks that are remembered in the run folder."""

    run: Run
    content: Mapping[str, str] | None
    """Everything that checks depend on; None if it is unknown, so that nothing is remembered."""
    trusting: bool
    """Whether checks of units that will run are remembered too, on the same machine."""

    def __call__(self, what: str, make: Callable[[], T], pending: bool) -> T:
        """Return a remembered result, or make it.

        Args:
            what: name of the result.
            make: computes the result, a JSON value.
            pending: whether it is about a unit that will run.

        Raises:
            UserError: `make` raised it.
        """
        if self.content is None:
            return make()
        here = _machine() if pending and self.trusting else {}
        anew = pending and not self.trusting
        return self.run.memory.recall(what, {**self.content, **here}, make, anew=anew)


def _machine() -> dict[str, str]:
    """Return what identifies this machine and its devices."""
    return {"machine": platform.node(), "devices": os.environ.get("CUDA_VISIBLE_DEVICES", "")}


def check_units(
    run: Run, units: Sequence[Unit], *, trusting: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Run every check; return the results, such as each unit's size in words, and all mistakes.

    Checks that load weights come last, and only if there is no mistake so far.

    Args:
        run: the run.
        units: the units; those that are up to date are not checked again if nothing changed.
        trusting: whether this also holds for units that will run, on the same machine.
    """
    pending = [unit for unit in units if unit.key not in run.manifests]
    try:
        content = fingerprints.all_content(run) if units else None
    except UserError:  # the data cannot be read; the checks report it
        content = None
    recalled = Recollection(run, content, trusting)
    shared: dict[SharedCheck, list[Unit]] = {}
    for unit in units:
        for check in stage_of(unit).checks_of(run, unit):
            shared.setdefault(check, []).append(unit)
    steps: list[tuple[str, bool, Callable[[], Any], list[Unit]]] = [
        *((c.name, c.heavy, partial(c.run, run), owners) for c, owners in shared.items()),
        *((unit.key, False, partial(stage_of(unit).check, run, unit), [unit]) for unit in units),
    ]
    results: dict[str, Any] = {}
    problems: list[str] = []
    for name, heavy, check_one, owners in sorted(steps, key=lambda step: step[1]):
        if heavy and problems:
            break
        make = partial(_announced, run, owners, check_one)
        is_pending = any(unit in pending for unit in owners)
        try:
            results[name] = recalled(f"check {name}", make, is_pending)
        except UserError as error:
            problems += error.messages
    if not problems:
        try:
            check_disk(run, pending, recalled)
        except UserError as error:
            problems += error.messages
    return results, problems


def _announced(run: Run, units: Iterable[Unit], check: Callable[[], T]) -> T:
    """Run the check of some units; announce PyTorch if it needs that."""
    if any(stage_of(unit).uses_models for unit in units):
        run.announce_libraries()
    return check()


def check_disk(run: Run, pending: Sequence[Unit], recalled: Recollection) -> None:
    """Check that the run folder's disk has room for the work of units.

    Raises:
        UserError: it has not.
    """

    def needs(unit: Unit) -> list[int]:
        return [stage_of(unit).disk(run, unit), stage_of(unit).disk_at_work(run, unit)]

    each = [recalled(f"disk of {unit.key}", partial(needs, unit), True) for unit in pending]
    needed = sum(kept for kept, _ in each) + max((at_work for _, at_work in each), default=0)
    free = free_bytes(run.folder)
    if needed > free:
        raise UserError(
            f"run folder {run.folder}: weights, checkpoints and knowledge need {size(needed)}, but "
            f"{size(free)} are free; choose a different --run-dir"
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def disk_errors_reported(folder: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _disk_error(error, folder)) is None:
            raise
        raise UserError(
            f"run folder {folder}: cannot be written: {reason}; finished work is kept, fix this "
            "and run the same command again"
        ) from error


def _disk_error(error: Exception, folder: Path) -> str | None:
    """Return what is wrong with the disk if that caused an error of any library."""
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        inside = Path(str(error.filename)).absolute().is_relative_to(folder.absolute())
        return str(error.strerror) if inside else None
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "os error 28" in str(error) or free_bytes(folder) < 2**20:
        return "no space left on the disk"
    return None


def plan_table(rows: Sequence[PlanRow]) -> Table:
    table = Table("unit", "state", "estimate", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    shown = [shifted.ShownUnit(row.unit, row.state, row.size, row.current) for row in rows]
    for texts in shifted.cells(shown):
        table.add_row(*map(escape, texts))
    return table


def summary(rows: Sequence[PlanRow]) -> tuple[str, list[str]]:
    """Return the plan in a sentence, and phrases that say why units run and where they resume."""
    pending = [row for row in rows if not row.current]
    certain = [row for row in pending if not row.depends]
    dependent = [row for row in pending if row.depends]
    count = f"{len(rows)} unit{'s' * (len(rows) != 1)}"
    current = f"{len(rows) - len(pending)} up to date; " if len(pending) < len(rows) else ""
    sentence = f"{count}: {current}will run {_counted(certain)}"
    if dependent:
        sentence += f", and {_counted(dependent)} if results change"
    reasons: dict[str, list[PlanRow]] = {}
    for row in certain:
        if row.reason not in (NEVER_RUN, INTERRUPTED) and not row.reason.startswith("after "):
            reasons.setdefault(row.reason, []).append(row)
    phrases = [f"{_counted(of_reason)}: {reason}" for reason, of_reason in reasons.items()]
    phrases = phrases[:MAX_REASONS] + ["..."] * (len(phrases) > MAX_REASONS)
    phrases += [f"{row.unit.key} resumes at {row.resumes}" for row in pending if row.resumes]
    return sentence, phrases


def _counted(rows: Sequence[PlanRow]) -> str:
    """Return how many units of each stage there are: `distill (3), report`."""
    stages: dict[str, list[str]] = {}
    for row in rows:
        stages.setdefault(row.unit.stage, []).append(row.unit.key)
    return ", ".join(
        keys[0] if len(keys) == 1 else f"{stage} ({len(keys)})" for stage, keys in stages.items()
    )


def plan_result(run: Run, rows: Sequence[PlanRow]) -> dict[str, JSON]:
    units = [
        {
            "unit": row.unit.key,
            "up_to_date": row.current,
            "reason": row.reason,
            "resumes": row.resumes,
            "estimate": row.size,
        }
        for row in rows
    ]
    return {"run": str(run.folder), "units": units}


def _probe(run: Run, rows: Sequence[PlanRow], processes: int) -> dict[str, JSON]:
    """Run a few batches of each pending stage, and show what everything will take."""
    from firstcli.stages import probe

    title = f"estimate for {processes} process{'es' if processes > 1 else ''} on this machine"
    headings = ("stage", "what", "time", "memory per process", "sharded", "disk")
    table = Table(*headings, title=title)
    measure = probe.Probe(run, processes)
    result: dict[str, Any] = {}
    for unit in (row.unit for row in rows if not row.current):
        stage = stage_of(unit)
        if (estimate := measure.estimate(partial(stage.probe, measure, unit))) is None:
            continue
        on_disk = stage.disk(run, unit)
        if math.isnan(estimate.seconds):
            result[unit.key] = {"fits": False, "seconds": 0, "disk": on_disk}
            cells = ("?", "does not fit on one device", "?")
        else:
            result[unit.key] = {**asdict(estimate), "disk": on_disk}
            sharded = "–" if estimate.sharded is None else size(estimate.sharded)
            cells = (duration(estimate.seconds), size(estimate.memory), sharded)
        table.add_row(unit.stage, unit.subject, *cells, size(on_disk))
    seconds, on_disk = (sum(row[name] for row in result.values()) for name in ("seconds", "disk"))
    table.add_section()
    table.add_row("all", "", duration(seconds), "", "", size(on_disk))
    run.console.show(table)
    return result
