"""Read a model's predictions chunk by chunk, without materialising all logits.

A readout computes top-k, log-probabilities or the loss. It replaces the forward of the output layer
while the model's own forward runs, takes the hidden states at the requested positions and the
layer's weight, and returns its small result as the model's `logits`. Autocast and whatever gathers
or loads weights around a forward (FSDP, DeepSpeed, a device map) therefore work as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from firstcli.checkpoints.causality import evaluating
from firstcli.checkpoints.placement import input_device, is_hooked
from firstcli.errors import UserError
from firstcli.runtime import distributed

CHUNK_ROWS = 512
"""Rows of logits per chunk. Each chunk reads the whole weight, so small chunks are slow."""

WEIGHT_ROWS = 4096
"""Rows of a half-precision weight that are converted to float32 at a time."""

BLOCK = 64  # tokens that their maximum represents during the search for the top k


@dataclass(frozen=True, slots=True)
class Layer:
    """The operands of a linear output layer at N positions."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)

    def cast(self) -> Layer:
        """Return hidden states and weight in the dtype that autocast prescribes."""
        kind, dtype = self.hidden.device.type, self.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        return Layer(self.hidden.to(dtype), self.weight.to(dtype), self.bias)

    def operands(self) -> Layer:
        """Return the operands without history, in the dtype that autocast prescribes."""
        bias = None if self.bias is None else self.bias.detach()
        return Layer(self.hidden.detach(), self.weight.detach(), bias).cast()

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks and logits (R, V), at least float32; the next chunk overwrites them."""
        layer = self.operands()
        memory = _memory(layer, min(rows, len(layer.hidden)))
        for chunk in _slices(len(layer.hidden), rows):
            logits = memory[: chunk.stop - chunk.start]
            _multiply_(logits, Layer(layer.hidden[chunk], layer.weight, layer.bias))
            yield chunk, logits


def _memory(layer: Layer, rows: int) -> Tensor:
    """Allocate logits (rows, V), at least float32."""
    return layer.hidden.new_empty(rows, len(layer.weight), dtype=_wide(layer.weight.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _multiply_(logits: Tensor, layer: Layer) -> None:
    """Write a layer's output into `logits` (N, V), which are at least float32.

    Half-precision operands are multiplied into float32 sums. Sums in their own dtype would have so
    few digits that different tokens tie.
    """
    hidden, weight, bias = layer.hidden, layer.weight, layer.bias
    if weight.dtype == logits.dtype:
        if bias is None:
            torch.mm(hidden, weight.T, out=logits)
        else:
            torch.addmm(bias, hidden, weight.T, out=logits)
        return
    if has_float32_sums(weight.device, weight.dtype):
        into_float32: Any = torch.mm  # PyTorch's type stubs do not know `out_dtype`
        into_float32(hidden, weight.T, out_dtype=logits.dtype, out=logits)
    else:
        hidden = hidden.to(logits.dtype)
        for rows in _slices(len(weight), WEIGHT_ROWS):
            torch.mm(hidden, weight[rows].to(logits.dtype).T, out=logits[:, rows])
    if bias is not None:
        logits += bias


@cache
def has_float32_sums(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device multiplies half-precision matrices into float32 by itself."""
    square = torch.zeros(16, 16, dtype=dtype, device=device)
    multiply: Any = torch.mm
    try:
        multiply(square, square, out_dtype=torch.float32)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # the device, or an older PyTorch, cannot
        return False
    return True


class _Product(torch.autograd.Function):
    """A layer's output (N, V), at least float32; its gradients have the operands' dtypes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = Layer(hidden, weight, bias)
        ctx.save_for_backward(hidden, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        logits = _memory(layer, len(hidden))
        with torch.autocast(hidden.device.type, enabled=False):
            _multiply_(logits, layer)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        narrow = gradient.to(weight.dtype)
        bias = None if ctx.bias_dtype is None else gradient.sum(0).to(ctx.bias_dtype)
        return narrow @ weight, narrow.T @ hidden, bias


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits from a model whose output layer cannot be replaced; readouts may overwrite them."""

    values: Tensor  # (N, V)

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield chunks and their logits (R, V)."""
        for chunk in _slices(len(self.values), rows):
            yield chunk, self.values[chunk]


@dataclass(frozen=True, slots=True)
class Cached:
    """Keys and values of the tokens that precede a batch."""

    values: Any
    """A cache of transformers; the forward pass adds the batch's own to it."""
    argument: str
    """What the model calls it."""


Scores = Layer | Logits
Readout = Callable[[Scores], Tensor]


