"""What a trained model leaves behind: a Hugging Face folder, and its size beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.errors import UserError
from firstcli.models import inference
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.recipe.schema import Training
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import inputs
from firstcli.training import arguments, trainer
from firstcli.workspace.artifacts import CHECKPOINTS
from firstcli.workspace.run import Role, Run

if TYPE_CHECKING:
    from firstcli.data.encoded import EncodedStore
    from firstcli.training.collate import SoftTargetSource


def check(run: Run, role: Role, settings: Training, rows: EncodedStore) -> str:
    """Check data, tokenizer and trainer fields; return what the plan says of size."""
    device = inference.device_of(inputs.family(run, role))
    arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    return _estimate(run, role, settings, rows)


def _estimate(run: Run, role: Role, settings: Training, rows: EncodedStore) -> str:
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
    rows: EncodedStore,
    soft_targets: SoftTargetSource | None,
    objective: trainer.Objective,
    folder: Path,
    what: str,
) -> trainer.Outcome:
    """Train a model on some rows and save it as a Hugging Face folder with its log.

    Where a micro-batch does not fit into memory, training goes on from the last checkpoint with
    half of it, which changes no result.
    """
    device = inference.device_of(inputs.family(run, role))
    while True:
        args = arguments.arguments(folder / CHECKPOINTS, settings, run.recipe.trainer, seed, device)
        micro = args.per_device_train_batch_size
        model = inputs.starting_model(run, role, settings.dtype, seed)
        try:
            outcome = trainer.train(model, rows, soft_targets, objective, args, run.console, what)
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
            if distributed.count() > 1:  # one of several cannot halve its share alone
                raise UserError(f"{found}; set micro_batch_size: {_half(micro)}") from error
        # Out here the error is gone, and with it its hold on the trainer's tensors.
        del model
        free_memory()
        run.console.warn(f"{what}: {found}; going on with {_half(micro)}")
        settings = settings.model_copy(update={"micro_batch_size": _half(micro)})
    if distributed.is_first():
        model.save_pretrained(folder, state_dict=outcome.weights)
        inputs.tokenizer(run, role).save_pretrained(folder)
        trainer.write_log(folder / "training_log.jsonl", outcome.log)
    del model
    free_memory()  # the next model needs the room
    return outcome


def _half(micro: int) -> int:
    """Return the largest divisor of a micro-batch that is smaller than it."""
    return next(size for size in range(micro // 2, 0, -1) if micro % size == 0)
