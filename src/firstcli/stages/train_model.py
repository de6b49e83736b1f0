"""Train a teacher or a student and save it as a Hugging Face folder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, TrainingArguments

from firstcli.checkpoints import adapters
from firstcli.checkpoints.quantization import untrainable_method
from firstcli.errors import UserError
from firstcli.models import inference, memory
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.plugins.objectives import CheckedObjective
from firstcli.recipe.sections import Arm, training_section
from firstcli.runtime import distributed
from firstcli.runtime.console import size
from firstcli.stages import inputs, role_models, training_memory, training_weights
from firstcli.stages.base import TrainingFacts
from firstcli.training import arguments, lora, objective_forward, sharding, tracking, trainer, trial
from firstcli.training.averaging import Averaging
from firstcli.training.batches import SoftTargetSource
from firstcli.training.memory_estimate import MemoryEstimate
from firstcli.training.mixture import MixturePlan
from firstcli.workspace.artifacts import CHECKPOINTS
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit, follows_gap, learned_parts, learns_copies

if TYPE_CHECKING:
    from peft import PeftModel

QUANTIZATION = "quantization"
"""The option of a family that loads quantised weights."""
_NO_MEMORY = "out of memory with micro_batch_size {}"


def check(run: Run, unit: Unit) -> str:
    """Check the trainer's fields and the device's memory; describe the size of the training.

    Raises:
        UserError: `trainer:` or the batch sizes are wrong, or the device is too small.
    """
    rows, settings = inputs.rows_of(run, unit), run.training_settings(unit)
    device = inference.device_of(role_models.family(run, unit.role))
    args = arguments.arguments(run.folder, settings, run.recipe.trainer, run.recipe.seed, device)
    trial.check(args)
    if settings.dtype == "bfloat16" and settings.lora is None:
        run.console.warn(
            f"the {unit.role} trains bfloat16 weights, which lose updates as small as 2e-5 to "
            "rounding; dtype: float32 with autocast is the safe choice"
        )
    empty = role_models.empty_model(run, unit.role)
    if args.activation_checkpointing and not empty.supports_gradient_checkpointing:
        raise UserError(
            f"trainer.activation_checkpointing: {type(empty).__name__} does not offer it; leave it "
            "out, and lower micro_batch_size to save memory"
        )
    if getattr(empty.config.get_text_config(), "output_router_logits", False):
        run.console.warn(
            f"{role_models.described(run, unit.role)}: its configuration asks for the router's "
            "auxiliary loss (output_router_logits), which is not part of the objective, so nothing "
            "keeps the experts evenly used; set it to false there if that is intended"
        )
    if role_models.family(run, unit.role).spreads and not trainer.is_sharded(args):
        raise UserError(
            f"{unit.role}.model.options.device_map: training cannot spread a model over devices "
            "like this; share the weights among several GPUs (trainer.fsdp), or leave it out"
        )
    _check_adapters(run, unit, args)
    _check_averaging(run, unit, args)
    if unit.arm and follows_gap(run.recipe, run.recipe.arms[unit.arm]) and trainer.is_sharded(args):
        raise UserError(
            "train.mixture: no process has the whole student to measure its losses, because its "
            "weights are shared among processes; train without FSDP and DeepSpeed, or set "
            f"arms.{unit.arm}.mixture: false"
        )
    parameters = role_models.weights(run, unit.role)
    trained = role_models.trainable_weights(run, unit)
    trains = f" and {trained / 1e6:.2f} M in adapters" if settings.lora else ""
    need = _require_memory(run, unit, args)
    saved = f", saves the {settings.saved_weights}" if settings.saved_weights else ""
    without = _further_samples(run, unit)
    return (
        f"{len(rows)} samples{without}, {inputs.positions(rows)} positions, "
        f"{settings.epochs:g} epoch{'s' * (settings.epochs != 1)}{saved}; "
        f"{parameters / 1e6:.1f} M weights{trains}, {training_memory.in_words(need)}"
    )


def _check_averaging(run: Run, unit: Unit, args: TrainingArguments) -> None:
    """Check what averages and interpolations of weights need.

    Raises:
        UserError: no process has the whole weights, or they start at random.
    """
    settings, section = run.training_settings(unit), run.model_section(unit.role)
    for name in ("ema", "interpolate"):
        if getattr(settings, name) is not None and trainer.is_sharded(args):
            raise UserError(
                f"{_section_of(run, unit, name)}.{name}: no process has the whole weights, because "
                "they are shared among processes; train without FSDP and DeepSpeed, or leave it out"
            )
    if settings.interpolate is not None and section.checkpoint is None:
        raise UserError(
            f"{_section_of(run, unit, 'interpolate')}.interpolate: family '{section.family}' "
            "starts with random weights, and nothing useful lies between them and the trained "
            "ones; give a checkpoint, or leave it out"
        )


def _section_of(run: Run, unit: Unit, field: str) -> str:
    """Return the section of the recipe that states a field of a unit's training settings."""
    if not unit.arm:
        return "teacher.finetune"
    overrides = run.recipe.arms[unit.arm].training
    own = overrides is not None and getattr(overrides, field) is not None
    return f"arms.{unit.arm}.training" if own else "student.training"