class Reader:
    """Run a model and read its predictions at selected positions.

    Calling trunk and head separately would bypass the hooks of DDP and FSDP and whatever an
    architecture does around its head (soft-capping, scaling), so the model's own forward runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        notify: Callable[[str], None] | None = None,
        *,
        together: bool = False,
    ) -> None:
        """Try out whether the output layer can be replaced.

        Args:
            model: the model.
            notify: learns why, if it cannot.
            together: whether all processes do this at the same time; the first process's trial
                counts for all then, because the others may not have the weights yet.
        """
        self.model = model
        self._forward = model.forward
        self._head = model.get_output_embeddings()
        if not isinstance(self._head, nn.Module):
            raise UserError(
                f"{type(model).__name__} has no output layer: it is not a causal language model"
            )
        self.obstacle = (
            distributed.by_first(lambda: _obstacle(model)) if together else _obstacle(model)
        )
        if self.obstacle and notify:
            notify(f"{type(model).__name__}: needs memory for all logits, because {self.obstacle}")

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        readout: Readout,
        position_ids: Tensor | None = None,
        cache: Cached | None = None,
    ) -> Tensor:
        """Return the readout of the predictions after the tokens `input_ids[rows, columns]`.

        Args:
            input_ids: the padded batch, (B, L), or packed sequences, (1, L).
            attention_mask: 1 for tokens and 0 for padding, (B, L); None for packed sequences.
            rows: sequence of each position, (N,).
            columns: token of each position, (N,).
            readout: maps the output layer's operands, or logits, at the N positions to a tensor.
            position_ids: of packed sequences, (1, L), starting at 0 with each; or of tokens that
                follow a cache, (B, L).
            cache: what precedes the batch; the attention mask then covers both.
        """
        if self.obstacle:
            logits = self.logits_at(input_ids, attention_mask, rows, columns, position_ids, cache)
            return readout(Logits(logits))

        def read(hidden: Tensor) -> Tensor:
            at = rows.to(hidden.device), columns.to(hidden.device)
            return readout(Layer(hidden[at], self._head.weight, self._head.bias))[None]

        with _replaced(self._head, read):
            return _logits(self._forward, input_ids, attention_mask, position_ids, cache)[0]

    def logits_at(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        rows: Tensor,
        columns: Tensor,
        position_ids: Tensor | None = None,
        cache: Cached | None = None,
    ) -> Tensor:
        """Return float32 logits (N, V) of any model; a hook selects the head's inputs.

        A plain linear layer's product is summed in float32, also if its operands are not. Other
        layers' logits keep the digits of the layer's own dtype.

        Args: as for `__call__`.
        """

        def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            at = rows.to(inputs[0].device), columns.to(inputs[0].device)
            return (inputs[0][at][None], *inputs[1:])  # (1, N, D)

        with self._head.register_forward_pre_hook(select), _summed_in_float32(self._head):
            logits = _logits(self._forward, input_ids, attention_mask, position_ids, cache)
        if logits.shape[:2] != (1, len(rows)):
            raise UserError(
                f"{type(self.model).__name__} does not apply its output layer to unmodified hidden "
                "states, so firstcli cannot read its predictions; choose another architecture"
            )
        return logits[0].float()


def _logits(
    forward: Callable[..., Any],
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    cache: Cached | None = None,
) -> Tensor:
    given: dict[str, Any] = {"attention_mask": attention_mask, "position_ids": position_ids}
    inputs = {name: value for name, value in given.items() if value is not None}
    if cache is not None:
        inputs[cache.argument] = cache.values
    logits: Tensor = forward(input_ids=input_ids, **inputs, use_cache=cache is not None).logits
    return logits


def _obstacle(model: PreTrainedModel) -> str | None:
    """Return why a readout cannot replace the output layer, or None if a trial succeeds."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its output layer is a {type(head).__name__}, not a plain Linear"
    if not _is_plain(head):
        return "something else has replaced its output layer's forward"
    planted = torch.tensor([[[0.1, -3e4, 7.7]]])  # not exact in 16 bits
    input_shapes: list[torch.Size] = []

    def plant(hidden: Tensor) -> Tensor:
        input_shapes.append(hidden.shape)
        return planted.to(hidden.device)

    token = torch.zeros(1, 1, dtype=torch.long, device=input_device(model))
    try:
        with torch.no_grad(), evaluating(model), _replaced(head, plant):
            logits = _logits(model.forward, token, torch.ones_like(token))
    except Exception as error:  # only the trial failed: the unmodified model may work
        reason = str(error).partition("\n")[0]
        return f"a trial with a different output layer failed ({reason})"
    if input_shapes != [(1, 1, head.in_features)]:
        return "it does not apply its output layer to unmodified hidden states"
    if logits.dtype != planted.dtype or not torch.equal(logits.cpu(), planted):
        return "it changes the result of its output layer"
    return None


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a layer's own forward; a hook around it still loads its weight."""
    name = "_old_forward" if is_hooked(head) else "forward"
    before = vars(head).get(name)
    setattr(head, name, forward)
    try:
        yield
    finally:
        delattr(head, name) if before is None else setattr(head, name, before)


@contextmanager
def _summed_in_float32(head: nn.Module) -> Iterator[None]:
    """Let a linear output layer return float32 logits; a layer with a different forward is kept."""
    if not isinstance(head, nn.Linear) or not _is_plain(head):
        yield
        return

    def product(hidden: Tensor) -> Tensor:
        layer = Layer(hidden.flatten(0, -2), head.weight, head.bias).cast()
        if layer.weight.dtype == _wide(layer.weight.dtype):
            return nn.functional.linear(hidden, head.weight, head.bias)
        apply: Any = _Product.apply
        logits: Tensor = apply(layer.hidden, layer.weight, layer.bias)
        whole: Tensor = logits.unflatten(0, hidden.shape[:-1])
        return whole

    with _replaced(head, product):
        yield


