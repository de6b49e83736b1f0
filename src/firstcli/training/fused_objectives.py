"""The objectives summed straight from hidden states, never holding the logits of all positions.

The logits (R, V) of a few rows are computed, turned into their own gradient in place and multiplied
into the gradients of hidden states and weight, before the next rows take their memory. As the loss
is a sum, what arrives in the backward pass is one number to multiply these gradients by: there are
three matrix products in all, as in the dense computation, and nothing is computed twice.

With K the k taught tokens, M the sum of p^, t the tail, q the student's probabilities of K, Q their
sum and s the softmax over the other tokens alone, the gradients in the logits are

    topk-tail            (M + t) q - p^  in K,    ((M + t)(1 - Q) - t) s  outside
    topk-renormalized    M q / Q - p^    in K,    0                       outside
    labels               topk-tail with the true token as K, p^ = 1, t = 0

where 1 - Q is the sum over the other tokens, never a difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firstcli.models import readout
from firstcli.models.readout import Layer, Scores
from firstcli.training import objectives
from firstcli.training.objectives import StudentView

ROWS = {"cpu": 256}
"""Rows of logits in flight, by kind of device: they take ROWS / D of the weight's own memory, and
each chunk reads the weight twice and its gradient once, so few rows make slow products."""

ROWS_ELSEWHERE = 1024


class Sums(NamedTuple):
    """An objective summed over N positions, and the student's mass Q, which has no gradient."""

    loss: Tensor  # ()
    student_mass: Tensor  # ()


def topk_tail(scores: Scores, token_ids: Tensor, probabilities: Tensor, tail: Tensor) -> Sums:
    """`objectives.topk_tail`, summed."""
    if isinstance(scores, Layer):
        return _summed(scores, token_ids, probabilities, tail)
    student = objectives.student_view(scores.values, token_ids)
    return Sums(objectives.topk_tail_of(student, probabilities, tail).sum(), _mass(student.log_q))


def topk_renormalized(scores: Scores, token_ids: Tensor, target: Tensor) -> Sums:
    """`objectives.topk_renormalized`, summed."""
    if isinstance(scores, Layer):
        return _summed(scores, token_ids, target, None)
    log_q = objectives.student_view(scores.values, token_ids).log_q
    return Sums(objectives.topk_renormalized_of(log_q, target).sum(), _mass(log_q))


def labels(scores: Scores, targets: Tensor) -> Sums:
    """`objectives.labels`, summed."""
    if isinstance(scores, Layer):
        certain = torch.ones(len(targets), 1, device=targets.device)
        return _summed(scores, targets[:, None], certain, torch.zeros_like(certain[:, 0]))
    losses = objectives.labels(scores.values, targets)
    return Sums(losses.sum(), _mass(-losses))


def _mass(log_q: Tensor) -> Tensor:
    return log_q.detach().exp().sum()


def _summed(layer: Layer, token_ids: Tensor, probabilities: Tensor, tail: Tensor | None) -> Sums:
    apply: Any = _Summed.apply
    operands = (layer.hidden, layer.weight, layer.bias)
    return Sums(*apply(*operands, token_ids, probabilities, tail, torch.is_grad_enabled()))


class _Summed(torch.autograd.Function):
    """`topk-tail`, or `topk-renormalized` where there is no tail."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        token_ids: Tensor,  # (N, k)
        probabilities: Tensor,  # (N, k)
        tail: Tensor | None,  # (N,)
        recording: bool,
    ) -> tuple[Tensor, Tensor]:
        layer = Layer(hidden, weight, bias).operands()
        needed = [recording and one for one in ctx.needs_input_grad[:3]]
        # Autocast has chosen the operands' dtype; it must not choose that of what follows.
        with torch.autocast(hidden.device.type, enabled=False):
            gradients, losses, masses = _sums_and_gradients(
                layer, needed, token_ids, probabilities, tail
            )
        ctx.dtypes = [None if one is None else one.dtype for one in (hidden, weight, bias)]
        ctx.save_for_backward(*gradients.kept(ctx.dtypes))
        student_mass = masses.sum()
        ctx.mark_non_differentiable(student_mass)
        return losses.sum(), student_mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for the weight's gradient is large; PyTorch refuses a second backward pass.
        scaled = (
            None if one is None else one.mul_(scale).to(dtype)
            for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None)


def _sums_and_gradients(
    layer: Layer, needed: list[bool], token_ids: Tensor, probabilities: Tensor, tail: Tensor | None
) -> tuple[_Gradients, Tensor, Tensor]:
    """Return gradients, losses (N,) and the student's masses (N,), a few rows at a time."""
    gradients = _Gradients(layer, needed)
    losses, masses = gradients.zeros(len(probabilities)), gradients.zeros(len(probabilities))
    for at, logits in layer.chunks(ROWS.get(probabilities.device.type, ROWS_ELSEWHERE)):
        ids, p = token_ids[at], probabilities[at].to(logits.dtype)
        scores = logits.gather(-1, ids)
        log_others, total = readout.log_sum_(logits.scatter_(-1, ids, -torch.inf))
        log_z = torch.logaddexp(torch.logsumexp(scores, -1), log_others)
        student = StudentView(scores - log_z[:, None], log_others - log_z)
        masses[at] = student.log_q.exp().sum(-1)
        if tail is None:
            losses[at] = objectives.topk_renormalized_of(scores, p)
            gradients.add_sparse(at, ids, _in_k(torch.log_softmax(scores, -1), p, p.sum(-1)))
        else:
            losses[at] = objectives.topk_tail_of(student, p, t := tail[at].to(p.dtype))
            if gradients.wanted:
                gradients.add(at, _topk_tail_(logits, total, student, ids, p, t))
    return gradients, losses, masses


