"""Train a teacher or a student and save it as a Hugging Face folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from firstcli.api import Dtype
from firstcli.checkpoints.loading import whole_weights
from firstcli.checkpoints.quantization import untrainable_method
from firstcli.errors import UserError
from firstcli.models import inference, memory
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import fingerprints, inputs
from firstcli.stages.base import TrainingFacts
from firstcli.training import arguments, saving, sharding, trainer, trial
from firstcli.training.batches import SoftTargetSource
from firstcli.workspace.artifacts import CHECKPOINTS
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role, Unit

FULL_ADAM = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that keep two moments per weight in the dtype of the weights."""
_NO_MEMORY = "out of memory with micro_batch_size {}"


def check(run: Run, unit: Unit) -> str:
    """Check the trainer's fields and the device's memory; describe the size of the training.

    Raises:
        UserError: `trainer:` or the batch sizes are wrong, or the device is too small.
    """
    rows, settings = inputs.rows_of(run, unit), run.training_settings(unit)
    device = inference.device_of(inputs.family(run, unit.role))
    args = arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    trial.check(args)
    if settings.dtype == "bfloat16":
        run.console.warn(
            f"the {unit.role} trains bfloat16 weights, which lose updates as small as 2e-5 to "
            "rounding; dtype: float32 with autocast is the safe choice"
        )
    if method := untrainable_method(inputs.empty_model(run, unit.role).config):
        raise UserError(
            f"{inputs.described(run, unit.role)}: its weights are quantised ({method}) and cannot "
            "be trained themselves; train adapters (lora), or give weights that are not quantised"
        )
    if inputs.family(run, unit.role).spreads and not trainer.is_sharded(args):
        raise UserError(
            f"{unit.role}.model.options.device_map: training cannot spread a model over devices "
            "like this; share the weights among several GPUs (trainer.fsdp), or leave it out"
        )
    parameters = inputs.weights(run, unit.role)
    needed = _memory(run, unit, args)
    if not trainer.is_sharded(args):
        memory.require_capacity(needed, device)
    labelled = len(inputs.training_rows(run, unit.role, "train")) if unit.fold is None else 0
    without = f" ({len(rows) - labelled} unlabelled)" if 0 < labelled < len(rows) else ""
    return (
        f"{len(rows)} samples{without}, {inputs.positions(rows)} positions, "
        f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}; "
        f"{parameters / 1e6:.1f} M weights, {size(needed)} of memory for "
        "them with gradients and the optimizer's state"
    )


def _memory(run: Run, unit: Unit, args: TrainingArguments) -> int:
    """Return the bytes that weights, gradients and the optimizer's state take.

    AdamW keeps two moments per weight; the state of other optimizers is unknown and left out, as
    activations are.
    """
    copies = 4 if args.optim in FULL_ADAM else 2
    width = 4 if run.training_settings(unit).dtype == "float32" else 2
    return copies * width * inputs.weights(run, unit.role)


def train(
    run: Run,
    unit: Unit,
    folder: Path,
    title: str,
    objective: trainer.Objective = "labels",
    soft_targets: SoftTargetSource | None = None,
) -> TrainingFacts:
    """Train a unit's model and save it in a folder, with its log.

    Weights, gradients and the optimizer's state are allocated once. If then a micro-batch does not
    fit into memory, training resumes from the last checkpoint with half of it, which changes no
    result.

    Args:
        run: the run.
        unit: a unit of a training stage.
        folder: the unit's work folder.
        title: what is being done, for progress and messages.
        objective: the loss to minimise.
        soft_targets: the probabilities to learn; None with the objective `labels`.

    Raises:
        UserError: the model or one sample does not fit into memory, or the loss is not finite.
    """
    role, seed, settings = unit.role, run.seed_of(unit), run.training_settings(unit)
    rows = inputs.rows_of(run, unit)
    device = inference.device_of(inputs.family(run, role))
    first_attempt = True
    while True:
        checkpoints = folder / CHECKPOINTS
        args = arguments.arguments(checkpoints, settings, run.recipe.trainer, seed, device)
        micro = args.per_device_train_batch_size
        model = _starting_model(run, role, settings.dtype, seed, args)
        if first_attempt and not trainer.is_sharded(args):
            memory.allocate(model, _memory(run, unit, args), args.device)
        try:
            if first_attempt and sharding.first_loads(args):
                distributed.by_first(partial(_try_out, run, role, model, device))
            elif first_attempt:
                _try_out(run, role, model, device)
            first_attempt = False
            outcome = trainer.train(model, rows, soft_targets, objective, args, run.console, title)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            half = _halved(micro)
        # Outside the except block the error no longer holds on to the trainer's tensors.
        del model
        free_memory()
        run.console.warn(
            f"{title}: {_NO_MEMORY.format(micro)}; resuming with micro_batch_size {half}"
        )
        settings = settings.model_copy(update={"micro_batch_size": half})
    if distributed.is_first():
        saving.save(model, outcome.weights, fingerprints.saved_dtype(run, unit), folder)
        inputs.tokenizer(run, role).save_pretrained(folder)
        trainer.write_log(folder / "training_log.jsonl", outcome.log)
    del model
    free_memory()  # the next model needs the memory
    return TrainingFacts(**outcome.facts)


def _starting_model(
    run: Run, role: Role, dtype: Dtype, seed: int, args: TrainingArguments
) -> PreTrainedModel:
    """Load the model to train; where the first process's weights are shared, only there.

    Args:
        run: the run.
        role: teacher or student.
        dtype: type of the weights.
        seed: draws new weights, where there are any.
        args: settings of the training.
    """

    def load() -> PreTrainedModel:
        with whole_weights():
            return inputs.starting_model(run, role, dtype, seed)

    if not sharding.first_loads(args):
        return load()
    loaded: list[PreTrainedModel] = []

    def load_first() -> sharding.WholeModel:
        loaded.append(load())
        return sharding.WholeModel.of(loaded[0])

    whole = distributed.by_first(load_first)
    if whole.saved_buffers:
        sharding.load_in_all(args)
        return loaded[0] if loaded else load()
    if loaded:
        return loaded[0]
    family = inputs.family(run, role)
    empty = family.empty_model(run.reference(role), inputs.tokenizer(run, role))
    whole.complete(empty)
    return empty


def _try_out(run: Run, role: Role, model: PreTrainedModel, device: torch.device) -> None:
    """Require a causal decoder.

    The model is tried out where its weights are: on its device, or on the CPU if they are sharded
    later. If it does not run there, such as attention that needs a GPU, a single process moves it.
    """
    try:
        inputs.require_decoder(run, role, model)
    except UserError:
        raise
    except Exception:
        if distributed.count() > 1:
            return
        model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
        inputs.require_decoder(run, role, model)


def _halved(micro: int) -> int:
    """Return the largest divisor of a micro-batch that is smaller than it.

    Raises:
        UserError: a smaller one does not help, or all processes would have to agree on it.
    """
    problem = _NO_MEMORY.format(micro)
    if micro == 1:
        raise UserError(
            f"{problem}; free memory, set trainer.activation_checkpointing: true, or leave out "
            "long samples"
        )
    half = next(size for size in range(micro // 2, 0, -1) if micro % size == 0)
    if distributed.count() > 1:  # one of several processes cannot halve its share alone
        raise UserError(f"{problem}; set micro_batch_size: {half}")
    return half
