"""Time that training waits for data, share of padding, and speed of writing and opening shards.

    python benchmarks/data.py [--repeats 5]

Waiting: a small model is distilled on instructions in batches of 32, from knowledge on disk. The
training process makes its own batches, so all time in `TrainingBatches` is waiting time; the
workers of the Trainer would hide it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import measure
import shapes
from firstcli.data.encoded import EncodedStore, IntArray
from firstcli.knowledge import store
from firstcli.knowledge.store import Knowledge
from firstcli.recipe.sections import Training
from firstcli.runtime.console import Console
from firstcli.training import arguments, batches, trainer
from measure import Comparison, Report

SAMPLES, SHARD, BATCH, STEPS = 1024, 256, 32, 6


class Timed(batches.TrainingBatches):
    """`TrainingBatches` with a clock."""

    spans: list[tuple[float, float]] = []  # noqa: RUF012  # there is one instance

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        began = time.perf_counter()
        batch = self[indices]
        self.spans.append((began, time.perf_counter()))
        return batch


def waiting(folder: Path, repeats: int) -> Comparison:
    """Measure the share of a step that making its batch takes, in a few steps per repeat."""
    shape = shapes.SMALL
    model = shape.make()
    rows = EncodedStore(shapes.INSTRUCTION.rows(SAMPLES, shape.vocabulary), folder)
    soft_targets = shapes.soft_targets(folder, rows)
    settings = Training(batch_size=BATCH, epochs=1, learning_rate=1e-5)
    fields = {"max_steps": STEPS, "save_strategy": "no", "logging_steps": 1000}
    device = torch.device("cpu")
    vars(trainer)["TrainingBatches"] = Timed
    shares, waits = [], []
    for _ in range(repeats):
        Timed.spans.clear()
        args = arguments.arguments(folder / "run", settings, fields, 0, device)
        trainer.train(model, rows, soft_targets, "topk-tail", args, Console(quiet=True), "waiting")
        began, ended = np.array(Timed.spans).T
        waits.append(float((ended - began)[1:-1].sum()))
        shares.append(waits[-1] / float(np.diff(began)[1:].sum()))
    each = 1e3 * statistics.median(waits) / (STEPS - 2)
    return Comparison(
        f"waiting for data, {shape.name}, instructions",
        "the whole step",
        shares,
        0.02,
        figures=f"{each:.1f} ms per step of {BATCH} samples",
    )


def alpaca_like(count: int) -> IntArray:
    """Draw lengths: prompts of 60 to 140 tokens, log-normal responses of ~50, at most 512."""
    draw = np.random.default_rng(0)
    response = draw.lognormal(np.log(50), 0.9, count).astype(np.int64) + 2
    return np.asarray(np.minimum(draw.integers(60, 141, count) + response, 512))


def padding() -> Comparison:
    """Compute the share of padding in an epoch, for five seeds."""
    lengths = alpaca_like(52_000)
    ours = [
        batches.padding_share(lengths, batches.MicroBatches(lengths, 64, 32, 1, 0, seed))
        for seed in range(5)
    ]
    order = np.random.default_rng(0).permutation(len(lengths))
    random_batches = order.reshape(-1, 32).tolist()
    at_random = batches.padding_share(lengths, random_batches)
    return Comparison(
        "padding, Alpaca-like lengths, batches of 64 as 32 + 32",
        "all tokens processed",
        ours,
        0.05,
        figures=f"{at_random:.2f} in random batches",
    )


def write_store(folder: Path, repeats: int) -> str:
    """Time writing and opening the store that `waiting` reads."""
    rows = shapes.INSTRUCTION.rows(SAMPLES, shapes.SMALL.vocabulary)
    known = shapes.random_knowledge(rows, shapes.SMALL.vocabulary)
    times = measure.in_turns(
        {
            "written": measure.clocked(lambda: shapes.write_store(folder, rows, known, SHARD)),
            "opened, verified and decoded": measure.clocked(lambda: Knowledge(folder)),
        },
        repeats,
    )
    count = shapes.positions(rows)
    rates = [f"{count / statistics.median(seconds):,.0f} {name}" for name, seconds in times.items()]
    size = store.summary(folder)["bytes_per_position"]
    return (
        f"Knowledge, positions/s: {' and '.join(rates)} ({count:,} positions of random tokens in "
        f"shards of {SHARD} samples, {size:.1f} bytes each)."
    )


def report(repeats: int) -> Report:
    """Measure all three."""
    with tempfile.TemporaryDirectory() as name:
        note = write_store(Path(name), repeats)
        return Report([waiting(Path(name), repeats), padding()], [note])


if __name__ == "__main__":
    measure.main(report, __doc__)
