"""Train a teacher or a student and save it as a Hugging Face folder."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from firstcli.api import Dtype
from firstcli.checkpoints import adapters
from firstcli.checkpoints.adapters import Base
from firstcli.checkpoints.loading import whole_weights
from firstcli.checkpoints.quantization import untrainable_method
from firstcli.errors import UserError
from firstcli.models import inference, memory
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import fingerprints, inputs
from firstcli.stages.base import TrainingFacts
from firstcli.training import arguments, lora, saving, sharding, trainer, trial
from firstcli.training.batches import SoftTargetSource
from firstcli.workspace.artifacts import CHECKPOINTS
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role, Unit, learned_parts

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_FOLDER = "adapter"
"""In the folder of a merged model: where its adapter is."""
QUANTIZATION = "quantization"
"""The option of a family that loads quantised weights."""
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
    if settings.dtype == "bfloat16" and settings.lora is None:
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
    _check_adapters(run, unit)
    parameters = inputs.weights(run, unit.role)
    trained = inputs.trainable_weights(run, unit)
    trains = f" and {trained / 1e6:.2f} M in adapters" if settings.lora else ""
    needed = _memory(run, unit, args)
    if not trainer.is_sharded(args):
        memory.require_capacity(needed, device)
    without = _further_samples(run, unit)
    return (
        f"{len(rows)} samples{without}, {inputs.positions(rows)} positions, "
        f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}; "
        f"{parameters / 1e6:.1f} M weights{trains}, {size(needed)} of memory for "
        "them with gradients and the optimizer's state"
    )


def _further_samples(run: Run, unit: Unit) -> str:
    """Return how many of a student's samples have no response in the data, in words."""
    parts = learned_parts(run.recipe, run.recipe.arms[unit.arm]) if unit.arm else ()
    phrases = []
    if "unlabelled" in parts:
        count = len(inputs.training_rows(run, unit.role, "unlabelled"))
        phrases.append(f"{count} unlabelled")
    if "written" in parts and not run.is_written("written"):
        phrases.append(f"and up to {len(run.prompts)} that the teacher will write")
    return f" ({', '.join(phrases)})" if phrases else ""


def _check_adapters(run: Run, unit: Unit) -> None:
    """Check what training with adapters, or of quantised weights, needs.

    Raises:
        UserError: peft is missing, or the model does not go with the section `lora` or `save`.
    """
    role, settings = unit.role, run.training_settings(unit)
    section = run.model_section(role)
    key = "teacher.finetune"
    if unit.arm:
        overrides = run.recipe.arms[unit.arm].training
        own = overrides is not None and overrides.lora is not None
        key = f"arms.{unit.arm}.training" if own else "student.training"
    if settings.lora is None:
        if section.effective.get(QUANTIZATION):
            raise UserError(
                f"{role}.model.options.{QUANTIZATION}: quantised weights cannot be trained; add "
                f"`lora: {{}}` to {key}, which trains adapters beside them, or leave it out"
            )
        return
    adapters.require_peft(f"{key}.lora")
    if settings.saved != "merged" and section.checkpoint is None:
        raise UserError(
            f"{key}.save: family '{section.family}' has no checkpoint that an adapter could belong "
            "to; set `save: merged`"
        )
    if settings.saved == "adapter" and role == "student" and run.recipe.student.eos == "teacher":
        raise UserError(
            f"{key}.save: an adapter cannot keep the end of student.eos: teacher; set `save: both`"
        )


def _memory(run: Run, unit: Unit, args: TrainingArguments) -> int:
    """Return the bytes that weights, gradients and the optimizer's state take.

    Frozen weights have neither of the other two, and adapters are float32. AdamW keeps two moments
    per weight; the state of other optimizers is unknown and left out, as activations are.
    """
    settings = run.training_settings(unit)
    copies = 4 if args.optim in FULL_ADAM else 2
    width = 4 if settings.dtype == "float32" else 2
    weights = width * inputs.weights(run, unit.role)
    if settings.lora is None:
        return copies * weights
    return weights + copies * 4 * inputs.trainable_weights(run, unit)


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
        loaded = _starting_model(run, role, settings.dtype, seed, args)
        model: PreTrainedModel | PeftModel = loaded
        if settings.lora:
            model = lora.with_adapters(loaded, settings.lora, seed, args)
        if first_attempt and not trainer.is_sharded(args):
            memory.allocate(model, _memory(run, unit, args), args.device)
        try:
            if first_attempt and sharding.first_loads(args):
                distributed.by_first(partial(_try_out, run, role, loaded, device))
            elif first_attempt:
                _try_out(run, role, loaded, device)
            first_attempt = False
            outcome = trainer.train(model, rows, soft_targets, objective, args, run.console, title)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            half = _halved(micro)
        # Outside the except block the error no longer holds on to the trainer's tensors.
        del model, loaded
        free_memory()
        run.console.warn(
            f"{title}: {_NO_MEMORY.format(micro)}; resuming with micro_batch_size {half}"
        )
        settings = settings.model_copy(update={"micro_batch_size": half})
    if distributed.is_first():
        if isinstance(model, PreTrainedModel):
            saving.save(model, outcome.weights, fingerprints.saved_dtype(run, unit), folder)
        else:
            _save_adapted(run, unit, model, folder, outcome.weights)
        inputs.tokenizer(run, role).save_pretrained(folder)
        trainer.write_log(folder / "training_log.jsonl", outcome.log)
    del model, loaded
    free_memory()  # the next model needs the memory
    return TrainingFacts(**outcome.facts)


def _save_adapted(
    run: Run, unit: Unit, model: PeftModel, folder: Path, weights: dict[str, Tensor] | None
) -> None:
    """Save the adapter, the model with the adapter merged into its weights, or both.

    Quantised or sharded weights are not merged: the weights with which training began, on which
    nothing has changed, are loaded again for that.
    """
    role, settings = unit.role, run.training_settings(unit)
    section, seed = run.model_section(role), run.seed_of(unit)
    alone = folder if settings.saved == "adapter" else folder / ADAPTER_FOLDER
    base = Base(section.checkpoint or "", section.revision)
    lora.save_adapter(model, alone, base, weights)
    if settings.saved == "adapter":
        return
    if weights is None and not lora.is_quantized(lora.base_model(model)):
        whole = model.merge_and_unload()
    else:
        start = inputs.starting_model(run, role, settings.dtype, seed, quantized=False)
        whole = adapters.merged(start, alone)
    saving.save(whole, None, fingerprints.saved_dtype(run, unit), folder)
    if settings.saved == "merged":
        shutil.rmtree(alone)
    else:
        inputs.tokenizer(run, role).save_pretrained(alone)


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
