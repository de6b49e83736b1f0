"""Measure extraction and training of large shapes on one GPU; write the table to the documentation.

    python benchmarks/gpu.py [--shape 7b 1b] [--repeats 5] [--out docs/performance.md]

Models are Llamas with random weights in bfloat16. Extraction is compared with the bare forward pass
over the same batches, a step of distillation with a step of `transformers.Trainer` on hard labels,
and its peak memory with the estimate that `first plan` makes. What does not fit is left out, with a
note. Without a GPU nothing is measured, and the exit code is 2. `--device cpu --shape tiny` tries
the program out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers

import measure
import shapes
import steps
from extraction import extract_shard, forward
from firstcli.data.encoded import lengths_of
from firstcli.models import inference, memory, readout
from firstcli.models.batching import free_memory, is_out_of_memory
from firstcli.runtime.console import size
from firstcli.stages import scoring
from firstcli.training import memory_estimate
from firstcli.training.batches import TrainingBatches
from firstcli.training.memory_estimate import MemoryEstimate
from firstcli.training.memory_settings import BatchShape, MemorySettings
from measure import Comparison, Report
from shapes import INSTRUCTION, QUESTION, Model, Place, Text

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
HEADING = "## On one GPU"
NO_GPU = "there is no GPU here, so nothing is measured; run this on a machine that has one"


@dataclass(frozen=True, slots=True)
class Scale:
    """A model's shape, and how much of each kind of text is measured."""

    model: Model
    extracted: int
    """Samples of one extraction."""
    batch: int
    """Samples of one step."""


SCALES = {
    "7b": Scale(Model("7B", 32_000, 4096, 32, 2048), 512, 4),
    "1b": Scale(Model("1B", 32_000, 2048, 22, 2048), 2048, 16),
    "tiny": Scale(Model("tiny", 500, 64, 1), 8, 2),
}


def extraction(scale: Scale, text: Text, place: Place, repeats: int) -> list[Comparison]:
    """Compare positions per second with those of the bare forward pass."""
    model = scale.model.make(place)
    rows = text.rows(scale.extracted, scale.model.vocabulary)
    reader, collated = readout.Reader(model), TrainingBatches(rows, None)
    batches = [
        {name: value.to(place.device) for name, value in collated[batch].items()}
        for batch in inference.batches(lengths_of(rows).tolist(), scoring.EXTRACTION_TOKENS)
    ]
    with tempfile.TemporaryDirectory() as name:
        shard = Path(name) / "shard-00000.parquet"
        work = partial(extract_shard, reader, rows, scale.model.vocabulary, shard)
        seconds = measure.in_turns(
            {
                "first": measure.clocked(work),
                "bare": measure.clocked(lambda: forward(model, batches)),
            },
            repeats,
        )
    rates = {key: [shapes.positions(rows) / each for each in seconds[key]] for key in seconds}
    row = Comparison(
        f"extraction, {scale.model.name}, {text.name}",
        "bare forward pass",
        measure.ratios(rates["first"], rates["bare"]),
        0.9,
        at_least=True,
        figures=f"{median(rates['first']):.0f} and {median(rates['bare']):.0f} positions/s",
    )
    return [row]


def step(setting: steps.Setting, repeats: int) -> list[Comparison]:
    """Compare the time of a step with that on hard labels, and its peak memory with the estimate.

    Raises:
        MemoryError: it does not fit into memory.
    """
    estimate = estimated(setting)
    needed = estimate.total
    available = memory.capacity(setting.place.device)
    if available is not None and needed > available:
        raise MemoryError(f"it needs {size(needed)} of {size(available)}")
    model = setting.make()
    with tempfile.TemporaryDirectory() as name:
        works = {
            key: steps.prepare(key, setting, model, Path(name)) for key in ("first", steps.HARD)
        }
        peak = peak_bytes(works["first"], setting.place, estimate.weights)
        times = measure.in_turns(
            {key: partial(steps.step_seconds, work) for key, work in works.items()}, repeats
        )
    seconds = " and ".join(f"{np.median(times[key]):.3g}" for key in works)
    return [
        Comparison(
            f"time of a step, {setting.name}",
            steps.HARD,
            measure.ratios(times["first"], times[steps.HARD]),
            1.02,
            figures=f"{seconds} s",
        ),
        Comparison(
            f"peak memory of a step, {setting.name}",
            "the estimate of `first plan`",
            [peak / needed],
            1.25,
            figures=f"{size(peak)} and {size(needed)}",
        ),
    ]


def estimated(setting: steps.Setting) -> MemoryEstimate:
    """Estimate the peak of a step, as `first plan` does."""
    largest = sorted(setting.rows(), key=lambda row: len(row.input_ids))[-setting.batch :]
    shape = BatchShape(
        len(largest), len(largest[-1].input_ids), shapes.positions(largest), shapes.TOP_K
    )
    dtype = getattr(torch, setting.place.dtype)
    empty = setting.model.make(Place(torch.device("meta")))
    return memory_estimate.estimate(empty, shape, MemorySettings(setting.place.device, dtype))


def peak_bytes(work: measure.Work, place: Place, weights: int) -> float:
    """Return the peak of memory during `work`, with the model's `weights` in bytes."""
    if place.device.type != "cuda":
        return weights + 1e6 * measure.peak_of(work)
    torch.cuda.reset_peak_memory_stats(place.device)
    work()
    return float(torch.cuda.max_memory_allocated(place.device))


def report(names: Sequence[str], place: Place, repeats: int) -> Report:
    """Measure shapes on both kinds of text."""
    results = Report()
    for name in names:
        scale = SCALES[name]
        for text in (QUESTION, INSTRUCTION):
            setting = steps.Setting(scale.model, text, scale.batch, place=place)
            works = {
                "extraction": partial(extraction, scale, text, place, repeats),
                "a step": partial(step, setting, repeats),
            }
            for what, measured in works.items():
                try:
                    results.rows.extend(measured())
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    reason = str(error).partition("\n")[0]
                    note = f"{what} of {scale.model.name} with {text.name} does not fit: {reason}"
                    results.notes.append(f"Left out: {note}.")
                free_memory()
    return results


def machine(device: torch.device) -> str:
    """Describe the device and the versions."""
    name = "the CPU"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name = f"{facts.name} with {size(facts.total_memory)}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {versions}, random weights in bfloat16 (`python benchmarks/gpu.py`)."


def with_section(document: str, heading: str, body: str) -> str:
    """Replace the text under a heading, or add both at the end."""
    before, found, after = document.partition(f"{heading}\n")
    if not found:
        return f"{document.rstrip()}\n\n{heading}\n\n{body}\n".lstrip()
    _, following, rest = after.partition("\n## ")
    return f"{before}{heading}\n\n{body}\n{following}{rest}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=SCALES, default=["7b", "1b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=measure.REPEATS)
    parser.add_argument("--out", type=Path, help="the file with the section")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    inference.make_current(device)
    results = report(chosen.shape, Place(device, "bfloat16"), chosen.repeats)
    body = f"{machine(device)}\n\n{measure.show(results)}"
    print(body)
    out = chosen.out or (DOCUMENT if device.type == "cuda" else None)
    if out:
        document = out.read_text("utf-8") if out.exists() else ""
        out.write_text(with_section(document, HEADING, body), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
