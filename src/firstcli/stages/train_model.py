"""Train a teacher or a student and save it as a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from firstcli.data.encoded import EncodedStore
from firstcli.errors import UserError
from firstcli.models import inference
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.recipe.schema import Training
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import inputs
from firstcli.stages.base import Facts
from firstcli.training import arguments, trainer
from firstcli.training.batches import SoftTargetSource
from firstcli.workspace.artifacts import CHECKPOINTS
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role

WEIGHT_BYTES = 4
"""Bytes per saved weight: models are saved in float32."""
CHECKPOINT_BYTES = 24
"""Bytes per weight of two checkpoints, each with the weight and Adam's two moments."""


@dataclass(frozen=True, slots=True)
class TrainingFacts(Facts):
    """What training a model came to."""

    samples: int
    steps: int
    positions: int
    loss: float
    padding: float
    P: float | None = None
    """The teacher's mean mass on its top k."""
    Q: float | None = None
    """The student's mean mass on the same tokens."""
    rank_swaps: float | None = None
    """Share of recalibrated positions whose top token changed, if any did."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One model to train."""

    what: str
    """Description for messages."""
    role: Role
    settings: Training
    seed: int
    rows: EncodedStore
    objective: trainer.Objective
    soft_targets: SoftTargetSource | None
    """The probabilities to learn; None with the objective `labels`."""


def check(run: Run, role: Role, settings: Training, rows: EncodedStore) -> str:
    """Check the trainer's fields; describe the size of the training.

    Args:
        run: the run.
        role: teacher or student.
        settings: how the model is trained.
        rows: the training samples.

    Raises:
        UserError: `trainer:` or the batch sizes are wrong.
    """
    device = inference.device_of(inputs.family(run, role))
    arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    if settings.dtype == "bfloat16":
        run.console.warn(
            f"the {role} trains bfloat16 weights, which lose updates as small as 2e-5 to rounding; "
            "dtype: float32 with autocast is the safe choice"
        )
    parameters = inputs.weights(run, role)
    # Weights, gradients and Adam's two moments; activations come on top.
    bytes_per_weight = 16 if settings.dtype == "float32" else 8
    return (
        f"{len(rows)} samples, {inputs.positions(rows)} positions, {settings.epochs:g} epochs; "
        f"{parameters / 1e6:.1f} M weights, {size(bytes_per_weight * parameters)} of memory for "
        "them"
    )


def disk(run: Run, role: Role) -> int:
    """Return the bytes of a trained model's weights."""
    return WEIGHT_BYTES * inputs.weights(run, role)


def disk_at_work(run: Run, role: Role) -> int:
    """Return the bytes of the checkpoints that exist while a model is trained."""
    return CHECKPOINT_BYTES * inputs.weights(run, role)


def train(run: Run, job: TrainingJob, folder: Path) -> TrainingFacts:
    """Train a model and save it in a folder, with its log.

    If a micro-batch does not fit into memory, training resumes from the last checkpoint with half
    of it, which changes no result.

    Raises:
        UserError: one sample does not fit into memory, or the loss is not finite.
    """
    device = inference.device_of(inputs.family(run, job.role))
    settings = job.settings
    while True:
        args = arguments.arguments(
            folder / CHECKPOINTS, settings, run.recipe.trainer, job.seed, device
        )
        micro = args.per_device_train_batch_size
        model = inputs.starting_model(run, job.role, settings.dtype, job.seed)
        try:
            outcome = trainer.train(
                model, job.rows, job.soft_targets, job.objective, args, run.console, job.what
            )
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = f"out of memory on {micro} samples at a time"
            if micro == 1:
                raise UserError(
                    f"{problem}; free memory, set trainer.gradient_checkpointing: true, or leave "
                    "out long samples"
                ) from error
            if distributed.count() > 1:  # one of several processes cannot halve its share alone
                raise UserError(f"{problem}; set micro_batch_size: {_half(micro)}") from error
        # Outside the except block the error no longer holds on to the trainer's tensors.
        del model
        free_memory()
        run.console.warn(f"{job.what}: {problem}; resuming with {_half(micro)}")
        settings = settings.model_copy(update={"micro_batch_size": _half(micro)})
    if distributed.is_first():
        model.save_pretrained(folder, state_dict=outcome.weights)
        inputs.tokenizer(run, job.role).save_pretrained(folder)
        trainer.write_log(folder / "training_log.jsonl", outcome.log)
    del model
    free_memory()  # the next model needs the memory
    return TrainingFacts(**outcome.facts)


def with_rank_swaps(facts: TrainingFacts, share: float) -> TrainingFacts:
    """Add the share of changed top tokens, unless it is 0."""
    return replace(facts, rank_swaps=share) if share else facts


def _half(micro: int) -> int:
    """Return the largest divisor of a micro-batch that is smaller than it."""
    return next(size for size in range(micro // 2, 0, -1) if micro % size == 0)
