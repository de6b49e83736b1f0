"""Stage `distill`: train one arm's student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from firstcli import batches, models, teaching, training, training_arguments
from firstcli.artifacts import CHECKPOINTS
from firstcli.encoding import Encoded
from firstcli.recipe import Arm, Training, training_of
from firstcli.run import Run
from firstcli.stages import inputs
from firstcli.stages.card import model_card
from firstcli.stages.students import estimate, save
from firstcli.teaching import Positions
from firstcli.units import Unit

if TYPE_CHECKING:
    from firstcli.api import FloatArray


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
    taught, facts = (None, {}) if arm.learn == "labels" else _taught(run, unit.arm, rows)
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
    outcome = training.train(model, rows, taught, objective, args, run.console, what)
    save(model, tokenizer, folder, outcome)
    facts = {
        "samples": len(rows),
        "steps": outcome.steps,
        "positions": outcome.positions,
        "loss": outcome.loss,
        **{name: last[name] for last in outcome.log[-1:] for name in ("P", "Q") if name in last},
        **facts,
    }
    (folder / "README.md").write_text(model_card(run, unit.arm, settings, facts), "utf-8")
    return facts


def _taught(
    run: Run, name: str, rows: Sequence[Encoded]
) -> tuple[list[batches.Taught], dict[str, Any]]:
    """Recalibrate the teacher's knowledge of every sample and give it its mass."""
    arm = run.recipe.arms[name]
    knowledge = inputs.stored_knowledge(run, "train", rows)
    positions = teaching.positions_of(rows, knowledge)
    recalibrator = teaching.recalibrator_for(arm, run.folder / "calibration" / f"{name}.json")
    target = teaching.targets(arm, recalibrator, positions)
    chosen = teaching.recalibrated_positions(arm, positions)
    swapped = (target[chosen, 1:] > target[chosen, :1]).any(axis=1)
    facts = {"rank_swaps": float(swapped.mean())} if swapped.any() else {}
    return taught_of(arm, positions, target), facts


def taught_of(arm: Arm, positions: Positions, target: FloatArray) -> list[batches.Taught]:
    """Give each position's target its mass; an entry a sample."""
    mass = teaching.taught_mass(arm, positions)
    # 1 - M: the stored tail itself, for 1 - (1 - tail) would lose the small ones.
    tail = np.exp(positions.log_tail) if arm.mass == "teacher" else np.zeros_like(mass)
    ends = np.cumsum(positions.counts)
    slices = [slice(end - n, end) for end, n in zip(ends, positions.counts, strict=True)]
    probabilities = (mass[:, None] * target).astype(np.float32)
    tail32, mass32 = tail.astype(np.float32), positions.mass.astype(np.float32)
    return [
        batches.Taught(positions.token_ids[s], probabilities[s], tail32[s], mass32[s])
        for s in slices
    ]


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
