# ruff: noqa: TID253
"""The share of a training step that is spent waiting for data.

    python benchmarks/waiting.py path/to/checkpoint

Distils random text of the instruction shape (~100 prompt and ~150 response tokens, batches of 32)
into a model, from knowledge on disk. Batches are made in the process that trains, so that the time
in `Collate` is all time spent waiting; Trainer's workers would hide it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from firstcli import batches, knowledge, training, training_arguments
from firstcli.console import Console
from firstcli.encoding import Encoded
from firstcli.knowledge import Knowledge, TopK
from firstcli.recipe import Arm, Training, recalibrator_of
from firstcli.teaching import Lessons
from firstcli.token_rows import TokenRows

SAMPLES, SHARD, STEPS, TOP_K = 4096, 1024, 12, 5


class Timed:
    """Collate with a clock."""

    def __init__(self, rows: Sequence[Encoded], lessons: batches.Teacher | None) -> None:
        self._collate = batches.Collate(rows, lessons)

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        began = time.perf_counter()
        batch = self._collate(indices)
        SPANS.append((began, time.perf_counter()))
        return batch


SPANS: list[tuple[float, float]] = []


def some_rows(vocabulary: int) -> Iterator[Encoded]:
    """Yield samples of 60 to 140 prompt and 90 to 210 response tokens."""
    draw = np.random.default_rng(0)
    for number in range(SAMPLES):
        start, count = int(draw.integers(60, 141)), int(draw.integers(90, 211))
        ids = draw.integers(0, vocabulary, start + count, dtype=np.int32)
        yield Encoded(f"s{number}", ids, start, None)


def write_knowledge(folder: Path, rows: Sequence[Encoded], vocabulary: int) -> None:
    """Write a made-up teacher's top k."""
    draw = np.random.default_rng(1)
    facts = {
        "top_k": TOP_K,
        "precision": "standard",
        "shards": -(-len(rows) // SHARD),
        "teacher": "made up",
        "tokenizer": "made up",
    }
    for index, first in enumerate(range(0, len(rows), SHARD)):
        shard, known = rows[first : first + SHARD], []
        for row in shard:
            shape = (len(row.targets), TOP_K)
            p = -np.sort(-draw.dirichlet(np.ones(TOP_K + 1), shape[0])[:, :TOP_K], axis=1)
            ids = np.argsort(draw.random((shape[0], 64)), axis=1)[:, :TOP_K] * (vocabulary // 64)
            known.append(
                TopK(
                    ids.astype(np.int32),
                    np.log(p).astype(np.float32),
                    np.log1p(-p.sum(axis=1)).astype(np.float32),
                )
            )
        knowledge.write_shard(knowledge.shard_path(folder, index), shard, known, facts)


def main() -> None:
    """Train some steps and print the median step, the median wait, and the share of all waits."""
    model: Any = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = model.config.get_text_config().vocab_size
    arm = Arm.model_validate(
        {"recalibrator": {"name": "temperature-scaling", "options": {"temperature": 0.5}}}
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        rows = TokenRows(some_rows(vocabulary), folder)
        write_knowledge(folder, rows, vocabulary)
        lessons = Lessons(arm, recalibrator_of(arm), Knowledge(folder), rows)
        trainer = {"max_steps": STEPS, "save_strategy": "no", "logging_steps": STEPS}
        settings = Training(batch_size=32, epochs=1, learning_rate=1e-4)
        args = training_arguments.arguments(folder / "run", settings, trainer, 0, device)
        vars(training)["Collate"] = Timed
        training.train(model, rows, lessons, "topk-tail", args, Console(quiet=True), "training")
    starts = np.array([began for began, _ in SPANS])
    waits = np.array([ended - began for began, ended in SPANS])[1:-1]
    steps = np.diff(starts)[1:]
    print(
        json.dumps(
            {
                "step_ms": round(1e3 * float(np.median(steps)), 2),
                "wait_ms": round(1e3 * float(np.median(waits)), 2),
                "share": round(float(waits.sum() / steps.sum()), 5),
            }
        )
    )


if __name__ == "__main__":
    main()
