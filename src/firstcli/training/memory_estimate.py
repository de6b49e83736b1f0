"""What one process's device holds at the peak of a training step, before anything is loaded.

The peak is the larger of two moments:

    weights + optimizer state + the most that one micro-batch's forward and backward pass keeps
    weights + gradients + optimizer state + what the optimizer's step itself takes

The first term is not a formula per architecture: `peak_of_a_pass` runs the model's own code, with
the fused objective, on tensors without data, and counts the memory of all tensors that are alive
at the same time. It therefore sees activation checkpointing, autocast's copies of the weights, soft
capping and experts. Temporary memory inside a kernel is not seen.

Weights, gradients and the optimizer's state follow from the number of parameters:

    weights     parameters * width; quantised matrices take `QUANTISED_BYTES` per weight
    gradients   trainable parameters * width; twice under DDP, which copies them into buckets
    optimizer   trainable parameters * `STATE_BYTES`, or Adafactor's row and column sums
"""

from __future__ import annotations

import copy
import logging
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from firstcli.models import readout
from firstcli.recipe.lora import Lora
from firstcli.training import lora, trainer

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
QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes per weight of a quantised matrix: 4 bits and one float32 scale per 64 weights; 8 bits."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The shape of the largest micro-batch."""

    samples: int
    tokens: int
    """Tokens per sample, padding included."""
    positions: int
    """Supervised positions of all samples."""
    top_k: int = 0
    """Tokens per position that are learned; 0 for labels."""


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
    """A key of `QUANTISED_BYTES`, or None."""
    processes: int = 1
    sharded: bool = False
    """Whether the processes share weights, gradients and optimizer state."""
    copies: int = 0
    """Float32 copies of the trained weights on the device, which count as optimizer state."""

    @property
    def width(self) -> int:
        """Bytes of a number of the trained weights' data type."""
        return 4 if self.lora else self.dtype.itemsize


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
    passes = peak_of_a_pass(model, batch, settings)
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
    width = QUANTISED_BYTES[settings.quantization]
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


# One pass without data.


def peak_of_a_pass(
    model: PreTrainedModel, batch: BatchShape, settings: MemorySettings
) -> int | None:
    """Return the most bytes that a micro-batch's forward and backward pass keep at a time.

    The weights are not counted; gradients are. The model's code runs on tensors without data; what
    depends on a value takes the branch of False or 0, as for a batch with padding.

    Args:
        model: an empty model, which is used up.
        batch: the shape of the micro-batch.
        settings: the training's settings.

    Returns:
        The bytes, or None if the architecture does not run without data.
    """
    device = settings.device if settings.device.type == "cuda" else torch.device("cpu")
    readout.has_float32_sums(device, torch.bfloat16)  # remembered: without data it would be wrong
    try:
        with _silent(), FakeTensorMode():
            return _peak(model, batch, settings, device)
    except Exception:  # any architecture's code, on tensors that it was not written for
        return None


def _peak(
    model: PreTrainedModel, batch: BatchShape, settings: MemorySettings, device: torch.device
) -> int:
    model.train()
    _enable_checkpointing(model, settings)
    _without_data(model, _dtypes(model, settings), device)
    live = _LiveBytes(device)
    for value in (*model.parameters(), *model.buffers()):
        live.ignore(value)
    with live:
        if settings.accumulates:
            for value in model.parameters():
                if value.requires_grad:
                    value.grad = torch.empty_like(value)
        trainer.install_objective(model, "topk-tail" if batch.top_k else "labels")
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            loss = model(**_inputs(batch, device))["loss"]
        loss.backward()
        return live.peak


def _enable_checkpointing(model: PreTrainedModel, settings: MemorySettings) -> None:
    """Enable activation checkpointing as the Trainer does."""
    if settings.checkpointing is None:
        return
    options = dict(settings.checkpointing)
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    model.activation_checkpointing_enable(options or None, every_n_layers=every, offload=offload)


def _without_data(
    model: nn.Module, dtypes: dict[Tensor, torch.dtype], device: torch.device
) -> None:
    """Replace parameters and buffers by tensors without data on a device; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    kept: list[nn.Parameter] = []  # so that no id is used twice
    replaced: set[int] = set()
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is None or id(value) in replaced:
                continue
            kept.append(value)
            if id(value) not in made:
                empty = torch.empty(value.shape, dtype=dtypes[value], device=device)
                made[id(value)] = nn.Parameter(empty, value.requires_grad)
                replaced.add(id(made[id(value)]))
            module._parameters[name] = made[id(value)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _inputs(batch: BatchShape, device: torch.device) -> dict[str, Tensor]:
    """Return a batch as `batches.TrainingBatches` makes it, without data."""

    def ids(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=device)

    count, k = batch.positions, batch.top_k
    inputs = {
        "input_ids": ids(batch.samples, batch.tokens),
        "attention_mask": ids(batch.samples, batch.tokens),
        "rows": ids(count),
        "columns": ids(count),
        "targets": ids(count),
    }
    if k:
        inputs |= {
            "token_ids": ids(count, k),
            "probabilities": torch.zeros(count, k, device=device),
            "tail": torch.zeros(count, device=device),
            "teacher_mass": torch.zeros(count, device=device),
        }
    return inputs


@dataclass
class _Count:
    live: int = 0
    peak: int = 0
    sizes: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of a device's tensors that are alive, and the most that were at a time."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device.type  # activations that are offloaded to the host do not count
        self._count = _Count()

    @property
    def peak(self) -> int:
        return self._count.peak

    def ignore(self, value: Tensor) -> None:
        """Leave the storage of a tensor out."""
        self._count.sizes[value.untyped_storage()] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        aten = torch.ops.aten
        if func is aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 0
        if func is aten.equal.default:  # the trial of the output layer asks for the same tensor
            first, second = (value.untyped_storage()._cdata for value in args[:2])
            return first == second
        if func is aten._grouped_mm.default:  # PyTorch's own shape rule is for bfloat16 alone
            groups = args[2] if len(args) > 2 else None
            result = args[0].new_empty(_grouped_shape(args[0], args[1], groups))
        else:
            result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.device.type == self._device:
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        count = self._count
        if storage in count.sizes:
            return
        size = storage.nbytes()
        count.sizes[storage] = size
        count.live += size
        count.peak = max(count.peak, count.live)
        weakref.finalize(storage, _subtract, count, size)


def _subtract(count: _Count, size: int) -> None:
    count.live -= size


def _grouped_shape(left: Tensor, right: Tensor, offsets: Tensor | None) -> tuple[int, ...]:
    """Return the shape of a product of groups of rows, or of columns, with matrices."""
    if left.dim() == right.dim() == 2:
        assert offsets is not None
        return (len(offsets), left.shape[0], right.shape[1])
    return (*left.shape[:-1], right.shape[-1])


@contextmanager
def _silent() -> Iterator[None]:
    """Keep quiet about operators that do not run without data."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level, logger.disabled = logger.level, True
    try:
        yield
    finally:
        logger.disabled = False
        logger.setLevel(level)
