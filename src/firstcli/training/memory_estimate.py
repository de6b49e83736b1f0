"""What one process's device holds at the peak of a training step, before anything is loaded.

The peak is the larger of two moments:

    weights + optimizer state + the most that one micro-batch's forward and backward pass keeps
    weights + gradients + optimizer state + what the optimizer's step itself takes

The first term is not a formula per architecture: `memory_pass.peak_of_a_pass` runs the model's own
code on tensors without data.

Weights, gradients and the optimizer's state follow from the number of parameters:

    weights     parameters * width; quantised matrices take `LOADED_BYTES` per weight
    gradients   trainable parameters * width; twice under DDP, which copies them into buckets
    optimizer   trainable parameters * `STATE_BYTES`, or Adafactor's row and column sums
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from firstcli.checkpoints.quantization import LOADED_BYTES
from firstcli.training import lora
from firstcli.training.memory_pass import peak_of_a_pass
from firstcli.training.memory_settings import BatchShape, MemorySettings

STATE_BYTES: dict[str, float] = {
    "adamw_torch": 2.0,
    "adamw_torch_fused": 2.0,
    "sgd": 0.0,
    "adagrad": 1.0,
    "rmsprop": 1.0,
    "paged_adamw_32bit": 2.0,
    "lion_32bit": 1.0,
    "paged_lion_32bit": 1.0,
    "rmsprop_bnb": 1.0,
    "rmsprop_bnb_32bit": 1.0,
}
"""Values in the dtype of the weights that an optimizer keeps per trainable parameter."""
EIGHT_BIT_STATES = {
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "rmsprop_bnb_8bit": 1,
}
"""Bytes that bitsandbytes' 8-bit optimizers keep per trainable parameter."""
EIGHT_BIT_BLOCK = 256
"""Values that share one float32 scale in these optimizers."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, on the device of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """All else at the peak: mainly activations and the chunk of logits. Gradients that do not
    exist yet at the peak leave their room to activations, so this can be less than they take."""
    complete: bool = True
    """Whether activations and the optimizer's state are known; otherwise they are left out."""

    @property
    def states(self) -> int:
        """Bytes that are the same for all micro-batches."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.states + self.activations


def estimate(empty: PreTrainedModel, batch: BatchShape, settings: MemorySettings) -> MemoryEstimate:
    """Estimate the peak of a training step; the formulas are stated at the top of this module."""
    known = states(empty, settings)
    model = _adapted(empty, settings)
    trainable = _trainable(model)
    gradients = known.gradients
    if settings.processes > 1 and not settings.sharded:
        gradients //= 2  # the buckets of DDP exist also while gradients do not
    step = _step_bytes(trainable, settings)
    passes = peak_of_a_pass(model, batch, settings, _dtypes(model, settings))
    gathered = 0
    if settings.sharded:
        gathered = 2 * settings.width * _gathered_parameters(model)
        step = -(-step // settings.processes)
        if passes is not None and settings.accumulates:  # the pass counts whole gradients
            whole = settings.width * sum(value.numel() for value in trainable)
            passes -= whole - gradients
    during = 0 if passes is None else passes - gradients
    return replace(
        known,
        activations=max(during, step, 0) + gathered,
        complete=known.complete and passes is not None,
    )


def states(empty: PreTrainedModel, settings: MemorySettings) -> MemoryEstimate:
    """Return what does not depend on the batch; activations are 0."""
    model = _adapted(empty, settings)
    trainable = _trainable(model)
    optimizer = optimizer_bytes(trainable, settings)
    sizes = [
        _weight_bytes(model, settings),
        settings.width * sum(value.numel() for value in trainable),
        (optimizer or 0) + 4 * settings.copies * sum(value.numel() for value in trainable),
    ]
    if settings.sharded:
        sizes = [-(-size // settings.processes) for size in sizes]
    elif settings.processes > 1:
        sizes[1] *= 2
    weights, gradients, moments = sizes
    return MemoryEstimate(weights, gradients, moments, 0, optimizer is not None)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [value for value in model.parameters() if value.requires_grad]


# Weights, gradients, optimizer.


def optimizer_bytes(trainable: list[nn.Parameter], settings: MemorySettings) -> int | None:
    """Return the bytes of an optimizer's state, or None if the optimizer's state is not known."""
    count, optim = sum(value.numel() for value in trainable), settings.optim
    if optim == "adafactor":  # float32 sums over rows and columns of matrices
        return 4 * sum(_factored(tuple(value.shape)) for value in trainable)
    if optim in EIGHT_BIT_STATES:
        return math.ceil(EIGHT_BIT_STATES[optim] * count * (1 + 4 / EIGHT_BIT_BLOCK))
    if optim not in STATE_BYTES:
        return None
    values = STATE_BYTES[optim]
    if optim in ("sgd", "rmsprop") and "momentum" in settings.optim_args:
        values += 1
    return math.ceil(values * settings.width * count)


def _factored(shape: tuple[int, ...]) -> int:
    """Return how many numbers Adafactor keeps for a parameter."""
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]


def _step_bytes(trainable: list[nn.Parameter], settings: MemorySettings) -> int:
    """Return the temporary bytes of the optimizer's step."""
    largest = max((value.numel() for value in trainable), default=0)
    if settings.optim == "adafactor":
        return 3 * 4 * largest
    if settings.optim == "adamw_torch":  # the square roots: of all weights at once on a GPU
        on_cpu = settings.device.type == "cpu"
        count = 2 * largest if on_cpu else sum(value.numel() for value in trainable)
        return settings.width * count
    return 0


