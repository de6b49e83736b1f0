"""Low-rank adapters (LoRA): which layers get one, how they are trained, and what is saved.

peft replaces each layer in place, so the model that it wraps still runs its own forward, in which
the objective reads hidden states and the output layer's frozen weight.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from firstcli.checkpoints.adapters import ADAPTER_WEIGHTS, Base, without_warnings
from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.recipe.lora import Lora

if TYPE_CHECKING:
    from peft import PeftModel

READ_AS_WEIGHTS = ("x_proj", "dt_proj", "out_proj")
"""Layers of a state-space block that its scan may read without calling them, so that an adapter
would be skipped: the kernels do, and Mamba does it with `dt_proj` everywhere."""


def trainable(model: PreTrainedModel, settings: Lora) -> int:
    """Count the weights that training with adapters changes.

    Args:
        model: the model without adapters; it may be on the meta device.
        settings: the recipe's section `lora`.

    Raises:
        UserError: a target is no linear layer of the model, or must not have an adapter.
    """
    layers = dict(model.named_modules())
    weights: list[Any] = [layers[name].weight for name in target_layers(model, settings)]
    return settings.rank * sum(sum(weight.shape) for weight in weights)


def inner_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Return the linear layers by name, without the output layer."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def target_layers(model: PreTrainedModel, settings: Lora) -> list[str]:
    """Return the full names of the layers that get an adapter.

    `auto` is every linear layer but the output layer and `READ_AS_WEIGHTS`. Weights of experts that
    a model keeps in one tensor are not linear layers, and stay as they are.

    Raises:
        UserError: a target is no linear layer of the model, or must not have an adapter.
    """
    skipped = _read_as_weights(model)
    layers = [name for name in inner_layers(model) if name not in skipped]
    kind = type(model).__name__
    if settings.targets == "auto":
        if not layers:
            raise UserError(f"lora.targets: {kind} has no linear layers; train all its weights")
        return layers
    chosen: set[str] = set()
    for target in settings.targets:
        found = {name for name in layers if _ends_with(name, target)}
        if not found:
            raise UserError(f"lora.targets: {_why_not(model, target, layers)}")
        chosen |= found
    return [name for name in layers if name in chosen]


def _read_as_weights(model: PreTrainedModel) -> set[str]:
    """Return the names of the layers of state-space blocks that may never be called.

    A block is recognised by its parameters A, as `A_log`, and D.
    """
    return {
        f"{block}.{layer}"
        for block, module in model.named_modules()
        if {"A_log", "D"} <= module._parameters.keys()
        for layer in READ_AS_WEIGHTS
    }


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _why_not(model: PreTrainedModel, target: str, layers: list[str]) -> str:
    kind, known = type(model).__name__, sorted({name.rpartition(".")[2] for name in layers})
    for module, what in (
        (model.get_output_embeddings(), "output layer"),
        (model.get_input_embeddings(), "embedding"),
    ):
        names = [name for name, each in model.named_modules() if each is module]
        if any(_ends_with(name, target) for name in names):
            return (
                f"'{target}' is the {what} of {kind}, which takes no adapter; choose from "
                f"{shortened(known, 12)}"
            )
    if any(_ends_with(name, target) for name in _read_as_weights(model)):
        return (
            f"the state-space blocks of {kind} may read the weight of '{target}' without calling "
            f"the layer, which skips an adapter; choose from {shortened(known, 12)}"
        )
    return (
        f"{kind} has no linear layer named '{target}'{did_you_mean(target, known)}; it has "
        f"{shortened(known, 12)}"
    )


def with_adapters(
    model: PreTrainedModel, settings: Lora, seed: int, args: TrainingArguments
) -> PeftModel:
    """Freeze a model's weights and add adapters, which have no effect yet.

    Adapters are float32 beside weights of any dtype. A model with quantised weights is prepared as
    peft does it (QLoRA).

    Args:
        model: the model, which is changed in place.
        settings: the recipe's section `lora`.
        seed: draws the matrices A; the matrices B are 0.
        args: says whether activations are recomputed.

    Raises:
        UserError: as for `target_layers`.
    """
    from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training

    targets, layers = target_layers(model, settings), dict(model.named_modules())
    if is_quantized(model):
        prepare: Any = prepare_model_for_kbit_training
        prepare(model, use_gradient_checkpointing=False)  # the Trainer enables it
    if args.gradient_checkpointing or getattr(args, "activation_checkpointing", False):
        model.enable_input_require_grads()  # otherwise a checkpointed block has no gradient
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=all(isinstance(layers[name], Conv1D) for name in targets),  # transposed
        base_model_name_or_path="",  # a name would be looked up on the hub at every checkpoint
    )
    with torch.random.fork_rng(devices=[]), without_warnings():
        torch.manual_seed(seed)
        return PeftModel(model, config)


def is_quantized(model: PreTrainedModel) -> bool:
    return bool(getattr(model, "is_quantized", False))


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model whose forward runs: the one inside peft's wrapper, or the model itself."""
    if isinstance(model, PreTrainedModel):
        return model
    inner: Any = model.get_base_model()
    return cast(PreTrainedModel, inner)


def save_adapter(
    model: PeftModel, folder: Path, base: Base, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Save an adapter as peft does, so that peft, transformers and vLLM load it.

    Args:
        model: the trained model.
        folder: where the adapter goes.
        base: the model that the adapter belongs to.
        weights: the model's whole weights, if it holds only shards of them.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(
        model, state_dict=None if weights is None else dict(weights), save_embedding_layers=False
    )
    config = copy.deepcopy(model.peft_config["default"])
    config.base_model_name_or_path, config.revision = base.checkpoint, base.revision
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    folder.mkdir(exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
