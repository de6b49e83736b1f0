"""The objective alone, forward and backward, against the same objective from dense logits.

    python benchmarks/objective.py [--repeats 5]

N = 1024 positions, d = 512, V = 64k, top 5 with tail. Memory is the increase of the resident
peak of a fresh process over its hidden states, weight and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

import measure
from firstcli.models import readout
from firstcli.training import fused_objectives
from measure import Comparison, Report

N, D, V, K = 1024, 512, 64_000, 5
CHUNKS = [64, 128, 256, 512]  # rows of logits

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fused_loss(
    hidden: Tensor, weight: Tensor, ids: Tensor, probabilities: Tensor, tail: Tensor
) -> Tensor:
    """Compute the loss as training does."""
    return fused_objectives.topk_tail(
        readout.Layer(hidden, weight, None), ids, probabilities, tail
    ).loss


def dense_loss(
    hidden: Tensor, weight: Tensor, ids: Tensor, probabilities: Tensor, tail: Tensor
) -> Tensor:
    """Compute what every dense implementation needs: log_softmax and gather."""
    log_q = torch.log_softmax(hidden @ weight.T, -1).gather(-1, ids)
    return -(probabilities * log_q).sum()


OBJECTIVES: dict[str, Objective] = {"fused": fused_loss, "dense": dense_loss}


def make(objective: str, chunk: int | None = None) -> Callable[[], None]:
    """Return a function that runs an objective forward and backward on random tensors."""
    measure.limit_threads()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, requires_grad=True)
    weight = (torch.randn(V, D, generator=generator) / D**0.5).requires_grad_()
    ids = torch.rand(N, V // 8, generator=generator).topk(K).indices
    p = torch.softmax(torch.randn(N, K + 1, generator=generator), -1)

    default = fused_objectives.CHUNK_ROWS["cpu"]

    def work() -> None:
        fused_objectives.CHUNK_ROWS["cpu"] = chunk or default
        hidden.grad = weight.grad = None
        OBJECTIVES[objective](hidden, weight, ids, p[:, :K], p[:, K]).backward()
        fused_objectives.CHUNK_ROWS["cpu"] = default

    return work


def peak(objective: str, chunk: int | None = None) -> float:
    """Measure the peak memory of one computation in MB."""
    return measure.peak_of(make(objective, chunk))


def report(repeats: int) -> Report:
    """Measure time, memory, and the effect of the chunk size."""
    chunked = {f"{chunk}": measure.clocked(make("fused", chunk)) for chunk in CHUNKS}
    contenders = {name: measure.clocked(make(name)) for name in OBJECTIVES} | chunked
    times = measure.in_turns(contenders, repeats)
    peaks = {name: [measure.in_child(peak, name) for _ in range(3)] for name in OBJECTIVES}
    what, against = f"objective, N = {N}, d = {D}, V = 64k", "dense logits, log_softmax, gather"
    chunks = [
        [
            str(chunk),
            f"{chunk * 4 * V / 2**20:.0f}",
            f"{median(measure.ratios(times[str(chunk)], times['dense'])):.3g}",
            f"{measure.in_child(peak, 'fused', chunk):.0f}",
        ]
        for chunk in CHUNKS
    ]
    return Report(
        [
            Comparison(
                f"{what}: time",
                against,
                measure.ratios(times["fused"], times["dense"]),
                1.05,
                figures=f"{median(times['fused']):.2f} and {median(times['dense']):.2f} s",
            ),
            Comparison(
                f"{what}: memory",
                against,
                measure.ratios(peaks["fused"], peaks["dense"]),
                0.38,
                figures=f"{median(peaks['fused']):.0f} and {median(peaks['dense']):.0f} MB",
            ),
        ],
        [
            "The objective by chunk size:",
            measure.table(["rows", "MiB of logits", "time relative to dense", "extra MB"], chunks),
        ],
    )


if __name__ == "__main__":
    measure.main(report, __doc__)
