# ruff: noqa: TID253
"""What the output layer costs: the fused objective and extraction, against the plain ways.

    python benchmarks/objective.py objective [--repeat 5] [--threads 2]
    python benchmarks/objective.py extraction [--vocabulary 32000] [--layers 4] [--repeat 5]

Times are taken in turns, memory in processes of its own: the peak above what was there before.
With one thread the processor's time is taken instead of the clock's, which a busy machine disturbs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from firstcli import fused, heads, objectives

N, D, V, K = 1024, 512, 65536, 5
ROWS = (64, 128, 256, 512)
Work = Callable[[], Any]


def objective_works() -> dict[str, Work]:
    """Return each way to compute an objective's loss and gradients, on the same tensors."""
    torch.manual_seed(0)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(V, D).mul_(0.05).requires_grad_()
    token_ids = torch.randint(0, V // K, (N, K)) * K + torch.arange(K)
    taught = torch.rand(N, K)
    taught *= 0.9 / taught.sum(-1, keepdim=True)
    tail = torch.full((N,), 0.1)

    def backward(loss: Tensor) -> None:
        hidden.grad = weight.grad = None
        (loss / N).backward()

    def dense() -> None:
        log_q = torch.log_softmax(hidden @ weight.T, -1)
        backward(-(taught * log_q.gather(-1, token_ids)).sum())

    def fused_topk_tail(rows: int) -> None:
        fused.ROWS["cpu"] = rows
        backward(fused.topk_tail(heads.Layer(hidden, weight, None), token_ids, taught, tail).loss)

    return {
        "dense log_softmax + gather": dense,
        "plain topk-tail": lambda: backward(
            objectives.topk_tail(hidden @ weight.T, token_ids, taught, tail).sum()
        ),
        **{f"fused topk-tail, {n} rows": partial(fused_topk_tail, n) for n in ROWS},
    }


def extraction_works(vocabulary: int, layers: int) -> dict[str, Work]:
    """Return the bare forward pass of 16 texts of 250 tokens, 150 supervised, and extraction."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=D,
        intermediate_size=1376,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    model: Any = LlamaForCausalLM(config).eval()
    reader = heads.Reader(model)
    ids = torch.randint(0, vocabulary, (16, 250), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    rows, columns = torch.arange(16).repeat_interleave(150), torch.arange(99, 249).repeat(16)

    def bare() -> Tensor:
        logits: Tensor = model.lm_head(model.model(ids, attention_mask=mask)[0][rows, columns])
        return logits

    def extraction(at_once: int) -> Tensor:
        heads.READ_ROWS = at_once
        return reader(ids, mask, rows, columns, lambda scores: heads.top_k(scores, K, vocabulary))

    works: dict[str, Work] = {f"extraction, {n} rows": partial(extraction, n) for n in ROWS}
    return {"bare forward": bare, **works}


def seconds(works: dict[str, Work], repeat: int, clock: Callable[[], float]) -> None:
    """Print medians, spread and the ratio to the first, taken in turns after one warm-up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat + 1):
        for name, work in works.items():
            began = clock()
            work()
            found[name].append(clock() - began)
    base = statistics.median(next(iter(found.values()))[1:])
    for name, (_, *times) in found.items():
        median = statistics.median(times)
        print(
            f"| {name} | {median:.2f} s | {min(times):.2f}-{max(times):.2f} | {median / base:.2f} |"
        )


def status(field: str) -> int:
    """Read bytes off what Linux knows of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Print a Markdown table of times, and for the objective one of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["objective", "extraction"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # one way, in this process
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = time.process_time if chosen.threads == 1 else time.perf_counter
    if chosen.what == "extraction":
        with torch.inference_mode():
            seconds(extraction_works(chosen.vocabulary, chosen.layers), chosen.repeat, clock)
        return
    works = objective_works()
    if chosen.memory:
        before = status("VmRSS")
        works[chosen.memory]()
        print(f"| {chosen.memory} | {(status('VmHWM') - before) / 1e6:.0f} MB |")
        return
    seconds(works, chosen.repeat, clock)
    for name in works:
        command = [sys.executable, __file__, "objective", "--memory", name]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
