"""What a trained model leaves behind: a Hugging Face folder, and its size beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firstcli import models, processes, training, training_arguments
from firstcli.artifacts import CHECKPOINTS
from firstcli.console import size
from firstcli.errors import UserError
from firstcli.out_of_memory import forget, is_out_of_memory
from firstcli.recipe import Training
from firstcli.run import Role, Run
from firstcli.stages import inputs

if TYPE_CHECKING:
    from firstcli.batches import Teacher
    from firstcli.token_rows import TokenRows


def check(run: Run, role: Role, settings: Training, rows: TokenRows) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    device = models.device_of(inputs.family(run, role))
    training_arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    return _estimate(run, role, settings, rows)


def _estimate(run: Run, role: Role, settings: Training, rows: TokenRows) -> str:
    if settings.dtype == "bfloat16":
        run.console.warn(
            f"the {role} trains bfloat16 weights, which do not feel steps as small as 2e-5; "
            "dtype: float32 with autocast is the safe choice"
        )
    parameters = inputs.weights(run, role)
    # Weights, gradients and Adam's two moments; activations come on top.
    each = 16 if settings.dtype == "float32" else 8
    return (
        f"{len(rows)} samples, {inputs.positions(rows)} positions, {settings.epochs:g} epochs; "
        f"{parameters / 1e6:.1f} M weights, {size(each * parameters)} of memory for them"
    )


def train(
    run: Run,
    role: Role,
    settings: Training,
    seed: int,
    rows: TokenRows,
    lessons: Teacher | None,
    objective: training.Objective,
    folder: Path,
    what: str,
) -> training.Outcome:
    """Train a model on some rows and save it as a Hugging Face folder with its log.

    Where a micro-batch does not fit into memory, training goes on from the last checkpoint with
    half of it, which changes no result.
    """
    device = models.device_of(inputs.family(run, role))
    while True:
        args = training_arguments.arguments(
            folder / CHECKPOINTS, settings, run.recipe.trainer, seed, device
        )
        micro = args.per_device_train_batch_size
        model = inputs.starting_model(run, role, settings.dtype, seed)
        try:
            outcome = training.train(model, rows, lessons, objective, args, run.console, what)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = f"out of memory on {micro} samples at a time"
            if micro == 1:
                raise UserError(
                    f"{found}; free memory, set trainer.gradient_checkpointing: true, or leave "
                    "out long samples"
                ) from error
            if processes.count() > 1:  # one of several cannot halve its share alone
                raise UserError(f"{found}; set micro_batch_size: {_half(micro)}") from error
        # Out here the error is gone, and with it its hold on the trainer's tensors.
        del model
        forget()
        run.console.warn(f"{what}: {found}; going on with {_half(micro)}")
        settings = settings.model_copy(update={"micro_batch_size": _half(micro)})
    if processes.is_first():
        model.save_pretrained(folder, state_dict=outcome.weights)
        inputs.tokenizer(run, role).save_pretrained(folder)
        training.write_log(folder / "training_log.jsonl", outcome.log)
    del model
    forget()  # the next model needs the room
    return outcome


def _half(micro: int) -> int:
    """Return the largest divisor of a micro-batch that is smaller than it."""
    return next(size for size in range(micro // 2, 0, -1) if micro % size == 0)
