"""Where a loaded model's weights are: on one device, or wherever a device map has put them.

Accelerate spreads a model by hooks: each replaces a module's `forward`, keeps the module's own as
`_old_forward`, and around it moves inputs and loads weights that are offloaded. Outside of that
call, an offloaded weight is an empty tensor on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from firstcli.errors import did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def is_placed(model: nn.Module) -> bool:
    """Return whether a model was loaded where it runs and must not be moved."""
    return any(getattr(model, name, None) is not None for name in ("hf_device_map", "hf_quantizer"))


def is_hooked(module: nn.Module) -> bool:
    """Return whether Accelerate's hook stands in place of a module's `forward`."""
    return {"_hf_hook", "_old_forward"} <= vars(module).keys()


def input_device(model: nn.Module) -> torch.device:
    """Return the device that a model's inputs belong on, also if its weights are offloaded."""
    import torch

    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next(model.parameters()).device if device is None else torch.device(device)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, unless it was loaded where it runs."""
    if not is_placed(model):
        model.to(device)


def map_problem(model: nn.Module, places: Mapping[str, int | str]) -> str | None:
    """Return what is wrong with a device map, or None.

    Args:
        model: the model, which may be empty.
        places: the device of each part of the model, by the part's name; "" is the whole model.
    """
    import torch

    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    for name, place in places.items():
        if name not in names:
            return f"the model has no part named '{name}'{did_you_mean(name, names)}"
        if isinstance(place, int):
            if place >= (count := torch.cuda.device_count()):
                return f"'{name}' is to be on GPU {place}, but this machine has {count}"
        elif place != "disk":
            try:
                torch.device(place)
            except RuntimeError:
                return f"'{name}': '{place}' is no device; expected cpu, disk or a GPU's number"
    return None


def parted_ties(model: PreTrainedModel) -> tuple[str, str] | None:
    """Return the names of one weight that a device map puts on two devices, one of them the disk.

    Accelerate cannot load such a weight.
    """
    places: dict[str, int | str] = getattr(model, "hf_device_map", {})
    tied: dict[str, str] = model.all_tied_weights_keys
    for name, source in tied.items():
        found = {str(_place(name, places)), str(_place(source, places))}
        if len(found) > 1 and "disk" in found:
            return name, source
    return None


def _place(name: str, places: dict[str, int | str]) -> int | str | None:
    """Return where a device map puts a weight: the longest name of a module counts."""
    while name not in places and name:
        name = name.rpartition(".")[0]
    return places.get(name)
