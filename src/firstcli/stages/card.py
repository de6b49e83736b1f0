"""The model card of a student: recipe, arm, data and numbers."""

from __future__ import annotations

from typing import Any

from firstcli import __version__
from firstcli.recipe.schema import Arm
from firstcli.runtime.redaction import without_folders
from firstcli.stages.base import TrainingFacts
from firstcli.workspace.run import Run, as_yaml
from firstcli.workspace.units import Unit, part_of

_CARD = """---
{front_matter}
---

# {run}: {arm}

This student was made by firstcli {version}, which implements
FIRST, "Efficient Trustworthy Distillation" (arXiv 2408.12168).

- **Arm**: `{arm}`, which learns {source}.
- **Student**: {student}.
- **Data**: task `{task}`, {samples} training samples;
  {held_out} held out, on which no model was trained.{unlabelled}
- **Training**: {epochs}, {batch_size} sequences per step, peak learning
  rate {learning_rate:g}, seed {seed}.

## Training numbers

| quantity | value |
|---|---|
{numbers}

P is the teacher's mean probability mass on its top {top_k} tokens, and Q is the
student's mass on the same tokens at the end of training. Accuracy, ECE and Trust are in the report.

## Recipe

~~~yaml
{recipe}
~~~

## This arm

~~~yaml
{arm_settings}
~~~
"""


_UNLABELLED = """
  {} more samples have no label: of them it learned
  the teacher's probabilities at the answer position."""


def model_card(run: Run, unit: Unit, facts: TrainingFacts) -> str:
    """Return the README.md of a student's folder."""
    recipe, arm, settings = run.recipe, run.recipe.arms[unit.arm], run.training_settings(unit)
    model = recipe.student.model
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    about["tags"] = ["firstcli", "knowledge-distillation", "calibration"]
    if model.checkpoint and run.reference("student").folder is None:
        about["base_model"] = model.checkpoint
    values = facts.as_json().items()
    numbers = [(name, f"{n:.6g}" if isinstance(n, float) else n) for name, n in values]
    return _CARD.format(
        front_matter=as_yaml(about).strip(),
        run=recipe.name,
        arm=unit.arm,
        version=__version__,
        source=_source_of_targets(run, arm),
        student=without_folders(model.checkpoint) or f"new weights (family {model.family})",
        task=recipe.train.task.name,
        samples=facts.samples - (facts.unlabelled or 0),
        unlabelled="" if not facts.unlabelled else _UNLABELLED.format(facts.unlabelled),
        held_out=len(run.training.validation),
        **settings.model_dump(include={"batch_size", "learning_rate"}),
        epochs=f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}",
        seed=run.seed_of(unit),
        numbers="\n".join(f"| {name.replace('_', ' ')} | {text} |" for name, text in numbers),
        top_k=arm.top_k or recipe.knowledge.top_k,
        recipe=as_yaml(run.publishable).strip(),
        arm_settings=as_yaml(run.publishable["arms"][unit.arm]).strip(),
    )


def _source_of_targets(run: Run, arm: Arm) -> str:
    """Describe what an arm learns from."""
    if arm.recalibrator is None:
        return "the data's labels"
    model = run.model_section("teacher")
    source = without_folders(model.checkpoint) or f"a teacher of family {model.family}"
    unseen = " that has not seen the sample" if part_of(run.recipe, arm) == "out-of-fold" else ""
    return (
        f"the top {arm.top_k or run.recipe.knowledge.top_k} token probabilities of {source}{unseen}"
        f", recalibrated by `{arm.recalibrator.name}`"
    )