def _is_plain(head: nn.Linear) -> bool:
    """Return whether a layer's own forward, within a hook if there is one, is that of Linear."""
    if type(head).forward is not nn.Linear.forward:
        return False
    if not is_hooked(head):
        return "forward" not in vars(head)
    return getattr(head._old_forward, "__func__", None) is nn.Linear.forward


# Readouts for inference.


def top_k(scores: Scores, k: int, limit: int) -> Tensor:
    """Return ids, log-probabilities and the log of the mass outside, concatenated: (N, 2k + 1).

    Probabilities come from the softmax over all V tokens. Only ids below `limit` are candidates;
    all others count as outside. Of equally likely tokens the lower id comes first. Ids are exact in
    float32: no vocabulary reaches 2^24.
    """
    parts = []
    for _, logits in scores.chunks(CHUNK_ROWS):
        token_ids = _top_ids(logits, k, limit)  # (R, k)
        kept = logits.gather(-1, token_ids)
        log_others, _ = log_sum_(logits.scatter_(-1, token_ids, -torch.inf))
        log_z = torch.logaddexp(torch.logsumexp(kept, -1), log_others)[:, None]
        parts.append(torch.cat([token_ids.float(), kept - log_z, log_others[:, None] - log_z], -1))
    return torch.cat(parts)


DRAW_ROWS = CHUNK_ROWS // 4
"""Rows per chunk of `drawn`, whose sums are float64."""


def drawn(scores: Scores, uniforms: Tensor, limit: int) -> Tensor:
    """Draw a token for each random number (N, draws) in [0, 1), by the inverse of the CDF.

    Tokens are drawn from the softmax over the ids below `limit`, in float64. Ids are exact in
    float32, see `top_k`; where an output is not finite, they are NaN.
    """
    parts = []
    for chunk, logits in scores.chunks(DRAW_ROWS):
        values = logits[:, :limit]
        if values.device.type == "mps":  # it has no float64
            values = values.cpu()
        cdf = values.double().softmax(-1).cumsum(-1)  # (R, limit)
        total = cdf[:, -1:]
        points = uniforms[chunk].to(cdf.device, cdf.dtype) * total
        # The first token whose CDF exceeds the point, so never one of probability 0.
        ids = torch.searchsorted(cdf, points, right=True)
        ids = torch.minimum(ids, (cdf < total).sum(-1, keepdim=True))  # a product may round up
        ids = torch.where(torch.isfinite(total), ids.float(), torch.nan)
        parts.append(ids.to(logits.device))
    return torch.cat(parts)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the result of `top_k`: ids (N, k), log-probabilities (N, k), log of the tail (N,)."""
    k = packed.shape[-1] // 2
    return packed[:, :k].long(), packed[:, k:-1], packed[:, -1]


def log_probs(scores: Scores, token_ids: Tensor) -> Tensor:
    """Return the log-probabilities (N, C) of the tokens (N, C)."""
    parts = []
    for chunk, logits in scores.chunks(CHUNK_ROWS):
        chosen = logits.gather(-1, token_ids[chunk].to(logits.device))
        parts.append(chosen - log_sum_(logits)[0][:, None])
    return torch.cat(parts)


def log_sum_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn `logits` (R, V) into exp(logit - maximum); return their logsumexp (R,) and sum (R,).

    Working in place and in cache, row by row, costs a fraction of torch.logsumexp. Rows of -inf
    become 0, with sum 0.
    """
    top = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    total = logits.sub_(top).exp_().sum(-1)
    return top[:, 0] + total.log(), total


def _top_ids(logits: Tensor, k: int, limit: int) -> Tensor:
    """Return the ids (R, k) of the largest logits below `limit`.

    The k blocks with the largest maxima contain the k largest logits; among equals, the first.
    """
    blocks = limit // BLOCK
    ids = torch.arange(limit, device=logits.device)
    if blocks <= k:
        candidates = ids.expand(len(logits), limit)
    else:
        ends = blocks * BLOCK
        maxima = logits[:, :ends].unflatten(-1, (blocks, BLOCK)).amax(-1)
        chosen = _first(maxima, ids[:blocks].expand_as(maxima), k)  # (R, k)
        inside = (chosen[..., None] * BLOCK + ids[:BLOCK]).flatten(1)
        outside = ids[ends:].expand(len(logits), limit - ends)
        candidates = torch.cat([inside, outside], -1)
    return _first(logits.gather(-1, candidates), candidates, k)


def _first(values: Tensor, ids: Tensor, k: int) -> Tensor:
    """Return the ids (R, k) of the k largest values (R, C); of equal values the lower id is first.

    torch.topk promises no order of equal values, so value and id are packed into one integer.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return ids.gather(-1, ((ordered << 32) - ids).topk(k).indices)


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
