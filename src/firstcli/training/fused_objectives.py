"""The objectives summed directly from hidden states, without the logits of all positions at once.

For a chunk of R positions, the logits (R, V) are computed, turned into their own gradient in place
and multiplied into the gradients of hidden states and weight, before the next chunk reuses their
memory. As the loss is a sum, the backward pass only scales these gradients by one number. There
are three matrix products in all, as in the dense computation, and nothing is computed twice.

K are the k tokens, M the sum of p^, t the tail, q the student's probabilities of K, Q their sum and
s the softmax over the other tokens alone. The gradients with respect to the logits are

    topk-tail            (M + t) q - p^  in K,    ((M + t)(1 - Q) - t) s  outside
    topk-renormalized    M q / Q - p^    in K,    0                       outside
    labels               topk-tail with the true token as K, p^ = 1, t = 0
    hard-gate            topk-tail, where a label is learned with p^ = 1 for it and t = 0
    a plugin             g - G q         in K,    (g_rest - G (1 - Q)) s  outside

where 1 - Q is the sum over the other tokens, never a difference. g (k) and g_rest are the gradients
of a plugin's loss with respect to the log-probabilities of K and of all other tokens, which
autograd computes from these alone, and G is the sum of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from firstcli.api import StudentView, TargetView
from firstcli.models import readout
from firstcli.models.readout import Layer, Logits, Scores
from firstcli.training import objectives

CHUNK_ROWS = {"cpu": 256}
"""Rows of logits per chunk, by type of device. They take CHUNK_ROWS / D of the weight's memory. A
chunk reads the weight twice and its gradient once, so small chunks make slow products."""

ACCELERATOR_CHUNK_ROWS = 1024


LossesOf = Callable[[StudentView, TargetView], Tensor]
"""Returns the loss of each position, (N,), as `firstcli.api.Objective.losses` does."""


class Sums(NamedTuple):
    """An objective summed over N positions, and sums about the student, which have no gradient."""

    loss: Tensor  # ()
    student_mass: Tensor  # () Q
    entropy: Tensor  # () of the student's distribution over all tokens, in nats; 0 unless wanted
    from_label: Tensor  # () positions at which `hard-gate` learns the label; 0 for the others


def topk_tail(
    scores: Scores,
    token_ids: Tensor,
    probabilities: Tensor,
    tail: Tensor,
    *,
    with_entropy: bool = False,
) -> Sums:
    """Sum `objectives.topk_tail` over all positions.

    Args:
        scores: the student's output at N positions.
        token_ids: the teacher's k tokens, (N, k).
        probabilities: p^, (N, k).
        tail: 1 - M, (N,); exactly 0 with `mass: one`.
        with_entropy: whether to sum the student's entropy, which reads all logits once more.
    """
    if isinstance(scores, Layer):
        return _summed(scores, _Targets(token_ids, probabilities, tail), with_entropy)
    student = objectives.student_view(scores.values, token_ids)
    losses = objectives.topk_tail(student, probabilities, tail)
    return _of_logits(losses, student.log_q, scores, with_entropy)


def hard_gate(
    scores: Scores,
    token_ids: Tensor,
    probabilities: Tensor,
    tail: Tensor,
    is_label: Tensor,
    *,
    with_entropy: bool = False,
) -> Sums:
    """Sum the objective `hard-gate` over all positions; see `objectives.gated`.

    Args: as for `topk_tail`; `is_label` marks the true token among the k, (N, k).
    """
    if isinstance(scores, Layer):
        return _summed(scores, _Targets(token_ids, probabilities, tail, is_label), with_entropy)
    student = objectives.student_view(scores.values, token_ids)
    target, rest, from_label = objectives.gated(student.log_q, probabilities, tail, is_label)
    losses = objectives.topk_tail(student, target, rest)
    sums = _of_logits(losses, student.log_q, scores, with_entropy)
    return sums._replace(from_label=from_label.sum().to(losses.dtype))


def topk_renormalized(
    scores: Scores, token_ids: Tensor, target: Tensor, *, with_entropy: bool = False
) -> Sums:
    """Sum `objectives.topk_renormalized` over all positions.

    Args: as for `topk_tail`; `target` is p^ / M, (N, k).
    """
    if isinstance(scores, Layer):
        return _summed(scores, _Targets(token_ids, target, None), with_entropy)
    log_q = objectives.student_view(scores.values, token_ids).log_q
    losses = objectives.topk_renormalized(log_q, target)
    return _of_logits(losses, log_q, scores, with_entropy)


def of_plugin(
    scores: Scores,
    token_ids: Tensor,
    target: TargetView,
    losses_of: LossesOf,
    *,
    weights: Tensor | None = None,
    with_entropy: bool = False,
) -> Sums:
    """Sum the losses of any objective over all positions.

    Args:
        scores: the student's output at N positions.
        token_ids: the teacher's k tokens, (N, k).
        target: what is taught.
        losses_of: the objective.
        weights: what the loss of each position is multiplied with, (N,); default: 1.
        with_entropy: whether to sum the student's entropy, which reads all logits once more.
    """
    probabilities, tail, is_label = target
    targets = _Targets(token_ids, probabilities, tail, is_label, weights, losses_of)
    if isinstance(scores, Layer):
        return _summed(scores, targets, with_entropy)
    student = objectives.student_view(scores.values, token_ids)
    losses = targets.losses(student)
    return _of_logits(losses, student.log_q, scores, with_entropy)


def labels(scores: Scores, targets: Tensor, *, with_entropy: bool = False) -> Sums:
    """Sum `objectives.labels` over all positions."""
    if isinstance(scores, Layer):
        certain = torch.ones(len(targets), 1, device=targets.device)
        tail = torch.zeros_like(certain[:, 0])
        return _summed(scores, _Targets(targets[:, None], certain, tail), with_entropy)
    losses = objectives.labels(scores.values, targets)
    return _of_logits(losses, -losses, scores, with_entropy)


def _of_logits(losses: Tensor, log_q: Tensor, scores: Logits, with_entropy: bool) -> Sums:
    entropy = losses.new_zeros(())
    if with_entropy:
        log_probs = torch.log_softmax(scores.values.detach(), -1)
        entropy = -(log_probs.exp() * log_probs).nansum()  # 0 * -inf is 0
    none = losses.new_zeros(())
    return Sums(losses.sum(), log_q.detach().exp().sum(), entropy, none)


def _summed(layer: Layer, targets: _Targets, with_entropy: bool) -> Sums:
    apply: Any = _Summed.apply
    operands = (layer.hidden, layer.weight, layer.bias)
    return Sums(*apply(*operands, targets, torch.is_grad_enabled(), with_entropy))


class _Summed(torch.autograd.Function):
    """The objective that the targets stand for; see `_Targets`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        targets: _Targets,
        recording: bool,
        with_entropy: bool,
    ) -> tuple[Tensor, ...]:
        layer = Layer(hidden, weight, bias).operands()
        needed = [recording and needs_grad for needs_grad in ctx.needs_input_grad[:3]]
        # Autocast determines the dtype of the operands, but not of anything computed from them.
        with torch.autocast(hidden.device.type, enabled=False):
            gradients, (losses, *others) = _sums_and_gradients(layer, needed, targets, with_entropy)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
        ctx.save_for_backward(*gradients.kept(ctx.dtypes))
        sums = [values.sum() for values in others]
        ctx.mark_non_differentiable(*sums)
        return losses.sum(), *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place, as the weight's gradient is large; PyTorch refuses a second backward pass.
        scaled = (
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


class _Targets(NamedTuple):
    """What is learned at N positions, none of which has a gradient.

    The objective is `topk-tail`; `topk-renormalized` if the tail is None; a plugin's if there is
    one, and else `hard-gate` if there are labels.
    """

    token_ids: Tensor  # (N, k)
    probabilities: Tensor  # (N, k)
    tail: Tensor | None  # (N,)
    is_label: Tensor | None = None  # (N, k)
    weights: Tensor | None = None  # (N,) with which a plugin's losses are multiplied
    losses_of: LossesOf | None = None  # a plugin's losses

    def rows(self, chunk: slice, probabilities: Tensor) -> _Targets:
        """Return the positions of a chunk, whose probabilities are given in the wanted dtype."""
        tail, is_label, weights = (
            None if part is None else part[chunk]
            for part in (self.tail, self.is_label, self.weights)
        )
        dtype = probabilities.dtype
        return self._replace(
            token_ids=self.token_ids[chunk],
            probabilities=probabilities,
            tail=None if tail is None else tail.to(dtype),
            is_label=is_label,
            weights=None if weights is None else weights.to(dtype),
        )

    def losses(self, student: StudentView) -> Tensor:
        """Return the plugin's weighted losses, (N,)."""
        assert self.losses_of is not None and self.tail is not None
        losses = self.losses_of(student, TargetView(self.probabilities, self.tail, self.is_label))
        return losses if self.weights is None else losses * self.weights


def _sums_and_gradients(
    layer: Layer, needed: list[bool], targets: _Targets, with_entropy: bool
) -> tuple[_Gradients, tuple[Tensor, ...]]:
    """Return gradients, and the four values of `Sums` of each position, (N,), chunk by chunk."""
    token_ids, probabilities, tail, is_label, _, losses_of = targets
    gradients = _Gradients(layer, needed)
    losses = layer.hidden.new_zeros(len(probabilities), dtype=gradients.wide)
    masses, entropies, from_label = (torch.zeros_like(losses) for _ in range(3))
    chunk_rows = CHUNK_ROWS.get(probabilities.device.type, ACCELERATOR_CHUNK_ROWS)
    for chunk, logits in layer.chunks(chunk_rows):
        ids, p = token_ids[chunk], probabilities[chunk].to(logits.dtype)
        scores = logits.gather(-1, ids)
        log_others, total = readout.log_sum_(logits.scatter_(-1, ids, -torch.inf))
        log_z = torch.logaddexp(torch.logsumexp(scores, -1), log_others)
        student = StudentView(scores - log_z[:, None], log_others - log_z)
        masses[chunk] = student.log_q.exp().sum(-1)
        if with_entropy:
            entropies[chunk] = _entropy(logits, total, student)
        if losses_of is not None:
            losses[chunk], slope = _plugin_losses(student, targets.rows(chunk, p))
            if gradients.any_needed:
                gradients.add(chunk, _of_view_(logits, total, student, ids, slope))
        elif tail is None:
            losses[chunk] = objectives.topk_renormalized(scores, p)
            gradients.add_sparse(chunk, ids, _in_k(torch.log_softmax(scores, -1), p, p.sum(-1)))
        else:
            t = tail[chunk].to(p.dtype)
            if is_label is not None:
                p, t, from_label[chunk] = objectives.gated(student.log_q, p, t, is_label[chunk])
            losses[chunk] = objectives.topk_tail(student, p, t)
            if gradients.any_needed:
                gradients.add(chunk, _topk_tail_(logits, total, student, ids, p, t))
    return gradients, (losses, masses, entropies, from_label)


def _plugin_losses(student: StudentView, targets: _Targets) -> tuple[Tensor, StudentView]:
    """Return a plugin's losses, (R,), and the gradients of their sum."""
    with torch.enable_grad():
        leaves = StudentView(*(part.detach().requires_grad_() for part in student))
        losses = targets.losses(leaves)
        slopes = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
    is_empty = student.log_rest == -torch.inf  # the probability of no token has no gradient
    return losses.detach(), StudentView(slopes[0], slopes[1].masked_fill(is_empty, 0.0))


def _of_view_(
    others: Tensor, total: Tensor, student: StudentView, ids: Tensor, slope: StudentView
) -> Tensor:
    """Turn exponentials (R, V) of the other tokens, which sum to `total`, into the gradient.

    Args:
        others: exponentials of the other tokens, 0 at the k tokens.
        total: their sums, (R,).
        student: the student at R positions.
        ids: the k tokens, (R, k).
        slope: the gradients with respect to both parts of `student`.
    """
    sum_of_slopes = slope.log_q.sum(-1) + slope.log_rest  # (R,)
    outside = slope.log_rest - sum_of_slopes * student.log_rest.exp()
    share = torch.where(total > 0, outside / total, 0.0)
    inside = slope.log_q - sum_of_slopes[:, None] * student.log_q.exp()
    return others.mul_(share[:, None]).scatter_(-1, ids, inside)


def _entropy(others: Tensor, total: Tensor, student: StudentView) -> Tensor:
    """Return the student's entropies (R,) from exponentials (R, V) that sum to `total`.

    With s the softmax over the other tokens, the entropy is that of (k tokens, the rest) plus
    (1 - Q) times the entropy of s, which is log(total) - sum(e log e) / total.
    """
    sums = torch.stack([torch.special.xlogy(row, row).sum() for row in others])  # no second (R, V)
    inside = torch.where(total > 0, total.log() - sums / total, 0.0)
    rest = student.log_rest.exp()
    coarse = torch.special.entr(student.log_q.exp()).sum(-1) + torch.special.entr(rest)
    entropy: Tensor = coarse + rest * inside
    return entropy


def _topk_tail_(
    others: Tensor, total: Tensor, student: StudentView, ids: Tensor, p: Tensor, tail: Tensor
) -> Tensor:
    """Turn exponentials (R, V) of the other tokens, which sum to `total`, into the gradient."""
    mass = p.sum(-1) + tail  # (R,)
    outside = mass * student.log_rest.exp() - tail
    share = torch.where(total > 0, outside / total, 0.0)  # total is 0 without other tokens
    return others.mul_(share[:, None]).scatter_(-1, ids, _in_k(student.log_q, p, mass))


def _in_k(log_q: Tensor, probabilities: Tensor, mass: Tensor) -> Tensor:
    return mass[:, None] * log_q.exp() - probabilities


class _Gradients:
    """Gradients of the summed loss with respect to a layer's operands, accumulated over chunks.

    They accumulate in float32. The products run in the dtype of the forward pass, except for
    float16: its range is too small for gradients until the backward pass provides their scale.
    """

    def __init__(self, layer: Layer, needed: list[bool]) -> None:
        dtype = layer.weight.dtype
        self.any_needed = any(needed)
        self.wide = torch.promote_types(dtype, torch.float32)
        self._dtype = self.wide if dtype == torch.float16 else dtype
        self._inputs = layer.hidden.to(self._dtype)
        self._rows = layer.weight.to(self._dtype) if needed[0] else layer.weight
        operands = (layer.hidden, layer.weight, layer.bias)
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(operand, dtype=self.wide) if need and operand is not None else None
            for operand, need in zip(operands, needed, strict=True)
        )

    def add(self, chunk: slice, logits: Tensor) -> None:
        """Add the contribution of a chunk's gradient with respect to its logits, (R, V)."""
        if self.bias is not None:
            self.bias += logits.sum(0)
        narrow = logits.to(self._dtype)
        if self.hidden is not None:
            self.hidden[chunk] = narrow @ self._rows
        if self.weight is not None and self._dtype == self.wide:
            self.weight.addmm_(narrow.T, self._inputs[chunk])
        elif self.weight is not None:
            self.weight += narrow.T @ self._inputs[chunk]

    def add_sparse(self, chunk: slice, ids: Tensor, logits: Tensor) -> None:
        """Add the contribution of a gradient (R, k) with respect to the logits of `ids` (R, k)."""
        if self.bias is not None:
            self.bias.index_add_(0, ids.flatten(), logits.flatten().to(self.wide))
        for rank in range(ids.shape[-1]):  # (R, k, D) at once could be larger than the logits
            token, slope = ids[:, rank], logits[:, rank, None]
            if self.hidden is not None:
                self.hidden[chunk] += slope * self._rows[token]
            if self.weight is not None:
                self.weight.index_add_(0, token, (slope * self._inputs[chunk]).to(self.wide))

    def kept(self, dtypes: tuple[torch.dtype, ...]) -> list[Tensor | None]:
        """Return the gradients in the operands' dtypes; float16 is converted after scaling."""
        return [
            gradient if gradient is None or dtype == torch.float16 else gradient.to(dtype)
            for gradient, dtype in zip((self.hidden, self.weight, self.bias), dtypes, strict=True)
        ]
