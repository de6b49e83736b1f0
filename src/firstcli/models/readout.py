"""Read what is wanted off a model's output layer, in its place and without all the logits.

While the model's own forward runs, a readout stands in for the output layer's: it takes the hidden
states at the wanted positions and the layer's weight as they are at that moment, so that whatever
gathers sharded weights around a forward (FSDP, DeepSpeed) and autocast work as ever, and its small
result leaves the model as the `logits`. Logits (N, V) exist for a few rows at a time only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from firstcli.errors import UserError

READ_ROWS = 512
"""Rows of logits in flight; each chunk reads the whole weight, so few rows make slow products."""

BLOCK = 64  # tokens whose maximum stands for them while the top k are looked for


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear output layer in use: what goes in, and what it multiplies and adds."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)

    def operands(self) -> Layer:
        """Return the operands without history, in the dtype that autocast would have them."""
        kind, dtype = self.hidden.device.type, self.weight.dtype
        hidden = self.hidden.detach()
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            hidden = hidden.to(dtype)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Layer(hidden, self.weight.detach().to(dtype), bias)

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their logits (R, V), float32 at least; the next chunk overwrites them."""
        operands = self.operands()
        hidden, weight, bias = operands.hidden, operands.weight, operands.bias
        dtype = torch.promote_types(weight.dtype, torch.float32)
        memory = hidden.new_empty(min(rows, len(hidden)), len(weight), dtype=dtype)
        for at in _slices(len(hidden), rows):
            logits = memory[: at.stop - at.start]
            if weight.dtype != dtype:
                logits.copy_(nn.functional.linear(hidden[at], weight, bias))
            elif bias is None:
                torch.mm(hidden[at], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[at], weight.T, out=logits)
            yield at, logits


@dataclass(frozen=True, slots=True)
class Logits:
    """What a model returned where its output layer could not be replaced; may be overwritten."""

    values: Tensor  # (N, V)

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and their logits (R, V)."""
        for at in _slices(len(self.values), rows):
            yield at, self.values[at]


class LogitsAt:
    """A model's logits at chosen positions only, through the model's own forward.

    Instead of calling trunk and head from outside, which would bypass the hooks of DDP and FSDP
    and whatever an architecture does around its head (soft-capping, scaling), a hook in front of
    the output layer keeps the wanted hidden states and drops the rest.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise UserError(
                f"{type(model).__name__} has no output layer: it is no causal language model"
            )
        self.model = model
        self._forward = model.forward
        self._wanted: tuple[Tensor, Tensor] | None = None
        head.register_forward_pre_hook(self._select)

    def _select(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._wanted is None:
            return None
        rows, columns = self._wanted
        return (inputs[0][rows, columns][None], *inputs[1:])  # (1, N, D)

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """Return float32 logits (N, V) after the tokens `input_ids[rows, columns]`."""
        self._wanted = (rows, columns)
        try:
            output = self._forward(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )
        finally:
            self._wanted = None
        logits: Tensor = output.logits
        if logits.shape[:2] != (1, len(rows)):
            raise UserError(
                f"{type(self.model).__name__} does not apply its output layer to hidden states as "
                "they are, so firstcli cannot read its predictions; choose another architecture"
            )
        return logits[0].float()


Scores = Layer | Logits
Readout = Callable[[Scores], Tensor]


class Reader:
    """Runs a model and reads its predictions at chosen positions.

    Args:
        model: a causal language model.
        say: is told, once, why all the logits have to be materialised, where that is so.
    """

    def __init__(self, model: PreTrainedModel, say: Callable[[str], None] | None = None) -> None:
        self.model = model
        self.obstacle = _obstacle(model)
        self._head = model.get_output_embeddings()
        self._forward = model.forward
        self._logits_at = LogitsAt(model) if self.obstacle else None
        if self.obstacle and say:
            say(f"{type(model).__name__}: needs memory for whole logits, since {self.obstacle}")

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        columns: Tensor,
        readout: Readout,
    ) -> Tensor:
        """Return what `readout` makes of the predictions after `input_ids[rows, columns]`."""
        if self._logits_at:
            return readout(Logits(self._logits_at(input_ids, attention_mask, rows, columns)))

        def read(hidden: Tensor) -> Tensor:
            layer = Layer(hidden[rows, columns], self._head.weight, self._head.bias)
            return readout(layer)[None]

        with _replaced(self._head, read):
            output = self._forward(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )
        result: Tensor = output.logits[0]
        return result


