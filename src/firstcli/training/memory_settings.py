"""What the memory of a training depends on, besides its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from firstcli.recipe.lora import Lora


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of the largest micro-batch."""

    samples: int
    tokens: int
    """Tokens per sample, padding included; of all samples together in a packed batch."""
    positions: int
    """Supervised positions of all samples."""
    top_k: int = 0
    """Tokens per position that are learned; 0 for labels."""
    packed: bool = False
    """Whether the samples stand one after the other in a single row."""

    @property
    def rows(self) -> int:
        return 1 if self.packed else self.samples


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The settings of a training that its memory depends on."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    """Data type of the weights."""
    autocast: bool = False
    """Whether the arithmetic runs in bfloat16."""
    optim: str = "adamw_torch_fused"
    optim_args: str = ""
    accumulates: bool = False
    """Whether a step has several micro-batches, so that gradients exist during the passes."""
    checkpointing: tuple[tuple[str, Any], ...] | None = None
    """Items of `trainer.activation_checkpointing_kwargs` with activation checkpointing, or None."""
    lora: Lora | None = None
    """The adapters, if only these are trained."""
    quantization: str | None = None
    """A key of `LOADED_BYTES`, or None."""
    attention: str | None = None
    """The implementation of attention that the recipe names; None is the model's default."""
    processes: int = 1
    sharded: bool = False
    """Whether the processes share weights, gradients and optimizer state."""
    copies: int = 0
    """Float32 copies of the trained weights on the device, which count as optimizer state."""

    @property
    def width(self) -> int:
        """Bytes of a number of the trained weights' data type."""
        return 4 if self.lora else self.dtype.itemsize
