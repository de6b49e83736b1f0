"""The models of teacher and student: their families, tokenizers, architectures and weights."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from firstcli.api import Dtype, ModelRef, PluginOptions, RemoteFamily
from firstcli.checkpoints import placement
from firstcli.checkpoints.loading import whole_weights
from firstcli.errors import UserError
from firstcli.models import dtypes, inference
from firstcli.plugins import calls
from firstcli.recipe.sections import training_section
from firstcli.runtime import distributed
from firstcli.stages import chat
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Model, Role, Unit, model_path, teacher_path

OFFLOAD_PREFIX = ".offload-"
"""Beginning of the name of a folder, in the run folder, for weights that fit into no memory."""


@once_per_run
def family(run: Run, role: Role) -> inference.Family:
    return run.model_section(role).build()


def remote(run: Run, role: Role) -> RemoteFamily[PluginOptions] | None:
    """Return a role's family if its model runs elsewhere, else None."""
    own = family(run, role)
    return cast(RemoteFamily[PluginOptions], own) if own.is_remote else None


def tokenizer(run: Run, role: Role) -> PreTrainedTokenizerBase:
    """Return the tokenizer with which a role's model starts; training does not change it."""
    return run.tokenizers.of(role)


@once_per_run
def empty_model(run: Run, role: Role) -> PreTrainedModel:
    """Return a role's architecture without weights."""
    return family(run, role).empty_model(run.reference(role), tokenizer(run, role))


def checkpoint_dtype(run: Run, role: Role) -> Dtype:
    """Return the dtype of the weights of a role's checkpoint."""
    return dtypes.checkpoint_dtype(empty_model(run, role).config, run.reference(role).folder)


def starting_model(
    run: Run, role: Role, dtype: Dtype, seed: int, *, quantized: bool = True
) -> PreTrainedModel:
    """Load the weights with which training starts, on the CPU.

    Args:
        run: the run.
        role: teacher or student.
        dtype: type of the weights.
        seed: draws new weights, where there are any.
        quantized: quantise the weights, if the recipe says so.
    """
    chosen, section = family(run, role), run.model_section(role)
    if not quantized and section.effective.get("quantization"):
        chosen = calls.family(
            section.family, section.options.model_copy(update={"quantization": None})
        )
    loaded = chosen.model(run.reference(role), tokenizer(run, role), dtype, seed)
    if role == "student" and run.recipe.student.eos == "teacher":
        for config in (loaded.config, loaded.generation_config):
            if config is not None:  # generation must stop at the token that is learned
                config.eos_token_id = tokenizer(run, role).eos_token_id
    is_chat = chat.chat_format(run, role) is not None or chat.learns_conversations(run)
    if is_chat and (end := chat.end_of(run, role)):
        _stop_at(loaded, end[1])
    return loaded


def _stop_at(model: PreTrainedModel, end: int) -> None:
    """Let generation also stop at a token: that which ends an answer in a chat."""
    config = model.generation_config
    if config is not None:
        stated = config.eos_token_id
        known = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if end not in known:
            config.eos_token_id = [end, *known] if known else end


def model(run: Run, which: Model) -> PreTrainedModel:
    """Load the teacher or a student for inference, on its device."""
    if not which.arm:
        return teacher(run)
    return for_inference(run, "student", model_path(run.folder, which))


def teacher(run: Run, fold: int | None = None, seed: int | None = None) -> PreTrainedModel:
    """Load a teacher for inference, on its device.

    Args:
        run: the run.
        fold: the fold that it has not seen.
        seed: the seed of a further teacher.
    """
    if fold is not None:
        return for_inference(run, "teacher", run.folder / "folds" / str(fold))
    finetuned = run.recipe.teacher and run.recipe.teacher.finetune
    return for_inference(run, "teacher", teacher_path(run.folder, seed) if finetuned else None)


def for_inference(run: Run, role: Role, folder: Path | None) -> PreTrainedModel:
    """Load a model for inference, on its device, from a folder or as it is before training."""
    role_family = family(run, role)
    device = inference.device_of(role_family)
    dtype = inference.inference_dtype(role_family, device)
    if role_family.spreads and distributed.count() > 1:
        raise UserError(
            f"{role}.model.options.device_map: it spreads one model over all devices, which "
            f"{distributed.count()} processes cannot share; run this step in one process"
        )
    inference.make_current(device)
    ref = ModelRef(str(folder.absolute())) if folder else run.reference(role)
    offload = None
    if role_family.spreads:  # otherwise nothing is offloaded, and a killed process leaves nothing
        offload = TemporaryDirectory(
            dir=run.folder if os.access(run.folder, os.W_OK) else None,
            prefix=OFFLOAD_PREFIX,
            ignore_cleanup_errors=True,
        )
    with whole_weights():
        place = Path(offload.name) if offload else run.folder
        model = role_family.placed(ref, dtype, device, place)
        if model is not None and offload is not None:
            weakref.finalize(model, offload.cleanup)
        if model is None:
            if offload is not None:
                offload.cleanup()
            if folder:
                model = role_family.load_trained(folder, dtype)
            else:
                model = starting_model(run, role, dtype, run.recipe.seed)
    placement.move(model, device)
    model.eval()
    require_decoder(run, role, model, folder)
    return model


def require_decoder(
    run: Run, role: Role, model: PreTrainedModel, folder: Path | None = None
) -> None:
    """Try out whether a loaded model is a causal decoder.

    Args:
        run: the run.
        role: teacher or student.
        model: the role's model.
        folder: where it was loaded from, if not from the recipe's checkpoint.

    Raises:
        UserError: it is not.
        Exception: the model does not run on its device.
    """
    if problem := inference.decoder_fault(model, tokenizer(run, role)):
        raise UserError(f"{described(run, role, folder)}: {problem}")


def batching_section(run: Run, arm: str) -> str:
    """Return the section of the recipe that states the batching of a training.

    Args:
        run: the run.
        arm: the student's arm; empty for the teacher.
    """
    return training_section(run.recipe.arms, arm, "batching")


def require_packing(run: Run, role: Role, model: PreTrainedModel, section: str) -> None:
    """Try out whether a loaded model can read packed batches.

    Args:
        run: the run.
        role: teacher or student.
        model: the role's model, a causal decoder.
        section: the section of the recipe that asks for it, such as `knowledge`.

    Raises:
        UserError: it cannot.
        Exception: the model does not run on its device.
    """
    if problem := inference.packing_fault(model, tokenizer(run, role)):
        raise UserError(f"{section}.batching: {described(run, role)}: {problem}; set it to padded")


def described(run: Run, role: Role, folder: Path | None = None) -> str:
    """Name a role's model in messages, with its family and its checkpoint or folder."""
    section = run.model_section(role)
    source = folder or section.checkpoint
    return f"{role} (family {section.family}{f', checkpoint {source}' if source else ''})"


def weights(run: Run, role: Role) -> int:
    """Count a role's parameters."""
    return sum(parameter.numel() for parameter in empty_model(run, role).parameters())


def trainable_weights(run: Run, unit: Unit) -> int:
    """Count the parameters that a unit's training changes.

    Raises:
        UserError: a target of its adapters is no layer that takes one; names the key.
    """
    settings = run.training_settings(unit).lora
    if settings is None:
        return weights(run, unit.role)
    from firstcli.training import lora

    try:
        return lora.trainable(empty_model(run, unit.role), settings)
    except UserError as error:  # which begins with the key's name in the section
        section = training_section(run.recipe.arms, unit.arm, "lora")
        raise UserError(f"{section}.{error}") from error