def _further_samples(run: Run, unit: Unit) -> str:
    """Return how many of a model's samples are not the data's own rows, in words."""
    parts = learned_parts(run.recipe, run.recipe.arms[unit.arm]) if unit.arm else ()
    phrases = []
    if "unlabelled" in parts:
        count = len(inputs.training_rows(run, unit.role, "unlabelled"))
        phrases.append(f"{count} unlabelled")
    if "written" in parts and not run.is_written("written"):
        phrases.append(f"and up to {len(run.prompts)} that the teacher will write")
    if (copies := inputs.copies_of(run, unit)) is not None:
        phrases.append(f"and {len(copies)} copies")
    elif learns_copies(run.recipe, unit):
        phrases.append("and the copies that the teacher will write")
    if unit.arm and follows_gap(run.recipe, run.recipe.arms[unit.arm]):
        assert run.recipe.train.mixture
        phrases.append(f"drawn from {len(run.recipe.train.mixture.tasks)} domains by the gap")
    return f" ({', '.join(phrases)})" if phrases else ""


def _check_adapters(run: Run, unit: Unit, args: TrainingArguments) -> None:
    """Check what training with adapters, or of quantised weights, needs.

    Raises:
        UserError: peft is missing, or the model does not go with the section `lora` or `save`.
    """
    role, settings = unit.role, run.training_settings(unit)
    section = run.model_section(role)
    key = training_section(run.recipe.arms, unit.arm, "lora")
    if settings.lora is None:
        if section.effective.get(QUANTIZATION):
            raise UserError(
                f"{role}.model.options.{QUANTIZATION}: quantised weights cannot be trained; add "
                f"`lora: {{}}` to {key}, which trains adapters beside them, or leave it out"
            )
        if method := untrainable_method(role_models.empty_model(run, role).config):
            raise UserError(
                f"{role_models.described(run, role)}: its weights are quantised ({method}) and "
                "cannot be trained; give the checkpoint that is not quantised"
            )
        return
    adapters.require_peft(f"{key}.lora")
    method = untrainable_method(role_models.empty_model(run, role).config)
    if method and not section.effective.get(QUANTIZATION):
        raise UserError(
            f"{role_models.described(run, role)}: its weights are stored quantised ({method}), and "
            "an adapter cannot be merged into them; give the checkpoint that is not quantised, "
            f"with {role}.model.options.{QUANTIZATION}"
        )
    ref = run.reference(role)
    if section.effective.get(QUANTIZATION):
        if ref.folder is not None and adapters.is_adapter(ref.folder):
            raise UserError(
                f"{role}.model.checkpoint: a second adapter cannot be trained on quantised "
                f"weights; merge the first, or leave out {role}.model.options.{QUANTIZATION}"
            )
        if trainer.is_sharded(args):
            raise UserError(
                f"{role}.model.options.{QUANTIZATION}: quantised weights cannot be shared among "
                "processes; train without FSDP and DeepSpeed, or leave it out"
            )
    saving = training_section(run.recipe.arms, unit.arm, "save")
    if settings.saved == "adapter" and role_models.family(run, role).spreads:
        raise UserError(
            f"{saving}.save: an adapter cannot be merged into a model that device_map spreads; set "
            "`save: both`"
        )
    if settings.saved != "merged" and section.checkpoint is None:
        raise UserError(
            f"{saving}.save: family '{section.family}' has no checkpoint that an adapter could "
            "belong to; set `save: merged`"
        )
    if settings.saved == "adapter" and role == "student" and run.recipe.student.eos == "teacher":
        raise UserError(
            f"{saving}.save: an adapter cannot keep the end of student.eos: teacher; set "
            "`save: both`"
        )


