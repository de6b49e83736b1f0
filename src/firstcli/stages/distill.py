"""Stage `distill`: train one arm's student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from firstcli.data.encoding import EncodedSample
from firstcli.recipe.schema import Arm, Training, training_of
from firstcli.runtime import distributed
from firstcli.stages import inputs, train_model
from firstcli.stages.card import model_card
from firstcli.training import soft_targets, trainer
from firstcli.training.soft_targets import SoftTargetBuilder
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, part_of


def _settings(run: Run, arm: Arm) -> Training:
    return training_of(run.recipe.student, arm)


def check(run: Run, unit: Unit) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    rows = inputs.training_rows(run, "student", "train")
    return train_model.check(run, "student", _settings(run, run.recipe.arms[unit.arm]), rows)


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Train the student and save it as a Hugging Face folder with a model card."""
    arm = run.recipe.arms[unit.arm]
    settings = _settings(run, arm)
    rows = inputs.training_rows(run, "student", "train")
    lessons = None if arm.learn == "labels" else _lessons(run, unit.arm, rows)
    objective: trainer.Objective = (
        "labels" if arm.learn == "labels" else arm.objective or "topk-tail"
    )
    assert unit.model
    what = f"distilling {unit.model.name}"
    seed = run.recipe.seed if unit.seed is None else unit.seed
    swaps = lessons.rank_swaps() if lessons else 0.0
    outcome = train_model.train(
        run, "student", settings, seed, rows, lessons, objective, folder, what
    )
    facts = outcome.facts | ({"rank_swaps": swaps} if swaps else {})
    if distributed.is_first():
        card = model_card(run, unit.arm, settings, seed, facts)
        (folder / "README.md").write_text(card, "utf-8")
    return facts


def _lessons(run: Run, name: str, rows: Sequence[EncodedSample]) -> SoftTargetBuilder:
    arm = run.recipe.arms[name]
    knowledge = inputs.stored_knowledge(run, part_of(run.recipe, arm), rows)
    recalibrator = soft_targets.recalibrator_for(arm, run.folder / "calibration" / f"{name}.json")
    return SoftTargetBuilder(arm, recalibrator, knowledge, rows)


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Show what training came to, an arm a row."""
    table = Table(title="students")
    for heading in ("arm", "learned", "steps", "loss", "P", "Q", "folder"):
        table.add_column(heading, overflow="fold")
    for unit in units:
        facts, arm = run.manifests[unit.key].facts, run.recipe.arms[unit.arm]
        learned = arm.recalibrator.name if arm.recalibrator else "labels"
        masses = [f"{facts[name]:.4f}" if name in facts else "–" for name in ("P", "Q")]
        table.add_row(
            unit.key.removeprefix("distill "),
            learned,
            str(facts["steps"]),
            f"{facts['loss']:.4f}",
            *masses,
            str(unit.artifact.path),
        )
    run.console.show(table)
    return {unit.key.removeprefix("distill "): run.manifests[unit.key].facts for unit in units}
