"""What a long context costs: CPU seconds and memory of one sample of 512 to 4,096 tokens.

    python benchmarks/context.py [--contexts 512 1024 2048 4096] [--repeats 3]

One sample of random tokens, the second half supervised, is extracted and trained on (`topk-tail`,
forward and backward, without the optimizer). CPU seconds are summed over the threads, so that other
work on the machine disturbs them little. Memory is the increase of the resident peak of a fresh
process over the loaded model; in training it includes the gradients of all weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch

import measure
import shapes
from firstcli.data.encoding import EncodedSample
from firstcli.models import readout
from firstcli.stages import scoring
from firstcli.training import batches, objective_forward
from firstcli.training.soft_targets import SoftTargets
from shapes import SMALL

CONTEXTS = (512, 1024, 2048, 4096)
WORK = ("extraction", "training", "training, activation checkpointing")


def sample(tokens: int) -> EncodedSample:
    """Draw a sample whose second half is supervised."""
    ids = np.random.default_rng(0).integers(0, SMALL.vocabulary, tokens, dtype=np.int32)
    return EncodedSample("s", ids, tokens // 2, None)


def drawn_soft_targets(count: int) -> SoftTargets:
    """Draw the soft targets of N positions."""
    ids = np.tile(np.arange(shapes.TOP_K, dtype=np.int32), (count, 1))
    p = np.full((count, shapes.TOP_K), 0.9 / shapes.TOP_K, np.float32)
    return SoftTargets(ids, p, np.full(count, 0.1, np.float32), np.full(count, 0.9, np.float32))


def prepare(work: str, tokens: int) -> Callable[[], None]:
    """Return a function that does one kind of work on one sample."""
    measure.limit_threads()
    model = replace(SMALL, context=tokens).make()
    row = sample(tokens)
    if work == "extraction":
        reader = readout.Reader(model)

        @torch.inference_mode()
        def extract() -> None:
            scoring.top_k_of(reader, [row], shapes.TOP_K, SMALL.vocabulary)

        return extract
    model.train()
    if work != "training":
        model.activation_checkpointing_enable({"use_reentrant": False})
    objective_forward.install_objective(model, "topk-tail")
    soft_targets = drawn_soft_targets(len(row.targets))
    batch = batches.TrainingBatches([row], lambda _: soft_targets)[[0]]
    del batch["samples"]

    def train() -> None:
        model.zero_grad()
        model(**batch)["loss"].backward()

    return train


def cells(work: str, tokens: int, repeats: int) -> list[str]:
    """Measure one kind of work on a sample: its CPU seconds, and its memory beyond the model."""
    run = prepare(work, tokens)
    megabytes = measure.peak_of(run)  # which also warms up
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)
    return [f"{median(seconds):.3g} s", f"{megabytes:.0f} MB"]


def main() -> None:
    """Print a Markdown table, one line per context."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    headings = ["tokens", *(f"{work}: {unit}" for work in WORK for unit in ("time", "memory"))]
    rows = []
    for tokens in chosen.contexts:
        row = [f"{tokens:,}"]
        for work in WORK:
            row += measure.in_child(cells, work, tokens, chosen.repeats)
        rows.append(row)
    print(measure.table(headings, rows))


if __name__ == "__main__":
    main()
