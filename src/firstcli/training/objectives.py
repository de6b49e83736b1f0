"""What a student minimises at each supervised position: pure functions on tensors.

With p^ the taught probabilities of the teacher's k tokens, M their sum, q the student's
probabilities of the same tokens and Q their sum (both from softmaxes over the whole vocabulary):

    topk-tail           sum p^ log(p^ / q) + (1 - M) log((1 - M) / (1 - Q))
    topk-renormalized   sum (p^/M) log((p^/M) / (q/Q))
    labels              -log q(true token)

`topk-tail` is the KL between the (k + 1)-outcome coarse-grainings; with M = 1 it is Eq. 5 of FIRST
(arXiv 2408.12168) with the student's probabilities as retrieved. All logits are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class StudentView(NamedTuple):
    """What the objectives need to know of the student at N positions."""

    log_q: Tensor  # (N, k) log-probabilities of the teacher's k tokens
    log_rest: Tensor  # (N,) log of the probability of all other tokens; -inf if there are none


def student_view(logits: Tensor, token_ids: Tensor) -> StudentView:
    """Read the k tokens and the mass of all the others off logits (N, V).

    The mass outside is a logsumexp over the other tokens, never 1 - Q: in float32 that difference
    is wrong below 1e-6 and can turn negative below 1e-7.
    """
    log_z = torch.logsumexp(logits, dim=-1)  # (N,)
    log_q = logits.gather(-1, token_ids) - log_z[:, None]
    if (
        token_ids.shape[-1] == logits.shape[-1]
    ):  # no other tokens; a logsumexp of them has no gradient
        return StudentView(log_q, torch.full_like(log_z, -torch.inf))
    others = logits.scatter(-1, token_ids, -torch.inf)
    return StudentView(log_q, torch.logsumexp(others, dim=-1) - log_z)


def topk_tail(logits: Tensor, token_ids: Tensor, probabilities: Tensor, tail: Tensor) -> Tensor:
    """KL between (k tokens, the rest) of teacher and student, (N,).

    Args:
        logits: the student's, (N, V), float32 or float64.
        token_ids: the teacher's k tokens, (N, k).
        probabilities: p^ = M * target, (N, k).
        tail: 1 - M, (N,); exactly 0 with `mass: one`.
    """
    return topk_tail_of(student_view(logits, token_ids), probabilities, tail)


def topk_tail_of(student: StudentView, probabilities: Tensor, tail: Tensor) -> Tensor:
    """`topk_tail` from what was already read off the student's logits."""
    tokens: Tensor = (
        torch.special.xlogy(probabilities, probabilities) - probabilities * student.log_q
    ).sum(-1)
    # Where nothing is taught outside, log_rest may be -inf, and 0 * -inf is no number.
    log_rest = torch.where(tail > 0, student.log_rest, torch.zeros_like(student.log_rest))
    outside: Tensor = torch.special.xlogy(tail, tail) - tail * log_rest
    return tokens + outside


def topk_renormalized(logits: Tensor, token_ids: Tensor, target: Tensor) -> Tensor:
    """KL between both distributions renormalised over the k tokens, (N,); leaves Q free.

    Args:
        logits: the student's, (N, V).
        token_ids: the teacher's k tokens, (N, k).
        target: rows sum to 1, (N, k).
    """
    return topk_renormalized_of(logits.gather(-1, token_ids), target)


def topk_renormalized_of(scores: Tensor, target: Tensor) -> Tensor:
    """`topk_renormalized` from the k tokens' logits or log-probabilities, (N, k)."""
    log_ratio = torch.log_softmax(scores, dim=-1)
    divergence: Tensor = torch.special.xlogy(target, target) - target * log_ratio
    return divergence.sum(-1)


def labels(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with hard labels, (N,)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
