"""Peak memory of extraction, calibration and distillation at two sizes of data.

    python benchmarks/memory.py 20000 200000

Each stage runs in its own process, on random instructions of ~60 tokens, ~20 of them supervised,
with a tiny model and a fixed number of training steps, so that any growth is due to the data.
Prints the peaks, the calculated size of the data's index, and the growth beyond it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAGES = ("extract", "calibrate", "distill")
WORDS = [f"{first}{last}" for first in ("ba", "ce", "di", "fo", "gu") for last in "klmnprst"]
MODEL = {
    "family": "scratch",
    "options": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 300, "context": 128},
}
COMMAND = "import sys; from firstcli.cli import main; sys.exit(main())"


def write_data(path: Path, count: int) -> None:
    """Write instructions with few distinct words, because training a tokenizer counts all words."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            prompt = f"{' '.join(draw.choices(WORDS, k=38))} ="
            response = " " + " ".join(draw.choices(WORDS, k=19))
            file.write(json.dumps({"prompt": prompt, "response": response}) + "\n")


def recipe(data: Path, steps: int) -> dict[str, Any]:
    """Return a recipe with a fixed number of training steps."""
    training = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3}
    return {
        "name": "memory",
        "train": {"task": {"name": "instruction", "options": {"path": str(data)}}},
        "evaluate": [{"task": {"name": "known-world", "options": {"test": 16}}, "split": "test"}],
        "teacher": {"model": MODEL},
        "student": {"model": MODEL, "training": training},
        "trainer": {"max_steps": steps, "save_strategy": "no"},
        "arms": {"first": {"recalibrator": {"name": "temperature-scaling"}}},
    }


def peak_of(*command: str) -> float:
    """Run a command and return the peak resident memory of its process in MB."""
    code = (
        "import resource, subprocess, sys;"
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);"
        "sys.exit(code)"
    )
    measured = subprocess.run(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return int(measured.stdout) / 1024 * 1.048576


def index_of(count: int) -> float:
    """Return the size of the data's index in memory in MB.

    Per sample: 8 bytes for its border and 8 for its part; 28 bytes for its tokens in each of two
    roles; 20 bytes for digest, place and offset of its knowledge; 8 in the sampler's permutation.
    """
    return count * (8 + 8 + 2 * 28 + 20 + 8) / 1e6


def main() -> None:
    """Measure each size and print a table."""
    sizes = [int(size) for size in sys.argv[1:]] or [20_000, 200_000]
    peaks: dict[int, dict[str, float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            data, path = Path(folder, "data.jsonl"), Path(folder, "recipe.yaml")
            write_data(data, size)
            path.write_text(json.dumps(recipe(data, 20)), "utf-8")
            peaks[size] = {
                stage: peak_of(
                    sys.executable, "-c", COMMAND, stage, str(path), "--run-dir", f"{folder}/run"
                )
                for stage in STAGES
            }
        print(size, {stage: round(peak, 1) for stage, peak in peaks[size].items()}, flush=True)
    small, large = peaks[sizes[0]], peaks[sizes[-1]]
    index = index_of(sizes[-1]) - index_of(sizes[0])
    for stage in STAGES:
        growth = large[stage] - small[stage]
        beyond = f"{growth - index:.1f} MB beyond the index of {index:.1f} MB"
        print(f"{stage}: {growth:.1f} MB more, {beyond}")


if __name__ == "__main__":
    main()
