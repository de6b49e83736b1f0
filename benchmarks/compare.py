"""Compare pairs of models of a finished run, over the same questions and seeds.

    python benchmarks/compare.py runs/study-trec first-oof first distill-oof distill

Models are named as in the report (`first`, `fine-tune + T`), in pairs: first minus second. A
difference is distinguishable if the interval over questions and, with several seeds, the interval
over seeds exclude zero.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from firstcli import metrics
from firstcli.metrics import uncertainty
from firstcli.metrics.records import EvalRecords

NAMES = {"accuracy": "accuracy", "ece": "ECE", "trust": "Trust", "ece_true": "ECE true"}


def records_of(folder: Path, model: str) -> dict[str, EvalRecords]:
    """Return a model's records by seed; without seeds the only key is empty."""
    arm, temperature = re.fullmatch(r"(.+?)( \+ T)?", model).groups()  # type: ignore[union-attr]
    ending = "+T" if temperature else ""
    pattern = re.compile(rf"{re.escape(arm)}(@\d+)?{re.escape(ending)}\.parquet")
    records = {
        match[1] or "": EvalRecords.load(path)
        for path in sorted(folder.glob("*.parquet"))
        if (match := pattern.fullmatch(path.name))
    }
    if not records:
        raise SystemExit(f"{folder}: no records of '{model}'")
    return records


def compared(folder: Path, ours: str, theirs: str, bins: int) -> Sequence[str]:
    """Return lines of a Markdown table, one per metric."""
    first, second = records_of(folder, ours), records_of(folder, theirs)
    # The teacher has one seed, which is paired with every seed of a student.
    if len(second) == 1:
        second = dict.fromkeys(first, next(iter(second.values())))
    elif len(first) == 1:
        first = dict.fromkeys(second, next(iter(first.values())))
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    differences = uncertainty.differences(
        [a for a, _ in pairs], [b for _, b in pairs], "candidates", bins
    )
    lines = []
    for name, difference in differences.items():
        text = f"{_points(difference.value)} ({_range(difference.interval)})"
        marks, over = [difference.distinguishable], "–"
        if len(pairs) > 1:
            each = [
                [getattr(metrics.summarize(records, "candidates", bins), name) for records in pair]
                for pair in pairs
            ]
            seeds = uncertainty.over_seeds([a for a, _ in each], [b for _, b in each])
            marks.append(seeds.distinguishable)
            over = f"{_range(seeds.interval)}, p = {seeds.p_value:.2g}"
        verdict = "yes" if all(marks) else "not distinguishable"
        lines.append(
            f"| {folder.name} | {ours} - {theirs} | {NAMES[name]} | {text} | {over} | {verdict} |"
        )
    return lines


def _range(interval: uncertainty.Interval) -> str:
    return f"{_points(interval.low)} to {_points(interval.high)}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def main() -> None:
    """Print one Markdown table for all pairs and evaluations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--bins", type=int, default=10)
    chosen = parser.parse_args()
    print(
        "| evaluation | models | metric | difference (95 %) | over seeds (95 %) | distinguishable |"
    )
    print("|---|---|---|---|---|---|")
    for folder in sorted((chosen.run / "eval").iterdir()):
        for ours, theirs in zip(chosen.models[::2], chosen.models[1::2], strict=True):
            for line in compared(folder, ours, theirs, chosen.bins):
                print(line)


if __name__ == "__main__":
    main()
