"""Run all benchmarks against their goals and print one Markdown table.

    python benchmarks/bench.py [--repeats 5] [--only TOPIC ...] [--out FILE]

Use an idle machine. Contenders alternate, but threads that compete for too few cores distort both.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from pathlib import Path

import torch
import transformers

import measure
from measure import Report

TOPICS = ("extraction", "objective", "steps", "packing", "server", "questions", "startup", "data")


def run(topic: str, repeats: int) -> Report:
    """Measure one topic."""
    measure.limit_threads()
    report: Report = importlib.import_module(topic).report(repeats)
    return report


def machine() -> str:
    """Describe the machine and the versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{os.cpu_count()} cores ({names[0] if names else platform.processor()}), "
        f"{measure.THREADS} threads, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, float32."
    )


def main() -> None:
    """Run the topics, each in a fresh process, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=measure.REPEATS)
    parser.add_argument("--only", nargs="+", choices=TOPICS, default=TOPICS)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    chosen = parser.parse_args()
    combined = Report()
    for topic in chosen.only:
        began = time.perf_counter()
        report = measure.in_child(run, topic, chosen.repeats)
        print(f"{topic}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        combined.rows.extend(report.rows)
        combined.notes.extend(report.notes)
    text = f"{machine()}\n\n{measure.show(combined)}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
