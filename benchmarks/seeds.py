"""Run a recipe with several seeds and print mean and standard deviation of every model.

    python benchmarks/seeds.py recipes/quickstart.yaml --seeds 1 2 3 4 5 --worlds 2

The seed determines weights and sample order and, with `--worlds N`, the `known-world` of training
and of the first N evaluations. Runs are stored in `runs/seeds/<recipe>/<seed>`; interrupted ones
resume.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

COLUMNS = ("ece", "accuracy", "trust", "ece_true", "confidence_mae")


def evaluate(recipe: str, seed: int, overrides: list[str], worlds: int) -> dict[str, Any]:
    """Return the metrics of one seed, by `evaluation/model`."""
    chosen = [f"seed={seed}", *overrides]
    if worlds:
        chosen.append(f"train.task.options.seed={seed}")
        chosen += [f"evaluate.{i}.task.options.seed={seed}" for i in range(worlds)]
    folder = f"runs/seeds/{Path(recipe).stem}/{seed}"
    command = [sys.executable, "-m", "firstcli", "eval", recipe, "--run-dir", folder, "--json"]
    for override in chosen:
        command += ["--set", override]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


def main() -> None:
    """Print one Markdown table per evaluation, in percent: mean ± standard deviation over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--worlds", type=int, default=0, help="known-world evaluations to reseed")
    chosen = parser.parse_args()
    runs_by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for seed in chosen.seeds:
        result = evaluate(chosen.recipe, seed, chosen.overrides, chosen.worlds)
        print(f"seed {seed} done", file=sys.stderr, flush=True)
        for key, metrics in result.items():
            runs_by_model[key].append(metrics)
    for evaluation in dict.fromkeys(key.rpartition("/")[0] for key in runs_by_model):
        rows = {
            key.rpartition("/")[2]: runs
            for key, runs in runs_by_model.items()
            if key.startswith(f"{evaluation}/")
        }
        shown = [name for name in COLUMNS if next(iter(rows.values()))[0][name] is not None]
        print(f"\n{evaluation}, seeds {', '.join(map(str, chosen.seeds))}\n")
        print("| model | " + " | ".join(name.replace("_", " ") for name in shown) + " |")
        print("|---|" + "---:|" * len(shown))
        for model, runs in rows.items():
            cells = []
            for name in shown:
                values = [100 * run[name] for run in runs]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
            print(f"| {model} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
