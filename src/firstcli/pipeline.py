"""Plan and run: which units a command needs, which of them are up to date, and in what order.

    finetune -> extract -> calibrate -> distill -> eval -> report

A unit is the least that is redone: (stage, arm) or (stage, model, evaluation). Its fingerprint
covers everything in `reads`: recipe keys that matter, the content of inputs, the seed, and a format
number that we raise when a stage's results change. Versions, paths, process count, micro-batch and
device are not in it.
"""

from __future__ import annotations

import errno
import importlib
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.table import Table

from firstcli.artifacts import Artifact, Manifest, changes, fingerprint, locked
from firstcli.console import Console
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe import Arm, Recipe, Training, recalibrator_of, training_of
from firstcli.recipe_file import load_recipe
from firstcli.run import Part, Role, Run

Stage = Literal["finetune", "extract", "calibrate", "distill", "eval", "report"]
STAGES: tuple[Stage, ...] = ("finetune", "extract", "calibrate", "distill", "eval", "report")
MODULES: dict[Stage, str] = {
    "finetune": "finetune",
    "extract": "extract",
    "calibrate": "calibrate",
    "distill": "distill",
    "eval": "evaluate",
    "report": "report",
}
FORMATS: dict[Stage, int] = dict.fromkeys(STAGES, 1)
"""Raise a stage's number when the same inputs give another result than before."""

HARMLESS_TRAINER_FIELDS = frozenset(
    (
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "gradient_checkpointing",
        "log_level",
        "logging_dir",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "report_to",
        "run_name",
        "save_steps",
        "save_strategy",
    )
)
"""Fields of `trainer:` that change no result."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that is redone."""

    key: str
    stage: Stage
    artifact: Artifact
    needs: tuple[str, ...] = ()
    part: Part = "train"
    arm: str = ""
    evaluation: str = ""
    model: str = ""
    """`teacher` or an arm's name."""

    @property
    def role(self) -> Role:
        """Whose tokenizer the unit works with."""
        of_student = self.stage == "distill" or (self.stage == "eval" and self.model != "teacher")
        return "student" if of_student else "teacher"


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
    json: bool = False
    quiet: bool = False


# Units: a pure function of the recipe.


def units_of(recipe: Recipe, folder: Path) -> dict[str, Unit]:
    """Return every unit of a recipe in an order in which they can run."""
    units: list[Unit] = []
    arms = recipe.arms
    knowing = {name: arm for name, arm in arms.items() if arm.learn == "knowledge"}
    teacher: tuple[str, ...] = ("finetune",) if recipe.teacher and recipe.teacher.finetune else ()
    if teacher:
        units.append(Unit("finetune", "finetune", Artifact(folder / "teacher", True)))
    fitted = [name for name, arm in knowing.items() if needs_fit(arm)]
    parts: list[Part] = ["train"] if knowing else []
    if fitted:
        parts.append("validation")
    for part in parts:
        artifact = Artifact(folder / "knowledge" / part, True)
        units.append(Unit(f"extract {part}", "extract", artifact, teacher, part=part))
    for name in fitted:
        artifact = Artifact(folder / "calibration" / f"{name}.json", False)
        after = ("extract validation",)
        units.append(Unit(f"calibrate {name}", "calibrate", artifact, after, arm=name))
    for name in arms:
        needs: tuple[str, ...] = ("extract train",) if name in knowing else ()
        needs += (f"calibrate {name}",) if name in fitted else ()
        artifact = Artifact(folder / "students" / name, True)
        units.append(Unit(f"distill {name}", "distill", artifact, needs, arm=name, model=name))
    for evaluation in recipe.evaluate:
        for model in (*(["teacher"] if recipe.teacher else []), *arms):
            needs = teacher if model == "teacher" else (f"distill {model}",)
            path = folder / "eval" / evaluation.name / f"{model}.parquet"
            key = f"eval {evaluation.name}/{model}"
            units.append(
                Unit(
                    key,
                    "eval",
                    Artifact(path, False),
                    needs,
                    evaluation=evaluation.name,
                    model=model,
                )
            )
    needs = tuple(unit.key for unit in units if unit.stage in ("calibrate", "eval"))
    units.append(Unit("report", "report", Artifact(folder / "report", True), needs))
    return {unit.key: unit for unit in units}


def needs_fit(arm: Arm) -> bool:
    return arm.learn == "knowledge" and recalibrator_of(arm).needs_fit


