"""Packed batches against padded ones, in training and extraction.

    python benchmarks/packing.py [--repeats 5]

Both run the same samples in the same batches: packed batches have no padding, but without flash
attention their sequences share one dense mask, so attention costs the square of a batch's tokens.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

import measure
import shapes
import steps
from extraction import SAMPLES, extract_shard
from firstcli.data.encoded import lengths_of
from firstcli.models import inference, readout
from firstcli.stages import scoring
from firstcli.training import batches
from measure import Comparison, Report
from shapes import INSTRUCTION, SMALL

PADDED, PACKED = "padded batches", "packed batches"
BATCHING: dict[str, inference.Batching] = {PACKED: "packed", PADDED: "padded"}


def training(setting: steps.Setting, repeats: int) -> Comparison:
    """Compare the time of a step."""
    model, rows = setting.make(), setting.rows()
    with tempfile.TemporaryDirectory() as name:
        times = measure.in_turns(
            {
                contender: partial(
                    steps.step_seconds, steps.distillation(setting, model, Path(name), batching)
                )
                for contender, batching in BATCHING.items()
            },
            repeats,
        )
    lengths = lengths_of(rows)
    parts = list(batches.MicroBatches(lengths, setting.batch, setting.batch, 1, 0, seed=0))
    seconds = " and ".join(f"{np.median(times[key]):.3g}" for key in BATCHING)
    return Comparison(
        f"time of a step, packed, {setting.name}",
        PADDED,
        measure.ratios(times[PACKED], times[PADDED]),
        1,
        figures=f"{seconds} s, {batches.padding_share(lengths, parts):.1%} padding",
    )


def extraction(shape: shapes.Model, text: shapes.Text, repeats: int, folder: Path) -> Comparison:
    """Compare positions per second."""
    rows = text.rows(SAMPLES[text.name], shape.vocabulary)
    reader = readout.Reader(shape.make())
    shard = folder / "shard-00000.parquet"
    times = measure.in_turns(
        {
            contender: measure.clocked(
                partial(extract_shard, reader, rows, shape.vocabulary, shard, batching)
            )
            for contender, batching in BATCHING.items()
        },
        repeats,
    )
    lengths = lengths_of(rows)
    parts = inference.batches(lengths.tolist(), scoring.EXTRACTION_TOKENS)
    rates = {key: [shapes.positions(rows) / each for each in times[key]] for key in times}
    figures = " and ".join(f"{median(rates[key]):.0f}" for key in BATCHING)
    return Comparison(
        f"extraction, packed, {shape.name}, {text.name}",
        PADDED,
        measure.ratios(rates[PACKED], rates[PADDED]),
        1,
        at_least=True,
        figures=f"{figures} positions/s, {batches.padding_share(lengths, parts):.1%} padding",
    )


def report(repeats: int) -> Report:
    """Measure the small model."""
    results = Report([training(steps.setting_of(SMALL, INSTRUCTION), repeats)])
    with tempfile.TemporaryDirectory() as name:
        for text in shapes.TEXTS:
            results.rows.append(extraction(SMALL, text, repeats, Path(name)))
    return results


if __name__ == "__main__":
    measure.main(report, __doc__)
