"""Extraction against the teacher's bare forward pass, and against a loop that writes JSONL.

    python benchmarks/extraction.py [--repeats 5]

On firstcli's side is all that the stage does for a shard: cutting it into batches, forward passes,
top k, and writing the file. The bare forward pass sees the same batches, already padded; it makes
hidden states, and the logits of the supervised positions in one product.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import measure
import shapes
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge import store
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.stages import extract
from firstcli.training.collate import Collate
from measure import Report, Row

SAMPLES = {"questions": 256, "instructions": 32}
LOOPED = {"questions": 16, "instructions": 4}  # of these; the loop is slow


@torch.inference_mode()
def extract_shard(
    reader: readout.Reader, rows: Sequence[EncodedSample], limit: int, path: Path
) -> None:
    """Do for a shard what `stages.extract` does."""
    found: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], extract.BATCH_TOKENS):
        found |= extract.top_k_of(reader, [rows[i] for i in batch], shapes.TOP_K, limit)
    format = store.StoreFormat(shapes.TOP_K, "standard", shards=1)
    store.write_shard(path, rows, [found[row.id] for row in rows], format)


@torch.inference_mode()
def forward(model: Any, batches: Sequence[dict[str, Tensor]]) -> None:
    """Run the trunk, and the output layer where positions are supervised."""
    for batch in batches:
        hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        model.lm_head(hidden[batch["rows"], batch["columns"]])


@torch.inference_mode()
def write_lines(model: Any, rows: Sequence[EncodedSample], path: Path) -> None:
    """Do it position by position: one sample at a time, all logits, a dictionary each."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            logits = model(torch.from_numpy(row.input_ids).long()[None]).logits[0]
            for at in range(row.start - 1, len(row.input_ids) - 1):
                top = torch.softmax(logits[at], -1).topk(shapes.TOP_K)
                pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                line = {"id": row.id, "position": at, "top": {str(id): p for id, p in pairs}}
                file.write(json.dumps(line) + "\n")


def compare(shape: shapes.Model, text: shapes.Text, repeats: int, folder: Path) -> list[Row]:
    """Measure one model on one kind of text."""
    model = shape.make()
    rows = text.rows(SAMPLES[text.name], shape.vocabulary)
    few = rows[: LOOPED[text.name]]
    reader = readout.Reader(model)
    collate = Collate(rows, None)
    lengths = [len(row.input_ids) for row in rows]
    batches = [collate(batch) for batch in inference.batches(lengths, extract.BATCH_TOKENS)]
    shard, lines = folder / "shard-00000.parquet", folder / "lines.jsonl"
    taken = measure.in_turns(
        {
            "first": measure.clocked(lambda: extract_shard(reader, rows, shape.vocabulary, shard)),
            "bare": measure.clocked(lambda: forward(model, batches)),
            "lines": measure.clocked(lambda: write_lines(model, few, lines)),
        },
        repeats,
    )
    count, few_count = shapes.positions(rows), shapes.positions(few)
    rates = {
        name: [(few_count if name == "lines" else count) / seconds for seconds in times]
        for name, times in taken.items()
    }
    median = {name: f"{sorted(found)[len(found) // 2]:.0f}" for name, found in rates.items()}
    what = f"extraction, {shape.name}, {text.name}"
    figures = f"{median['first']} and {{}} positions/s"
    return [
        Row(
            what,
            "bare forward pass",
            measure.ratios(rates["first"], rates["bare"]),
            0.9,
            at_least=True,
            figures=figures.format(median["bare"]),
        ),
        Row(
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
    found = Report()
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes.MODELS:
            for text in shapes.TEXTS:
                found.rows.extend(compare(shape, text, repeats, Path(name)))
    return found


if __name__ == "__main__":
    measure.alone(report, __doc__)
