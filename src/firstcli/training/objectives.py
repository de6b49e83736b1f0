"""The objectives that a student minimises at each supervised position: pure functions on tensors.

p^ are the soft targets for the teacher's k tokens and M is their sum; q are the student's
probabilities of the same tokens and Q is their sum. Both softmaxes run over the whole vocabulary.

    topk-tail           sum p^ log(p^ / q) + (1 - M) log((1 - M) / (1 - Q))
    topk-renormalized   sum (p^/M) log((p^/M) / (q/Q))
    labels              -log q(true token)

`topk-tail` is the KL divergence between (k + 1)-outcome coarse-grainings; with M = 1 it is Eq. 5 of
FIRST (arXiv 2408.12168) on the student's unnormalised top-k probabilities. Logits are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StudentView(NamedTuple):
    """What the objectives need from the student at N positions."""

    log_q: Tensor  # (N, k) log-probabilities of the teacher's k tokens
    log_rest: Tensor  # (N,) log of the probability of all other tokens; -inf if there are none


def student_view(logits: Tensor, token_ids: Tensor) -> StudentView:
    """Extract the k tokens (N, k) and the mass of all other tokens from logits (N, V).

    The mass outside is a logsumexp over the other tokens, never 1 - Q: in float32 that difference
    is wrong below 1e-6 and can become negative below 1e-7.
    """
    log_z = torch.logsumexp(logits, dim=-1)  # (N,)
    log_q = logits.gather(-1, token_ids) - log_z[:, None]
    if token_ids.shape[-1] == logits.shape[-1]:  # a logsumexp of no tokens has no gradient
        return StudentView(log_q, torch.full_like(log_z, -torch.inf))
    others = logits.scatter(-1, token_ids, -torch.inf)
    return StudentView(log_q, torch.logsumexp(others, dim=-1) - log_z)


def topk_tail(student: StudentView, probabilities: Tensor, tail: Tensor) -> Tensor:
    """KL divergence between (k tokens, the rest) of soft targets and student, (N,).

    `probabilities` are p^, (N, k); `tail` is 1 - M, (N,), exactly 0 with `mass: one`.
    """
    tokens: Tensor = (
        torch.special.xlogy(probabilities, probabilities) - probabilities * student.log_q
    ).sum(-1)
    # Without a tail, log_rest may be -inf, and 0 * -inf is NaN.
    log_rest = torch.where(tail > 0, student.log_rest, torch.zeros_like(student.log_rest))
    outside: Tensor = torch.special.xlogy(tail, tail) - tail * log_rest
    return tokens + outside


def topk_renormalized(scores: Tensor, target: Tensor) -> Tensor:
    """KL divergence between both distributions renormalised over the k tokens, (N,).

    `scores` are the student's logits or log-probabilities of the k tokens, (N, k); `target` is
    p^/M, (N, k). Q is free: the student's mass on the k tokens does not matter.
    """
    log_ratio = torch.log_softmax(scores, dim=-1)
    divergence: Tensor = torch.special.xlogy(target, target) - target * log_ratio
    return divergence.sum(-1)


def labels(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with hard labels, (N,)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