def wanted(units: dict[str, Unit], stage: Stage, arms: Sequence[str]) -> list[Unit]:
    """Return the units of a stage, limited to some arms where the stage has arms."""
    chosen = [unit for unit in units.values() if unit.stage == stage]
    if arms:
        known = {unit.model or unit.arm for unit in chosen} - {""}
        for arm in arms:
            if arm not in known:
                raise UserError(
                    f"--arm {arm}: no such arm{did_you_mean(arm, known)}; the recipe has "
                    f"{', '.join(sorted(known)) or 'none here'}"
                )
        chosen = [unit for unit in chosen if (unit.model or unit.arm) in arms]
    return chosen


def with_upstream(units: dict[str, Unit], targets: Iterable[Unit]) -> list[Unit]:
    """Return the targets and all that they need, in an order in which they can run."""
    needed: set[str] = set()
    stack = [unit.key for unit in targets]
    while stack:
        key = stack.pop()
        if key not in needed:
            needed.add(key)
            stack.extend(units[key].needs)
    return [unit for key, unit in units.items() if key in needed]


# Reads: all that a unit's result depends on.


def reads_of(run: Run, unit: Unit) -> dict[str, str]:
    """Return what a unit reads; every unit that it needs must be up to date."""
    recipe = run.recipe
    reads: dict[str, Any] = {"format": FORMATS[unit.stage]}
    for key in unit.needs:
        reads[f"result of {key}"] = run.manifests[key].content
    match unit.stage:
        case "finetune":
            assert recipe.teacher and recipe.teacher.finetune
            reads |= _model_reads(run, "teacher") | _training_data(run)
            reads["longest sample"] = _longest(run, unit)
            reads |= _training_reads("teacher.finetune", recipe.teacher.finetune)
            reads |= _trainer_reads(recipe)
        case "extract":
            reads |= _teacher_reads(run) | {"knowledge.top_k": recipe.knowledge.top_k}
            reads["longest sample"] = _longest(run, unit)
            samples = run.training.part(unit.part)
            reads[f"{unit.part} samples"] = run.content_of_samples(unit.part, samples)
            reads["shared vocabulary"] = _shared_vocabulary(run)
        case "calibrate":
            reads |= _arm_reads(recipe, unit.arm, ("recalibrator", "mass", "recalibrate"))
            # Which positions decide follows from the candidates, of which knowledge knows nothing.
            samples = run.training.validation
            reads["validation samples"] = run.content_of_samples("validation", samples)
        case "distill":
            arm = recipe.arms[unit.arm]
            reads |= _model_reads(run, "student") | _training_data(run)
            reads["longest sample"] = _longest(run, unit)
            reads |= _training_reads("student.training", training_of(recipe.student, arm))
            reads |= _trainer_reads(recipe)
            if arm.learn == "knowledge":
                names = ("recalibrator", "mass", "objective", "recalibrate")
                reads |= _arm_reads(recipe, unit.arm, names)
        case "eval":
            samples = run.evaluation_samples(unit.evaluation)
            reads["evaluation samples"] = run.content_of_samples(f"eval {unit.evaluation}", samples)
            reads["longest sample"] = _longest(run, unit)
            is_teacher = unit.role == "teacher"
            reads |= _teacher_reads(run) if is_teacher else _inference_reads(run, "student")
        case "report":
            reads |= _flat("metrics", recipe.metrics.model_dump()) | {"name": recipe.name}
            reads["arms"] = ", ".join(recipe.arms)  # their order is the table's
            reads["evaluate"] = ", ".join(one.name for one in recipe.evaluate)
    return {key: str(value) for key, value in reads.items()}


def _model_reads(run: Run, role: Role) -> dict[str, Any]:
    section = run.model_section(role)
    # `dtype` is for inference; a family that is asked to train is told another.
    options = {k: v for k, v in section.options.items() if k not in ("device", "dtype")}
    reads = _flat(f"{role}.model.options", options) | {f"{role}.model.family": section.family}
    if section.checkpoint is not None:
        reads[f"{role}.model.checkpoint"] = run.checkpoint_identity(role)
    reads["seed"] = run.recipe.seed
    return reads


def _inference_reads(run: Run, role: Role) -> dict[str, Any]:
    options = {k: v for k, v in run.model_section(role).options.items() if k != "device"}
    return _flat(f"{role}.model.options", options)


def _teacher_reads(run: Run) -> dict[str, Any]:
    assert run.recipe.teacher
    reads = _inference_reads(run, "teacher")
    return reads if run.recipe.teacher.finetune else reads | _model_reads(run, "teacher")