def _weight_bytes(model: PreTrainedModel, settings: MemorySettings) -> int:
    quantised, dtypes = _quantised(model, settings), _dtypes(model, settings)
    total = sum(
        value.numel() * quantised.get(value, dtypes[value].itemsize) for value in model.parameters()
    )
    buffers = sum(value.numel() * value.element_size() for value in model.buffers())
    return math.ceil(total) + buffers


def _quantised(model: PreTrainedModel, settings: MemorySettings) -> dict[Tensor, float]:
    """Return the bytes per weight of the matrices that are quantised."""
    if settings.quantization is None:
        return {}
    width = LOADED_BYTES[settings.quantization]
    return {part.weight: width for part in model.modules() if isinstance(part, _LowRank)}


def _dtypes(model: PreTrainedModel, settings: MemorySettings) -> dict[Tensor, torch.dtype]:
    """Return the data type of each parameter in a pass; quantised ones are bfloat16 there.

    Adapters are float32, and so is what is not quantised of a quantised model, as in peft.
    """
    wide = torch.float32 if settings.quantization else settings.dtype
    dtypes: dict[Tensor, torch.dtype] = {
        value: wide if value.is_floating_point() else value.dtype for value in model.parameters()
    }
    for part in model.modules():
        if isinstance(part, _LowRank):
            dtypes |= {part.down: torch.float32, part.up: torch.float32}
    return dtypes | dict.fromkeys(_quantised(model, settings), torch.bfloat16)


def _gathered_parameters(model: nn.Module) -> int:
    """Return how many sharded parameters a process holds whole at a time.

    These are the parameters outside the repeated layers, and two layers: the one that is computed
    and the one that is fetched.
    """
    blocks = [
        part for module in model.modules() if isinstance(module, nn.ModuleList) for part in module
    ]
    sizes = [sum(value.numel() for value in block.parameters()) for block in blocks]
    repeated = {id(value) for block in blocks for value in block.parameters()}
    outside = sum(v.numel() for v in model.parameters() if id(v) not in repeated)
    return outside + 2 * max(sizes, default=0)


# Adapters.


class _LowRank(nn.Module):
    """A frozen linear layer with a trained update of low rank, as in LoRA (arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear | Conv1D, rank: int) -> None:
        super().__init__()
        if isinstance(base, Conv1D):
            inputs, outputs = base.weight.shape
        else:
            outputs, inputs = base.weight.shape
        self.base, self.weight, self.bias = base, base.weight, base.bias  # some models read these
        self.down = nn.Parameter(torch.empty(rank, inputs, device="meta"))
        self.up = nn.Parameter(torch.empty(outputs, rank, device="meta"))

    def forward(self, hidden: Tensor) -> Tensor:
        narrow = nn.functional.linear(hidden.to(self.down.dtype), self.down)
        update = nn.functional.linear(narrow, self.up)
        output: Tensor = self.base(hidden.to(self.base.weight.dtype)).to(hidden.dtype)
        return output + update.to(output.dtype)


def _adapted(empty: PreTrainedModel, settings: MemorySettings) -> PreTrainedModel:
    """Return a copy of an empty model, with adapters if there are to be some.

    Layers without an adapter get one of rank 0, so that all that are quantised run alike.
    """
    model = copy.deepcopy(empty)
    if settings.lora is None:
        return model
    model.requires_grad_(False)
    chosen = set(lora.target_layers(model, settings.lora))
    for name, layer in lora.inner_layers(model).items():
        parent, _, child = name.rpartition(".")
        rank = settings.lora.rank if name in chosen else 0
        setattr(model.get_submodule(parent), child, _LowRank(layer, rank))
    return model
