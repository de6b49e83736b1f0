"""What a trained model leaves behind: a Hugging Face folder, and its size beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firstcli import training
from firstcli.console import size
from firstcli.recipe import Training
from firstcli.run import Role, Run
from firstcli.stages import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def estimate(run: Run, role: Role, settings: Training) -> str:
    """Say how much training will work on and what memory its weights need."""
    if settings.dtype == "bfloat16":
        run.console.warn(
            f"the {role} trains bfloat16 weights, which do not feel steps as small as 2e-5; "
            "dtype: float32 with autocast is the safe choice"
        )
    rows = inputs.training_rows(run, role, "train")
    parameters = inputs.weights(run, role)
    # Weights, gradients and Adam's two moments; activations come on top.
    each = 16 if settings.dtype == "float32" else 8
    return (
        f"{len(rows)} samples, {inputs.positions(rows)} positions, {settings.epochs:g} epochs; "
        f"{parameters / 1e6:.1f} M weights, {size(each * parameters)} of memory for them"
    )


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    outcome: training.Outcome,
) -> None:
    """Save model, tokenizer and training log."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    training.write_log(folder / "training_log.jsonl", outcome.log)