def _topk_tail_(
    others: Tensor,
    total: Tensor,
    student: StudentView,
    ids: Tensor,
    probabilities: Tensor,
    tail: Tensor,
) -> Tensor:
    """Turn exponentials (R, V) of the other tokens, of sum `total`, into the logits' gradient."""
    mass = probabilities.sum(-1) + tail  # (R,)
    outside = mass * student.log_rest.exp() - tail
    share = torch.where(total > 0, outside / total, 0.0)  # there may be no others
    return others.mul_(share[:, None]).scatter_(-1, ids, _in_k(student.log_q, probabilities, mass))


def _in_k(log_q: Tensor, probabilities: Tensor, mass: Tensor) -> Tensor:
    return mass[:, None] * log_q.exp() - probabilities


class _Gradients:
    """Gradients of the summed loss in a layer's operands, as far as needed, chunk by chunk.

    They grow in float32. The products run in the dtype of the forward's, float16 excepted: it has
    no room for gradients as long as their scale, known in the backward pass only, is left out.
    """

    def __init__(self, layer: Layer, needed: list[bool]) -> None:
        dtype = layer.weight.dtype
        self.wanted = any(needed)
        self._wide = torch.promote_types(dtype, torch.float32)
        self._dtype = self._wide if dtype == torch.float16 else dtype
        self._inputs = layer.hidden.to(self._dtype)
        self._rows = layer.weight.to(self._dtype) if needed[0] else layer.weight
        operands = (layer.hidden, layer.weight, layer.bias)
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(one, dtype=self._wide) if need and one is not None else None
            for one, need in zip(operands, needed, strict=True)
        )

    def zeros(self, count: int) -> Tensor:
        return self._inputs.new_zeros(count, dtype=self._wide)

    def add(self, at: slice, logits: Tensor) -> None:
        """Add what comes from the gradient (R, V) in the logits of some rows."""
        if self.bias is not None:
            self.bias += logits.sum(0)
        narrow = logits.to(self._dtype)
        if self.hidden is not None:
            self.hidden[at] = narrow @ self._rows
        if self.weight is not None and self._dtype == self._wide:
            self.weight.addmm_(narrow.T, self._inputs[at])
        elif self.weight is not None:
            self.weight += narrow.T @ self._inputs[at]

    def add_sparse(self, at: slice, ids: Tensor, logits: Tensor) -> None:
        """Add what comes from the gradient (R, k) in the logits of a few tokens `ids` (R, k)."""
        if self.bias is not None:
            self.bias.index_add_(0, ids.flatten(), logits.flatten().to(self._wide))
        for rank in range(ids.shape[-1]):  # (R, k, D) at once could be more than the logits
            token, slope = ids[:, rank], logits[:, rank, None]
            if self.hidden is not None:
                self.hidden[at] += slope * self._rows[token]
            if self.weight is not None:
                self.weight.index_add_(0, token, (slope * self._inputs[at]).to(self._wide))

    def kept(self, dtypes: list[torch.dtype | None]) -> list[Tensor | None]:
        """Return them in the operands' own dtypes; float16 has to wait for the scale."""
        return [
            one if one is None or dtype is None or dtype == torch.float16 else one.to(dtype)
            for one, dtype in zip((self.hidden, self.weight, self.bias), dtypes, strict=True)
        ]
