"""Load the weights of a sharded training once, in the first process.

Under FSDP 2 every process holds a shard, so only the first one needs whole weights, from which
Accelerate fills the shards of all. The other processes start with the same architecture without
weights. What Accelerate does not share must be equal from the start: buffers that are not saved,
such as the frequencies of rotary embeddings, each weight's dtype, and the kind of attention.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from firstcli.checkpoints.loading import EMPTY_WEIGHTS
from firstcli.runtime import distributed


def first_loads(args: TrainingArguments) -> bool:
    """Return whether only the first process loads weights: with FSDP 2, unless it is told not to.

    Accelerate's name for that is `cpu_ram_efficient_loading`.
    """
    if args.fsdp:
        config = args.fsdp_config if isinstance(args.fsdp_config, dict) else {}
        version = str(config.get("version", 2))
    elif _is_true("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
    else:
        return False
    return version == "2" and distributed.count() > 1 and _is_true(EMPTY_WEIGHTS)


def load_in_all(args: TrainingArguments) -> None:
    """Let Accelerate expect whole weights in every process."""
    os.environ[EMPTY_WEIGHTS] = "false"
    if args.fsdp:
        args.fsdp_plugin_args["cpu_ram_efficient_loading"] = False


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


@dataclass(frozen=True, slots=True)
class WholeModel:
    """What the other processes must know of the first one's model."""

    dtypes: dict[str, torch.dtype]
    """By the names of the weights."""
    buffers: dict[str, Tensor]
    """The buffers that are not saved."""
    attention: str | None
    """The implementation of attention."""
    saved_buffers: tuple[str, ...]
    """Buffers that are saved like weights; Accelerate cannot share these."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> WholeModel:
        buffers, unsaved = dict(model.named_buffers()), _unsaved_buffers(model)
        return cls(
            {name: value.dtype for name, value in model.named_parameters()},
            {name: buffers[name].cpu() for name in buffers if name in unsaved},
            model.config._attn_implementation,
            tuple(sorted(buffers.keys() - unsaved)),
        )

    def complete(self, empty: PreTrainedModel) -> None:
        """Make a model without weights equal to the whole one, but for the weights' values.

        Accelerate finds the weights of the optimizer again by their addresses, and all weights on
        the meta device have the same one: the optimizer would update one of them and forget the
        others. So each weight gets an address, whose memory takes no room until it is written.

        Raises:
            RuntimeError: it has different weights or buffers.
        """
        if self.attention is not None:
            empty.set_attn_implementation(self.attention)
        parameters = dict(empty.named_parameters())
        unsaved = _unsaved_buffers(empty)
        if parameters.keys() != self.dtypes.keys() or unsaved != self.buffers.keys():
            raise RuntimeError(
                f"{type(empty).__name__}: `empty_model` and `model` have different weights"
            )
        for name, value in parameters.items():
            value.data = value.data.to(self.dtypes[name])
        empty.to_empty(device="cpu")
        empty.tie_weights()  # `to_empty` separates them
        for name, buffer in self.buffers.items():
            owner, _, own_name = name.rpartition(".")
            empty.get_submodule(owner).register_buffer(own_name, buffer, persistent=False)


def _unsaved_buffers(model: nn.Module) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    } & {name for name, _ in model.named_buffers()}
