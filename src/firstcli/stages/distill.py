"""Stage `distill`: train one arm's student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from firstcli import models, teaching, training, training_arguments
from firstcli.artifacts import CHECKPOINTS
from firstcli.encoding import Encoded
from firstcli.knowledge import Knowledge
from firstcli.recipe import Arm, Training, training_of
from firstcli.run import Run
from firstcli.stages import inputs
from firstcli.stages.card import model_card
from firstcli.stages.students import estimate, save
from firstcli.teaching import Lessons
from firstcli.units import Unit


def _settings(run: Run, arm: Arm) -> Training:
    return training_of(run.recipe.student, arm)


def check(run: Run, unit: Unit) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    settings = _settings(run, run.recipe.arms[unit.arm])
    device = models.device_of(inputs.family(run, "student"))
    training_arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    return estimate(run, "student", settings)


def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Train the student and save it as a Hugging Face folder with a model card."""
    arm = run.recipe.arms[unit.arm]
    settings = _settings(run, arm)
    rows = inputs.training_rows(run, "student", "train")
    lessons = None if arm.learn == "labels" else _lessons(run, unit.arm, rows)
    swaps = lessons.rank_swaps() if lessons else 0.0
    objective: training.Objective = (
        "labels" if arm.learn == "labels" else arm.objective or "topk-tail"
    )
    model = inputs.starting_model(run, "student", settings.dtype)
    tokenizer = inputs.tokenizer(run, "student")
    device = models.device_of(inputs.family(run, "student"))
    args = training_arguments.arguments(
        folder / CHECKPOINTS, settings, run.recipe.trainer, run.recipe.seed, device
    )
    what = f"distilling {unit.arm}"
    outcome = training.train(model, rows, lessons, objective, args, run.console, what)
    save(model, tokenizer, folder, outcome)
    facts: dict[str, Any] = {
        "samples": len(rows),
        "steps": outcome.steps,
        "positions": outcome.positions,
        "loss": outcome.loss,
        **{name: last[name] for last in outcome.log[-1:] for name in ("P", "Q") if name in last},
        **({"rank_swaps": swaps} if swaps else {}),
    }
    (folder / "README.md").write_text(model_card(run, unit.arm, settings, facts), "utf-8")
    return facts


def _lessons(run: Run, name: str, rows: Sequence[Encoded]) -> Lessons:
    arm = run.recipe.arms[name]
    knowledge = Knowledge(run.folder / "knowledge" / "train")
    recalibrator = teaching.recalibrator_for(arm, run.folder / "calibration" / f"{name}.json")
    return Lessons(arm, recalibrator, knowledge, rows)


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
            unit.arm,
            learned,
            str(facts["steps"]),
            f"{facts['loss']:.4f}",
            *masses,
            str(unit.artifact.path),
        )
    run.console.show(table)
    return {unit.arm: run.manifests[unit.key].facts for unit in units}
