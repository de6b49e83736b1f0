"""The memory of one forward and backward pass, counted on tensors without data.

The model's own code runs with the fused objective, and the memory of all tensors that are alive at
the same time is counted. The count therefore sees activation checkpointing, autocast's copies of
the weights, soft capping, experts, and the masks of padded and packed batches. Temporary memory
inside a kernel is not seen.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from firstcli.models import readout
from firstcli.training import objective_forward, trial
from firstcli.training.memory_settings import BatchShape, MemorySettings

_WITHOUT_MASK = "firstcli_without_mask"
"""Name under which transformers knows attention that ignores padding and samples of one row."""

MOST_OPERATIONS = 100_000
"""Operations of a pass, about 20 s. A model that scans a long text token by token exceeds them."""


def peak_of_a_pass(
    model: PreTrainedModel,
    batch: BatchShape,
    settings: MemorySettings,
    dtypes: Mapping[Tensor, torch.dtype],
) -> int | None:
    """Return the most bytes that a micro-batch's forward and backward pass keep at a time.

    The weights are not counted; gradients are. The model's code runs on tensors without data; what
    depends on a value takes the branch of False or 0, as for a batch with padding, or with several
    packed samples.

    Args:
        model: an empty model, which is used up.
        batch: the shape of the micro-batch.
        settings: the training's settings.
        dtypes: the data type of each parameter in a pass.

    Returns:
        The bytes, or None if the architecture does not run without data, or takes too long.
    """
    device = settings.device if settings.device.type == "cuda" else torch.device("cpu")
    readout.has_float32_sums(device, torch.bfloat16)  # remembered: without data it would be wrong
    try:
        with _silent(), FakeTensorMode():
            return _peak(model, batch, settings, dtypes, device)
    except Exception:  # any architecture's code, on tensors that it was not written for
        return None


def _peak(
    model: PreTrainedModel,
    batch: BatchShape,
    settings: MemorySettings,
    dtypes: Mapping[Tensor, torch.dtype],
    device: torch.device,
) -> int:
    model.train()
    _choose_attention(model, settings.attention)
    options = settings.checkpointing
    trial.enable_checkpointing(model, None if options is None else dict(options))
    _without_data(model, dtypes, device)
    live = _LiveBytes(device)
    for value in (*model.parameters(), *model.buffers()):
        live.ignore(value)
    with live:
        if settings.accumulates:
            for value in model.parameters():
                if value.requires_grad:
                    value.grad = torch.empty_like(value)
        objective_forward.install_objective(model, "topk-tail" if batch.top_k else "labels")
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
            loss = model(**_inputs(batch, device))["loss"]
        loss.backward()
        return live.peak


def _choose_attention(model: PreTrainedModel, stated: str | None) -> None:
    """Let a model compute attention as training will, as far as memory depends on it.

    Flash attention keeps what PyTorch's own attention keeps without a mask, and needs none. Other
    names are taken for the default.
    """
    if stated == "eager":
        model.set_attn_implementation("eager")
    elif stated is not None and "flash" in stated:
        AttentionMaskInterface.register(_WITHOUT_MASK, lambda *_, **__: None)
        AttentionInterface.register(_WITHOUT_MASK, sdpa_attention_forward)
        model.set_attn_implementation(_WITHOUT_MASK)


def _without_data(
    model: nn.Module, dtypes: Mapping[Tensor, torch.dtype], device: torch.device
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
    """Return a batch as `batches.TrainingBatches` makes it, without data.

    Models derive a mask of all pairs of tokens from the attention mask of a padded batch, and from
    the positions of a packed one.
    """

    def ids(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=device)

    count, k = batch.positions, batch.top_k
    inputs = {
        "input_ids": ids(batch.rows, batch.tokens),
        "position_ids" if batch.packed else "attention_mask": ids(batch.rows, batch.tokens),
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
    operations: int = 0
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
        self._count.operations += 1
        if self._count.operations > MOST_OPERATIONS:
            raise RuntimeError(f"more than {MOST_OPERATIONS} operations")
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
