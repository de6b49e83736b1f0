"""What training waits for data, what it pads, and how fast shards are written and opened.

    python benchmarks/data.py [--repeats 5]

Waiting: a small model is distilled on instructions, batches of 32, from knowledge on disk. Batches
are made in the process that trains, so that the time in `Collate` is all time spent waiting;
Trainer's workers would hide it.
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
from firstcli.data.encoded import EncodedStore
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import store
from firstcli.knowledge.store import Knowledge
from firstcli.recipe.schema import Training
from firstcli.runtime.console import Console
from firstcli.training import arguments, collate, sampling, trainer
from measure import Report, Row

SAMPLES, SHARD, BATCH, STEPS = 1024, 256, 32, 6


class Timed:
    """Collate with a clock."""

    spans: list[tuple[float, float]] = []  # noqa: RUF012  # training makes the only instance

    def __init__(self, rows: Sequence[EncodedSample], lessons: collate.Teacher | None) -> None:
        self._collate = collate.Collate(rows, lessons)

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        began = time.perf_counter()
        batch = self._collate(indices)
        self.spans.append((began, time.perf_counter()))
        return batch


def waiting(folder: Path, repeats: int) -> Row:
    """Train some steps a repeat; the share of the time from batch to batch that making one took."""
    shape = shapes.SMALL
    model = shape.make()
    rows = EncodedStore(shapes.INSTRUCTION.rows(SAMPLES, shape.vocabulary), folder)
    lessons = shapes.lessons(folder, rows)
    settings = Training(batch_size=BATCH, epochs=1, learning_rate=1e-5)
    fields = {"max_steps": STEPS, "save_strategy": "no", "logging_steps": 1000}
    device = torch.device("cpu")
    vars(trainer)["Collate"] = Timed
    shares, waits = [], []
    for _ in range(repeats):
        Timed.spans.clear()
        args = arguments.arguments(folder / "run", settings, fields, 0, device)
        trainer.train(model, rows, lessons, "topk-tail", args, Console(quiet=True), "waiting")
        began, ended = np.array(Timed.spans).T
        waits.append(float((ended - began)[1:-1].sum()))
        shares.append(waits[-1] / float(np.diff(began)[1:].sum()))
    each = 1e3 * statistics.median(waits) / (STEPS - 2)
    return Row(
        f"waiting for data, {shape.name}, instructions",
        "the whole step",
        shares,
        0.02,
        figures=f"{each:.1f} ms a step of {BATCH} samples",
    )


def alpaca_like(count: int) -> sampling.Lengths:
    """Draw lengths: prompts of 60 to 140 tokens, log-normal responses of ~50, 512 at most."""
    draw = np.random.default_rng(0)
    response = draw.lognormal(np.log(50), 0.9, count).astype(np.int64) + 2
    return np.asarray(np.minimum(draw.integers(60, 141, count) + response, 512))


def padding() -> Row:
    """Compute what an epoch pads, of five seeds."""
    lengths = alpaca_like(52_000)
    ours = [
        sampling.padding_share(lengths, sampling.MicroBatches(lengths, 64, 32, 1, 0, seed))
        for seed in range(5)
    ]
    order = np.random.default_rng(0).permutation(len(lengths))
    random_batches = order.reshape(-1, 32).tolist()
    by_chance = sampling.padding_share(lengths, random_batches)
    return Row(
        "padding, Alpaca-like lengths, batches of 64 as 32 + 32",
        "all tokens computed on",
        ours,
        0.05,
        figures=f"{by_chance:.2f} in random batches",
    )


def write_store(folder: Path, repeats: int) -> str:
    """Write the store that `waiting` reads, and open it."""
    rows = shapes.INSTRUCTION.rows(SAMPLES, shapes.SMALL.vocabulary)
    known = shapes.teachings(rows, shapes.SMALL.vocabulary)
    times = measure.in_turns(
        {
            "written": measure.clocked(lambda: shapes.write_store(folder, rows, known, SHARD)),
            "opened, verified and decoded": measure.clocked(lambda: Knowledge(folder)),
        },
        repeats,
    )
    count = shapes.positions(rows)
    rates = [f"{count / statistics.median(found):,.0f} {name}" for name, found in times.items()]
    size = store.summary(folder)["bytes_per_position"]
    return (
        f"Knowledge, positions/s: {' and '.join(rates)} ({count:,} positions of random tokens in "
        f"shards of {SHARD} samples, {size:.1f} bytes each)."
    )


def report(repeats: int) -> Report:
    """Measure it all."""
    with tempfile.TemporaryDirectory() as name:
        note = write_store(Path(name), repeats)
        return Report([waiting(Path(name), repeats), padding()], [note])


if __name__ == "__main__":
    measure.alone(report, __doc__)
