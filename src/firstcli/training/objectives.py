"""The objectives that a student minimises at each supervised position: pure functions on tensors.

p^ are the soft targets for the teacher's k tokens and M is their sum; q are the student's
probabilities of the same tokens and Q is their sum. Both softmaxes run over the whole vocabulary.

    topk-tail           sum p^ log(p^ / q) + (1 - M) log((1 - M) / (1 - Q))
    topk-renormalized   sum (p^/M) log((p^/M) / (q/Q))
    labels              -log q(true token)
    hard-gate           labels where q(true token) < p^(true token), else topk-tail
    dac-kl              topk-tail over the H likeliest of the k tokens alone

`topk-tail` is the KL divergence between (k + 1)-outcome coarse-grainings; with M = 1 it is Eq. 5 of
FIRST (arXiv 2408.12168) on the student's unnormalised top-k probabilities. Logits are float32.

`hard-gate` is Hard Gate Knowledge Distillation (Lee et al. 2022, arXiv 2210.12427), by token: the
teacher gauges the student's confidence in the true token. A student that is less sure of it learns
the label, and one that is as sure or surer learns the teacher's probabilities. The gate has no
gradient. A true token outside the k tokens has an unknown p^, which counts as 0.

`dac-kl` learns only where the teacher's distribution is dense, in the spirit of the adaptive
clipping of Liu et al. (2024, arXiv 2407.10068). H is the smallest number of the likeliest tokens
whose p^ sum to the threshold; if all k do not, it is k. The other tokens join the rest:

    dac-kl              sum over H of p^ log(p^ / q) + (1 - P_H) log((1 - P_H) / (1 - Q_H))

There, a small network predicts which quantiles of the distribution are kept, at each position, and
is trained with the student. Here, the threshold is fixed and adapts to a position by H alone. The
rest is one outcome instead of being left out, because a distribution over one token teaches
nothing. The paper's further loss, between the neighbouring tokens of a span, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from firstcli.api import StudentView


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


def gated(
    log_q: Tensor, probabilities: Tensor, tail: Tensor, is_label: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace the soft targets of positions that learn from their label by the label.

    `topk_tail` of the result is the objective `hard-gate`, because that of a label is -log q.

    Args:
        log_q: the student's log-probabilities of the k tokens, (N, k).
        probabilities: p^, (N, k).
        tail: 1 - M, (N,).
        is_label: whether each of the k tokens is the true one, (N, k); all false without a label.

    Returns:
        Probabilities (N, k), tail (N,), and whether each position learns from its label, (N,).
    """
    is_less_sure = is_label & (log_q.detach().exp() < probabilities)
    from_label = is_less_sure.any(-1)
    target = torch.where(from_label[:, None], is_less_sure.to(probabilities.dtype), probabilities)
    return target, torch.where(from_label, torch.zeros_like(tail), tail), from_label


def labels(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with hard labels, (N,)."""
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def clipped(
    student: StudentView, probabilities: Tensor, tail: Tensor, threshold: float
) -> tuple[StudentView, Tensor, Tensor]:
    """Let all but the likeliest of the k tokens join the rest, for the objective `dac-kl`.

    `topk_tail` of the result is that objective. The order of the k tokens does not matter; of
    equally likely ones, the first are kept.

    Args:
        student: the student at N positions.
        probabilities: p^, (N, k).
        tail: 1 - M, (N,).
        threshold: what the kept tokens' p^ sum to at least, if the k tokens' do.

    Returns:
        The student, probabilities (N, k) and tail (N,), as if the other tokens were not among k.
    """
    ranked, order = probabilities.double().sort(stable=True, dim=-1, descending=True)
    is_needed = ranked.cumsum(-1) - ranked < threshold  # what the tokens before it sum to
    kept = torch.zeros_like(is_needed).scatter(-1, order, is_needed)
    none = torch.zeros((), dtype=student.log_q.dtype, device=student.log_q.device)
    outside = torch.where(kept, -torch.inf, student.log_q)
    outside = torch.cat([student.log_rest[:, None], outside], -1)
    # A logsumexp of nothing has no gradient.
    is_empty = (outside == -torch.inf).all(-1)
    log_rest = torch.logsumexp(torch.where(is_empty[:, None], none, outside), -1)
    return (
        StudentView(
            torch.where(kept, student.log_q, none), torch.where(is_empty, -torch.inf, log_rest)
        ),
        torch.where(kept, probabilities, torch.zeros_like(probabilities)),
        tail + torch.where(kept, torch.zeros_like(probabilities), probabilities).sum(-1),
    )
