"""The model card that a student carries: recipe, arm, data and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from firstcli import __version__
from firstcli.recipe.schema import Training
from firstcli.workspace.run import Run
from firstcli.workspace.units import part_of


def model_card(run: Run, arm: str, settings: Training, seed: int, facts: dict[str, Any]) -> str:
    """Return the README.md of a student's folder."""
    recipe = run.recipe
    chosen = recipe.arms[arm]
    student = (
        _without_folders(recipe.student.model.checkpoint)
        or f"new weights (family {recipe.student.model.family})"
    )
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    about["tags"] = ["firstcli", "knowledge-distillation", "calibration"]
    if recipe.student.model.checkpoint and run.reference("student").folder is None:
        about["base_model"] = recipe.student.model.checkpoint
    top_k = chosen.top_k or recipe.knowledge.top_k
    numbers = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.6g} |"
        if isinstance(value, float)
        else f"| {name.replace('_', ' ')} | {value} |"
        for name, value in facts.items()
    )
    return f"""---
{yaml.safe_dump(about, sort_keys=False).strip()}
---

# {recipe.name}: {arm}

A student made by firstcli {__version__}, which implements
FIRST, "Efficient Trustworthy Distillation" (arXiv 2408.12168).

- **Arm**: `{arm}`, which learns {_lesson(run, arm)}.
- **Student**: {student}.
- **Data**: task `{recipe.train.task.name}`, {facts["samples"]} training samples;
  {len(run.training.validation)} held out, on which no model was trained.
- **Training**: {settings.epochs:g} epochs, {settings.batch_size} sequences a step, peak learning
  rate {settings.learning_rate:g}, seed {seed}.

## Numbers of the training

| what | value |
|---|---|
{numbers}

P is the teacher's mean probability mass on its top {top_k} tokens, Q the
student's on the same tokens at the end of training. Accuracy, ECE and Trust are in the report.

## Recipe

~~~yaml
{yaml.safe_dump(_without_folders(run.resolved), sort_keys=False, allow_unicode=True).strip()}
~~~

## This arm

~~~yaml
{yaml.safe_dump(chosen.model_dump(mode="json", exclude_none=True), sort_keys=False).strip()}
~~~
"""


def _without_folders(value: Any) -> Any:
    """Shorten absolute paths to their last part, for a card is published."""
    if isinstance(value, dict):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _lesson(run: Run, arm: str) -> str:
    chosen = run.recipe.arms[arm]
    if chosen.recalibrator is None:
        return "the data's labels"
    teacher = run.recipe.teacher
    assert teacher
    source = (
        _without_folders(teacher.model.checkpoint) or f"a teacher of family {teacher.model.family}"
    )
    top_k = chosen.top_k or run.recipe.knowledge.top_k
    unseen = " that has not seen the row" if part_of(run.recipe, chosen) == "out-of-fold" else ""
    return (
        f"the top {top_k} token probabilities of {source}{unseen}, re-calibrated by "
        f"`{chosen.recalibrator.name}`"
    )
