"""Extraction against the teacher's bare forward pass and against a loop that writes JSONL.

    python benchmarks/extraction.py [--repeats 5]

firstcli's time includes everything that the stage does for a shard: batches, forward passes, top k,
and writing the file. The bare forward pass gets the same batches, already padded, and computes
hidden states and the logits of the supervised positions in one product.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
import shapes
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import shards
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.stages import scoring
from firstcli.training.batches import TrainingBatches
from measure import Comparison, Report

SAMPLES = {"questions": 256, "instructions": 32}
LOOP_SAMPLES = {"questions": 16, "instructions": 4}  # fewer: the loop is slow


@torch.inference_mode()
def extract_shard(
    reader: readout.Reader,
    rows: Sequence[EncodedSample],
    limit: int,
    path: Path,
    batching: inference.Batching = "padded",
) -> None:
    """Process a shard as `stages.extract` does."""
    known: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], scoring.EXTRACTION_TOKENS):
        chosen = [rows[i] for i in batch]
        known |= scoring.top_k_of(reader, chosen, shapes.TOP_K, limit, batching)
    format = shards.StoreFormat(shapes.TOP_K, "standard", shards=1)
    shards.write_shard(path, rows, [known[row.id] for row in rows], format)


@torch.inference_mode()
def forward(model: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """Run the trunk, and the output layer at the supervised positions."""
    for batch in batches:
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        model.lm_head(hidden[batch["rows"], batch["columns"]])


@torch.inference_mode()
def write_lines(model: Any, rows: Sequence[EncodedSample], path: Path) -> None:
    """Extract one sample at a time, from all logits, with one dictionary per position."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            logits = model(torch.from_numpy(row.input_ids).long()[None]).logits[0]
            for position in range(row.start - 1, len(row.input_ids) - 1):
                top = torch.softmax(logits[position], -1).topk(shapes.TOP_K)
                pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                line = {"id": row.id, "position": position, "top": {str(id): p for id, p in pairs}}
                file.write(json.dumps(line) + "\n")


def compare(shape: shapes.Model, text: shapes.Text, repeats: int, folder: Path) -> list[Comparison]:
    """Measure one model on one kind of text."""
    model = shape.make()
    rows = text.rows(SAMPLES[text.name], shape.vocabulary)
    loop_rows = rows[: LOOP_SAMPLES[text.name]]
    reader = readout.Reader(model)
    collated = TrainingBatches(rows, None)
    lengths = [len(row.input_ids) for row in rows]
    batches = [collated[batch] for batch in inference.batches(lengths, scoring.EXTRACTION_TOKENS)]
    shard, lines = folder / "shard-00000.parquet", folder / "lines.jsonl"
    durations = measure.in_turns(
        {
            "first": measure.clocked(lambda: extract_shard(reader, rows, shape.vocabulary, shard)),
            "bare": measure.clocked(lambda: forward(model, batches)),
            "lines": measure.clocked(lambda: write_lines(model, loop_rows, lines)),
        },
        repeats,
    )
    count, loop_count = shapes.positions(rows), shapes.positions(loop_rows)
    rates = {
        name: [(loop_count if name == "lines" else count) / seconds for seconds in times]
        for name, times in durations.items()
    }
    median = {name: f"{statistics.median(rate):.0f}" for name, rate in rates.items()}
    what = f"extraction, {shape.name}, {text.name}"
    figures = f"{median['first']} and {{}} positions/s"
    return [
        Comparison(
            what,
            "bare forward pass",
            measure.ratios(rates["first"], rates["bare"]),
            0.9,
            at_least=True,
            figures=figures.format(median["bare"]),
        ),
        Comparison(
            what,
            "JSONL loop",
            measure.ratios(rates["first"], rates["lines"]),
            10,
            at_least=True,
            figures=figures.format(median["lines"]),
        ),
    ]


def report(repeats: int) -> Report:
    """Measure both models on both kinds of text."""
    results = Report()
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes.MODELS:
            for text in shapes.TEXTS:
                results.rows.extend(compare(shape, text, repeats, Path(name)))
    return results


if __name__ == "__main__":
    measure.main(report, __doc__)
