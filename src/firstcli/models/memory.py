"""What a training needs of a device's memory, compared with what the device has."""

from __future__ import annotations

import os

import torch
from torch import nn

from firstcli.checkpoints import placement
from firstcli.errors import UserError
from firstcli.models.batching import is_out_of_memory
from firstcli.runtime.console import size


def capacity(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has in all, or None if it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def allocate(model: nn.Module, needed: int, device: torch.device) -> None:
    """Move a model to its device, and try to allocate what training keeps besides the weights.

    Args:
        model: the model to train.
        needed: bytes of weights, gradients and the optimizer's state together.
        device: where the model trains.

    Raises:
        UserError: they do not fit, so that smaller batches would not help.
    """
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    try:
        placement.move(model, device)
        torch.empty(max(needed - weights, 0), dtype=torch.uint8, device=device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise too_small(needed, device) from error


REMEDIES = (
    "use a larger device, free its memory, choose a smaller model, or share the weights among "
    "several GPUs (trainer.fsdp)"
)


def too_small(needed: int, device: torch.device, remedies: str = REMEDIES) -> UserError:
    """Return the error of a device that cannot hold weights, gradients and optimizer."""
    has = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        has = f", but {device} has {size(total)}, of which {size(free)} are free"
    elif (total_or_none := capacity(device)) is not None:
        has = f", but {device} has {size(total_or_none)}"
    return UserError(
        f"out of memory: weights, gradients and the optimizer's state need {size(needed)}{has}; "
        f"smaller batches do not help: {remedies}"
    )
