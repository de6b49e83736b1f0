"""What is exported: a model of a run, or a student's folder that was moved away from its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstcli.api import JSON
from firstcli.errors import UserError, did_you_mean
from firstcli.recalibration.builtin import LogitTemperature
from firstcli.recalibration.diagnostics import CalibrationArtifact
from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.workspace.artifacts import Artifact, Digests
from firstcli.workspace.run import Run
from firstcli.workspace.units import Model, calibration_path, models_of

RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Source:
    """A trained model, and the temperature that the export folds into it."""

    folder: Path
    title: str
    """The model's name for people, such as `distill + T`."""
    temperature: float | None
    """T, or None for an export of the model as it is."""
    generates: bool
    """Whether the model writes free text, which a temperature changes too."""
    run: Run | None = None
    model: Model | None = None


def find(path: Path, arm: str | None, console: Console) -> Source:
    """Find the model that `first export` is asked for.

    Args:
        path: a run folder, or a student's folder in a run or elsewhere.
        arm: the model's name, such as `distill` or `distill + T`.
        console: takes warnings.

    Raises:
        UserError: there is no such model, it is incomplete, or its recalibrator is no temperature.
    """
    if (path / RECIPE).is_file():
        return _of_run(path, arm, console)
    raise UserError(
        f"{path}: neither a run folder (it has no {RECIPE}) nor a student's folder (it has no "
        "config.json)"
    )


def _of_run(folder: Path, arm: str | None, console: Console) -> Source:
    run = Run(load_recipe(folder / RECIPE), folder, console)
    model = _chosen(run, arm)
    trained = folder / ("students" if model.arm else "") / model.trained
    _require_complete(trained, model)
    temperature = _fitted_temperature(run, model) if model.posthoc else None
    generates = not run.recipe.train.task.build().has_candidates
    return Source(trained, model.title, temperature, generates, run, model)


def _chosen(run: Run, arm: str | None) -> Model:
    """Return the model with a name; blanks around `+` do not matter."""
    models = {model.name: model for model in models_of(run.recipe)}
    known = ", ".join(f"'{model.title}'" for model in models.values())
    if arm is None:
        raise UserError(f"first export: say which model with --arm; the run has {known}")
    name = re.sub(r"\s*\+\s*T$", "+T", arm.strip())
    if name in models:
        return models[name]
    if seeds := [m.title for m in models.values() if m.row == name.replace("+T", " + T")]:
        raise UserError(
            f"--arm '{arm}': the run has several seeds of it; choose one of "
            f"{', '.join(repr(seed) for seed in seeds)}"
        )
    if name.endswith("+T") and name.removesuffix("+T") in models:
        raise UserError(
            f"--arm '{arm}': no temperature was fitted to it; set `posthoc: "
            f"{{name: {LogitTemperature.name}}}` for it in the recipe, or export it without '+ T'"
        )
    raise UserError(
        f"--arm '{arm}': no such model{did_you_mean(name, models)}; the run has {known}"
    )


def _require_complete(folder: Path, model: Model) -> None:
    """Check that a model's folder is finished and undamaged."""
    artifact = Artifact(folder, True)
    if not folder.is_dir() and not model.arm:
        raise UserError(
            "--arm teacher: the run has no teacher of its own, because the recipe does not "
            "fine-tune one; export a student"
        )
    if artifact.written() is None:
        raise UserError(f"{folder}: not finished; run `first distill` with the recipe first")
    if damaged := artifact.damage(Digests()):
        raise UserError(
            f"{folder}: {damaged[0]} is damaged or was changed; run `first distill` again"
        )


def _fitted_temperature(run: Run, model: Model) -> float:
    path = calibration_path(run.folder, model.name)
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `first posthoc` with the recipe first")
    fitted = CalibrationArtifact.load(path)
    return temperature_of(model.title, fitted.recalibrator, fitted.state)


def temperature_of(title: str, recalibrator: str, state: Mapping[str, JSON]) -> float:
    """Return the temperature of a post-hoc recalibrator.

    Raises:
        UserError: it is no temperature.
    """
    if recalibrator != LogitTemperature.name:
        raise UserError(
            f"'{title}': its recalibrator `{recalibrator}` is not a temperature, and only "
            f"`{LogitTemperature.name}` can be folded into weights; export the model without "
            "'+ T', or use `first predict`, which applies any recalibrator"
        )
    return float(state["temperature"])


def check_target(target: Path, source: Path) -> None:
    """Check that a folder can be created.

    Raises:
        UserError: it exists and is not empty, or lies inside the folder that is exported.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; choose a different folder, or delete it")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target}: lies inside {source}; choose a folder outside it")
