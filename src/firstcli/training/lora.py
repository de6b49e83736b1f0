"""Low-rank adapters (LoRA): which layers get one, and how many weights are trained."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.recipe.lora import Lora


def trainable(model: PreTrainedModel, settings: Lora) -> int:
    """Count the weights that training with adapters changes.

    Args:
        model: the model without adapters; it may be on the meta device.
        settings: the recipe's section `lora`.

    Raises:
        UserError: a target is no linear layer of the model, or must not have an adapter.
    """
    layers = dict(model.named_modules())
    widths = (sum(layers[name].weight.shape) for name in target_layers(model, settings))
    return settings.rank * sum(widths)


def target_layers(model: PreTrainedModel, settings: Lora) -> list[str]:
    """Return the full names of the layers that get an adapter.

    `auto` is every linear layer but the output layer. Weights of experts that a model keeps in one
    tensor are not linear layers, and stay as they are.

    Raises:
        UserError: a target is no linear layer of the model, or is its output layer.
    """
    head = model.get_output_embeddings()
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
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
    return (
        f"{kind} has no linear layer named '{target}'{did_you_mean(target, known)}; it has "
        f"{shortened(known, 12)}"
    )
