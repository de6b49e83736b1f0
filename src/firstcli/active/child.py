"""The recipe of one round: an ordinary run over the samples that are known by then."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from firstcli.recipe.active import STOP_EVALUATION
from firstcli.recipe.from_run import trained_model
from firstcli.recipe.references import ModelSection
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import Arm
from firstcli.tasks.annotated import HELD_OUT
from firstcli.workspace.run import Run
from firstcli.workspace.units import teacher_path

OF_THE_DATA = ("limit", "unlabelled")
"""Keys of `train` that are about the data of the recipe, not about that of a round."""
HOW = ("answers", "samples", "confidence", "temperature", "max_new_tokens")
"""Keys of an evaluation that say how questions are answered."""
SELECTION = ("selector", "annotator", "confidence", "budget")
"""Keys of an arm that say what is annotated, not how its student learns."""


def model_at(section: ModelSection, folder: Path) -> dict[str, Any]:
    """Return the section of a model that starts from a folder in which firstcli saved it."""
    return trained_model(section.model_dump(mode="json", exclude_none=True), folder)


def child_recipe(
    run: Run, arm: str, seed: int, start: dict[str, Any], samples: Path, held_out: Path | None
) -> Recipe:
    """Return the recipe of a round.

    Args:
        run: the run whose recipe has the section `active`.
        arm: the arm.
        seed: the seed of its student.
        start: the section of the model with which the student starts.
        samples: the file of the samples to learn.
        held_out: the file of the samples that are held out, if there are any.
    """
    recipe = run.recipe
    whole = recipe.resolved()
    for key in ("active", "seeds", "paper"):
        whole.pop(key, None)
    task = recipe.train.task
    built = run.training_task.build()
    usage, form = built.usage(), built.explanations()
    options = {
        "path": str(samples.absolute()),
        "held_out": str(held_out.absolute()) if held_out else None,
        "unseen": True if recipe.teacher and recipe.teacher.finetune else None,
        "form": asdict(form) if form else None,
        "usage": usage.model_dump(mode="json") if usage else None,
    }
    whole["name"], whole["seed"] = "round", seed
    whole["train"] = {
        **{key: value for key, value in whole["train"].items() if key not in OF_THE_DATA},
        "task": {
            "name": "annotated" if task.plugin.has_candidates else "annotated-texts",
            "options": {key: value for key, value in options.items() if value is not None},
            **({"chat": task.chat} if task.chat else {}),
            **({"system": task.system} if task.system is not None else {}),
        },
    }
    if held_out is None:
        whole["train"]["validation"] = 0.0
    for section, values in zip(recipe.evaluate, whole["evaluate"], strict=True):
        adapted = run.evaluation_task(section.name)
        values["task"] = adapted.model_dump(mode="json", exclude_none=True)
    if held_out and recipe.active and recipe.active.stop:
        place = {"name": STOP_EVALUATION, "split": HELD_OUT}
        whole["evaluate"].append({**_how_answered(recipe), **place})
    if recipe.teacher:
        model = recipe.teacher.model
        values = model.model_dump(mode="json", exclude_none=True)
        if recipe.teacher.finetune:
            values = model_at(model, teacher_path(run.folder))
        whole["teacher"] = {"model": values}
    whole["student"]["model"] = start
    whole["arms"] = {arm: arm_of_round(recipe, recipe.arms[arm])}
    return Recipe.model_validate(whole)


def _how_answered(recipe: Recipe) -> dict[str, Any]:
    """Return how the held-out questions are answered: as in the first evaluation of their task."""
    task = recipe.train.task
    for section in recipe.evaluate:
        if (section.task.name, section.task.explanations) == (task.name, task.explanations):
            values = section.model_dump(mode="json", exclude_none=True)
            return {key: values[key] for key in HOW if key in values}
    return {}


def arm_of_round(recipe: Recipe, arm: Arm) -> dict[str, Any]:
    """Return how an arm's student learns, with a post-hoc recalibrator if the selector needs it."""
    values = arm.model_dump(mode="json", exclude_none=True)
    kept = {key: value for key, value in values.items() if key not in SELECTION}
    active = recipe.active
    assert active
    if active.recalibrates(arm) and arm.posthoc is None:
        kept["posthoc"] = {"name": "logit-temperature"}
    return kept
