"""What is exported: a model of a run, or a student's folder that was moved away from its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from firstcli.api import Dtype
from firstcli.checkpoints.folder import ADAPTER
from firstcli.errors import UserError, did_you_mean
from firstcli.recalibration.builtin import LogitTemperature
from firstcli.recipe.load import load_recipe
from firstcli.recipe.sections import training_of
from firstcli.runtime.console import Console
from firstcli.student.usage import FoldedTemperature, Usage, read_usage
from firstcli.workspace.artifacts import Artifact, Digests
from firstcli.workspace.run import Run
from firstcli.workspace.units import STUDENTS, Model, model_path, models_of, split_title

RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A trained model, and the temperature that the export folds into it."""

    folder: Path
    usage: Usage
    """What the model's folder says about its use."""
    title: str
    """The model's name for people, such as `distill + T`."""
    temperature: float | None
    """T, or None for an export of the model as it is."""
    run: Run | None = None
    """The run with the model's answers to held-out questions; None for a folder alone."""
    model: Model | None = None

    @property
    def save_dtype(self) -> Literal["checkpoint"] | Dtype:
        """The recipe's `save_dtype` for the model; without its run, the default."""
        if self.run is None or self.model is None:
            return "checkpoint"
        recipe, arm = self.run.recipe, self.model.arm
        if arm:
            return training_of(recipe.student, recipe.arms[arm]).save_dtype
        finetune = recipe.teacher and recipe.teacher.finetune
        return finetune.save_dtype if finetune else "checkpoint"

    @property
    def exported_usage(self) -> Usage:
        """What the exported folder says about its use."""
        usage = self.usage
        if usage.posthoc is None:
            return usage
        without = usage.model_copy(
            update={"posthoc": None, "raw_numbers": {}, "raw_validation": None}
        )
        if self.temperature is not None:
            folded = FoldedTemperature(temperature=self.temperature)
            return without.model_copy(update={"folded": folded})
        # Numbers and thresholds of recalibrated answers do not hold for others.
        plain = {"numbers": usage.raw_numbers, "validation": usage.raw_validation, "thresholds": ()}
        return without.model_copy(update=plain)


def find(path: Path, arm: str | None, console: Console) -> ExportSource:
    """Find the model that `first export` exports.

    Args:
        path: a run folder, or a student's folder in a run or elsewhere.
        arm: the model's name, such as `distill` or `distill + T`. A student's folder needs none.
        console: takes warnings.

    Raises:
        UserError: there is no such model, it is incomplete, or its recalibrator is no temperature.
    """
    if (path / RECIPE).is_file():
        return _of_run(_opened(path, console), arm)
    if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
        raise UserError(
            f"{path}: neither a run folder (it has no {RECIPE}) nor a student's folder (it has no "
            "config.json)"
        )
    usage = read_usage(path)
    models = _models_of_folder(usage)
    arm = arm or models[-1].title
    if (run_folder := _run_around(path)) is not None:
        try:
            return _of_run(_opened(run_folder, console), arm)
        except UserError as error:
            console.warn(f"{run_folder}: the run is not used: {error}")
    return _source(path, usage, _chosen(models, arm, path))


def _opened(folder: Path, console: Console) -> Run:
    return Run(load_recipe(folder / RECIPE, run_dir=folder), folder, console)


def _run_around(folder: Path) -> Path | None:
    """Return the run folder that a model's folder lies in, or None."""
    parent = folder.resolve().parent
    run = parent.parent if parent.name == STUDENTS else parent
    return run if (run / RECIPE).is_file() else None


def _models_of_folder(usage: Usage) -> list[Model]:
    """Return the model in a folder, without and if it has one, with its recalibrator."""
    plain = Model("" if usage.arm == "teacher" else usage.arm, usage.seed)
    return [plain, *([replace(plain, posthoc=True)] if usage.posthoc else [])]


def _of_run(run: Run, arm: str | None) -> ExportSource:
    model = _chosen(models_of(run.recipe), arm, run.folder)
    folder = model_path(run.folder, model)
    _require_complete(folder, model)
    return _source(folder, read_usage(folder), model, run)


def _source(folder: Path, usage: Usage, model: Model, run: Run | None = None) -> ExportSource:
    temperature = _temperature(usage, model, folder) if model.posthoc else None
    return ExportSource(folder, usage, model.title, temperature, run, model)


def _chosen(models: Sequence[Model], arm: str | None, folder: Path) -> Model:
    """Return the model with a name; blanks around `+` do not matter."""
    known = ", ".join(f"'{model.title}'" for model in models)
    if arm is None:
        raise UserError(f"{folder}: say which model to export with --arm: {known}")
    name, posthoc = split_title(arm)
    by_name = {(model.trained, model.posthoc): model for model in models}
    if (name, posthoc) in by_name:
        return by_name[name, posthoc]
    if seeds := [m.title for m in models if (m.arm, m.posthoc) == (name, posthoc)]:
        raise UserError(
            f"--arm '{arm}': {folder} has several seeds of it; choose one of "
            f"{', '.join(repr(seed) for seed in seeds)}"
        )
    if (name, False) in by_name:
        raise UserError(
            f"--arm '{arm}': no temperature was fitted to it; set `posthoc: "
            f"{{name: {LogitTemperature.name}}}` for the arm in the recipe, or export it without "
            "'+ T'"
        )
    hint = did_you_mean(arm, [model.title for model in models])
    raise UserError(f"--arm '{arm}': {folder} has no such model{hint}; it has {known}")


def _require_complete(folder: Path, model: Model) -> None:
    """Check that a model's folder is finished and undamaged."""
    artifact = Artifact(folder, True)
    if not folder.is_dir() and not model.arm:
        raise UserError(
            f"{folder}: there is no such folder, because the recipe does not fine-tune its "
            "teacher; export a student"
        )
    if artifact.written() is None:
        raise UserError(f"{folder}: not finished; run `first distill` with the recipe first")
    if damaged := artifact.damage(Digests()):
        raise UserError(
            f"{folder}: {damaged[0]} is damaged or was changed; run `first distill` again"
        )


def _temperature(usage: Usage, model: Model, folder: Path) -> float:
    fitted = usage.posthoc
    if fitted is None:
        raise UserError(
            f"{folder}: no temperature was fitted to it yet; run `first distill` with the recipe"
        )
    if fitted.temperature is None:
        raise UserError(
            f"'{model.title}': its recalibrator `{fitted.name}` is not a temperature, and only "
            f"`{LogitTemperature.name}` can be folded into weights; export the model without "
            "'+ T', or use `first predict`, which applies any recalibrator"
        )
    return fitted.temperature


def check_target(target: Path, source: Path, option: str = "") -> None:
    """Check that a folder can be created; `option` begins the message.

    Raises:
        UserError: it exists and is not empty, or lies inside the folder that is exported.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{option}{target}: exists already; choose a different folder, or delete it"
        )
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{option}{target}: lies inside {source}; choose a folder outside it")