def _training_data(run: Run) -> dict[str, Any]:
    # The validation part belongs in it: the text of `scratch` tokenizers includes it.
    training = run.training
    return {
        "train samples": run.content_of_samples("train", training.train),
        "validation samples": run.content_of_samples("validation", training.validation),
    }


def _training_reads(prefix: str, training: Training) -> dict[str, Any]:
    return _flat(prefix, training.model_dump(exclude={"micro_batch_size"}))


def _trainer_reads(recipe: Recipe) -> dict[str, Any]:
    fields = {k: v for k, v in recipe.trainer.items() if k not in HARMLESS_TRAINER_FIELDS}
    return _flat("trainer", fields)


def _arm_reads(recipe: Recipe, name: str, fields: Iterable[str]) -> dict[str, Any]:
    return _flat(f"arms.{name}", recipe.arms[name].model_dump(include=set(fields)))


def _longest(run: Run, unit: Unit) -> str:
    """Say up to which length samples are used; it matters only if some are left out."""
    if run.recipe.train.too_long == "error":
        return "any"
    from firstcli.stages import inputs

    if unit.stage == "eval":
        given = len(run.evaluation_samples(unit.evaluation))
        used = len(inputs.questions(run, unit.role, unit.evaluation))
    else:
        given = len(run.training.part(unit.part))
        used = len(inputs.training_rows(run, unit.role, unit.part))
    return "any" if used == given else f"{inputs.context(run)} tokens"


def _shared_vocabulary(run: Run) -> int:
    from firstcli.stages import inputs

    return inputs.shared_vocabulary(run)


def _flat(prefix: str, value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, one in value.items() for k, v in _flat(f"{prefix}.{key}", one).items()
        }
    return {} if value is None else {prefix: value}


# Status, plan and work.


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
        return Status(False, "not made yet")
    reads = reads_of(run, unit)
    if manifest.fingerprint == fingerprint(reads):
        run.manifests[unit.key] = manifest
        return Status(True, "up to date")
    different = changes(manifest.reads, reads)
    return Status(False, "; ".join(different[:3]) + (" ..." if len(different) > 3 else ""))


def execute(request: Request, stage: Stage) -> dict[str, Any]:
    """Bring a stage up to date and return its result as JSON values."""
    run = open_run(request)
    units = units_of(run.recipe, run.folder)
    targets = wanted(units, stage, request.arms)
    chain = with_upstream(units, targets)
    if not targets:
        raise UserError(f"{request.recipe}: nothing to {stage}; {_why_nothing(run.recipe, stage)}")
    if request.dry_run:
        return plan_result(
            run, show_plan(run, chain, _forced(request, stage, targets), check=False)
        )
    with _disk_trouble_told(run.folder), locked(run.folder):
        for unit in chain:
            unit.artifact.recover()
        forced = _forced(request, stage, targets)
        rows = show_plan(run, chain, forced, check=True)
        if request.only:
            _require_upstream(run, request, chain, targets)
        _write_recipe(run)
        for unit in chain:
            if not status_of(run, unit, force=unit.key in forced).current:
                _work(run, unit)
        run.digests.save()
    result = importlib.import_module(f"firstcli.stages.{MODULES[stage]}").summary(run, targets)
    return {**plan_result(run, rows), "result": result}


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
    return plan_result(run, rows)


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
        path.write_text(text, "utf-8")


def _work(run: Run, unit: Unit) -> None:
    """Run one unit and make its artifact; what it left half-done is taken up again next time."""
    module = importlib.import_module(f"firstcli.stages.{MODULES[unit.stage]}")
    reads = reads_of(run, unit)
    began = time.monotonic()
    run.console.say(f"{unit.key} ...")
    work = unit.artifact.begin(fingerprint(reads))
    try:
        facts = module.work(run, unit, work)
    except UserError as error:
        raise UserError(*(f"{unit.key}: {message}" for message in error.messages)) from error
    seconds = time.monotonic() - began
    manifest = unit.artifact.commit(unit.key, reads, facts, seconds, _versions(), run.digests)
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
        return str(error.strerror)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "os error 28" in str(error) or shutil.disk_usage(folder).free < 2**20:
        return "no space left on the disk"
    return None


def _summary_line(manifest: Manifest) -> str:
    shown = [
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in manifest.facts.items()
    ]
    return ", ".join([*shown, f"{manifest.seconds:.1f} s"])


def _versions() -> dict[str, str]:
    names = ("firstcli", "torch", "transformers", "tokenizers", "pyarrow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