def _require_memory(run: Run, unit: Unit, args: TrainingArguments) -> MemoryEstimate:
    """Estimate a training's memory; warn if it does not fit, because training halves batches.

    Raises:
        UserError: weights, gradients and optimizer do not fit, so that smaller batches do not help.
    """
    training = training_memory.of(run, unit, args)
    device, need = training.settings.device, training.need(training.settings, training.micro)
    if training.settings.sharded and training.settings.processes == 1:
        return need  # how many processes will share the weights is not known yet
    total = memory.capacity(device)
    if total is not None and need.states > total:
        raise memory.too_small(need.states, device, training_memory.advice(training, total))
    room = training_memory.available(device)
    if room is not None and need.total > room:
        run.console.warn(
            f"the {unit.role}'s training needs {training_memory.in_words(need)}, but {device} has "
            f"{size(room)}; {training_memory.advice(training, room)}"
        )
    return need


def objective_of(arm: Arm) -> objective_forward.Objective | CheckedObjective:
    """Return what trains an arm: the name of an objective with fused sums, or a plugin."""
    assert arm.objective  # a knowledge arm has one
    name = arm.objective.name
    if arm.span_weights is None and name in objective_forward.FUSED:
        return name
    return arm.objective.build()


def train(
    run: Run,
    unit: Unit,
    folder: Path,
    title: str,
    objective: objective_forward.Objective | CheckedObjective = "labels",
    soft_targets: SoftTargetSource | None = None,
    mixture: MixturePlan | None = None,
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
        mixture: the domains from which samples are drawn by their gaps, if they are.

    Raises:
        UserError: the model or one sample does not fit into memory, or the loss is not finite.
    """
    role, seed, settings = unit.role, run.seed_of(unit), run.training_settings(unit)
    rows, choice = inputs.with_copies(run, unit)
    device = inference.device_of(role_models.family(run, role))
    first_attempt = True
    while True:
        checkpoints = folder / CHECKPOINTS
        args = arguments.arguments(checkpoints, settings, run.recipe.trainer, seed, device)
        micro = args.per_device_train_batch_size
        training = training_memory.of(run, unit, args)
        loaded = training_weights.starting(run, unit, settings.dtype, args)
        model: PreTrainedModel | PeftModel = loaded
        if settings.lora:
            model = lora.with_adapters(loaded, settings.lora, seed, args)
        if first_attempt and not trainer.is_sharded(args):
            states = training.states(training.settings)
            memory.allocate(model, states, args.device)
        try:
            if first_attempt and sharding.first_loads(args):
                distributed.by_first(partial(_try_out, run, unit, loaded, device))
            elif first_attempt:
                _try_out(run, unit, loaded, device)
            first_attempt = False
            args.run_name = args.run_name or f"{run.recipe.name}: {unit.key}"
            with _trackers(run, unit, args):
                outcome = trainer.train(
                    model,
                    rows,
                    soft_targets,
                    objective,
                    args,
                    run.console,
                    title,
                    settings.batching,
                    choice,
                    Averaging(settings.ema, settings.interpolate),
                    mixture,
                )
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
        training_weights.save(run, unit, model, outcome.weights, folder)
        role_models.tokenizer(run, role).save_pretrained(folder)
        trainer.write_log(folder / "training_log.jsonl", outcome.log)
        if outcome.mixture is not None:
            trainer.write_log(folder / "mixture_log.jsonl", outcome.mixture.history)
    del model, loaded
    free_memory()  # the next model needs the memory
    copies = None if choice is None else len(choice.copies)
    return TrainingFacts(**outcome.facts, copies=copies)


def _trackers(run: Run, unit: Unit, args: TrainingArguments) -> AbstractContextManager[None]:
    if not args.report_to:
        return nullcontext()
    return tracking.inside(run.folder, run.recipe.name, unit.key)


def _try_out(run: Run, unit: Unit, model: PreTrainedModel, device: torch.device) -> None:
    """Require a causal decoder that reads the batches of its training.

    The model is tried out where its weights are: on its device, or on the CPU if they are sharded
    later. If it does not run there, such as attention that needs a GPU, a single process moves it.
    """

    def require() -> None:
        role_models.require_decoder(run, unit.role, model)
        if run.training_settings(unit).batching == "packed":
            section = role_models.batching_section(run, unit.arm)
            role_models.require_packing(run, unit.role, model, section)

    try:
        require()
    except UserError:
        raise
    except Exception:
        if distributed.count() > 1:
            return
        model.to(device)  # type: ignore[arg-type]  # a decorator hides its signature
        require()


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