def _obstacle(model: PreTrainedModel) -> str | None:
    """Try whether the model returns what its output layer returns, whatever that is."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"its output layer is a {type(head).__name__}, not a plain Linear"
    if "forward" in vars(head):
        return "its output layer's forward was replaced by something else"
    planted = torch.tensor([[[0.1, -3e4, 7.7]]], device=head.weight.device)  # no 16-bit numbers
    taken: list[torch.Size] = []

    def plant(hidden: Tensor) -> Tensor:
        taken.append(hidden.shape)
        return planted

    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.no_grad(), _evaluating(model), _replaced(head, plant):
            output = model.forward(
                input_ids=token, attention_mask=torch.ones_like(token), use_cache=False
            )
        logits = output.logits
    except Exception as error:  # it is only a trial: the model may well work as it is
        return f"a trial with another output layer failed ({str(error).splitlines()[:1]})"
    if taken != [(1, 1, head.in_features)]:
        return "it does not apply its output layer to hidden states as they are"
    if logits.dtype != planted.dtype or not torch.equal(logits, planted):
        return "it changes what its output layer returns"
    return None


@contextmanager
def _replaced(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, so that no random number is drawn; each module gets its mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# Readouts for inference.


def top_k(scores: Scores, k: int, limit: int) -> Tensor:
    """Return ids, log-probabilities and the log of the mass outside, side by side (N, 2k + 1).

    Probabilities come from the softmax over all V tokens; only ids below `limit` are kept, the
    others count as outside. Of equally likely tokens the lower id comes first. Ids are exact as
    float32: no vocabulary reaches 2^24.
    """
    found = []
    for _, logits in scores.chunks(READ_ROWS):
        token_ids = _top_ids(logits, k, limit)  # (R, k)
        kept = logits.gather(-1, token_ids)
        log_others, _ = log_sum_(logits.scatter_(-1, token_ids, -torch.inf))
        log_z = torch.logaddexp(torch.logsumexp(kept, -1), log_others)[:, None]
        found.append(torch.cat([token_ids.float(), kept - log_z, log_others[:, None] - log_z], -1))
    return torch.cat(found)


def unpack(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids (N, k), log-probabilities (N, k) and log of the mass outside (N,) of `top_k`."""
    k = found.shape[-1] // 2
    return found[:, :k].long(), found[:, k:-1], found[:, -1]


def log_probs(scores: Scores, token_ids: Tensor) -> Tensor:
    """Return the log-probabilities (N, C) of the tokens (N, C)."""
    found = []
    for at, logits in scores.chunks(READ_ROWS):
        chosen = logits.gather(-1, token_ids[at])
        found.append(chosen - log_sum_(logits)[0][:, None])
    return torch.cat(found)


def log_sum_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return logsumexp (R,) and sum (R,) of what `logits` (R, V) become: exp(logit - maximum).

    In place and row after row in the cache, it costs a fraction of torch.logsumexp. Rows of -inf
    become 0, with sum 0.
    """
    top = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    total = logits.sub_(top).exp_().sum(-1)
    return top[:, 0] + total.log(), total


def _top_ids(logits: Tensor, k: int, limit: int) -> Tensor:
    """Return the ids (R, k) of the largest logits below `limit`.

    The k blocks of the largest maxima hold the k largest logits, and of equal ones the first.
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
    """Return the ids (R, k) of the k largest values (R, C), the lower id first where two are equal.

    torch.topk promises no order of equal values, so value and id go into one whole number each.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return ids.gather(-1, ((ordered << 32) - ids).topk(k).indices)


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
