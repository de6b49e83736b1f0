"""Compare two rows of a finished run over the same questions and, where there are, seeds.

    python benchmarks/compare.py runs/study-trec first-oof first distill-oof distill

Rows are named as in the report (`first`, `fine-tune + T`), two and two: first minus second. A
difference counts where the interval over questions and, with several seeds, the one over seeds
exclude zero.
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


def models_of(folder: Path, row: str) -> dict[str, EvalRecords]:
    """Return a row's records by seed; without seeds there is one."""
    arm, temperature = re.fullmatch(r"(.+?)( \+ T)?", row).groups()  # type: ignore[union-attr]
    ending = "+T" if temperature else ""
    pattern = re.compile(rf"{re.escape(arm)}(@\d+)?{re.escape(ending)}\.parquet")
    found = {
        match[1] or "": EvalRecords.load(path)
        for path in sorted(folder.glob("*.parquet"))
        if (match := pattern.fullmatch(path.name))
    }
    if not found:
        raise SystemExit(f"{folder}: no records of '{row}'")
    return found


def compared(folder: Path, ours: str, theirs: str, bins: int) -> Sequence[str]:
    """Return lines of a Markdown table: a metric each."""
    first, second = models_of(folder, ours), models_of(folder, theirs)
    # The teacher has one seed, which meets each of the students'.
    if len(second) == 1:
        second = dict.fromkeys(first, next(iter(second.values())))
    elif len(first) == 1:
        first = dict.fromkeys(second, next(iter(first.values())))
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    found = uncertainty.differences(
        [a for a, _ in pairs], [b for _, b in pairs], "candidates", bins
    )
    lines = []
    for name, one in found.items():
        text = f"{_points(one.value)} ({_range(one.interval)})"
        marks, over = [one.distinguishable], "–"
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
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--bins", type=int, default=10)
    chosen = parser.parse_args()
    print(
        "| evaluation | rows | metric | difference (95 %) | over seeds (95 %) | distinguishable |"
    )
    print("|---|---|---|---|---|---|")
    for folder in sorted((chosen.run / "eval").iterdir()):
        for ours, theirs in zip(chosen.rows[::2], chosen.rows[1::2], strict=True):
            for line in compared(folder, ours, theirs, chosen.bins):
                print(line)


if __name__ == "__main__":
    main()
