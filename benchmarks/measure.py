"""Measurement for the benchmarks: alternating runs, ratios per pair, one process per topic.

Each topic is a file that runs by itself, for example `python benchmarks/objective.py --repeats 3`;
`bench.py` runs all of them.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

THREADS = 2
REPEATS = 5
MIN_DIVISOR = 1e-9  # replaces measurements of zero in ratios

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the table: one ratio per pair of runs, and the goal for their median."""

    what: str
    against: str
    ratios: list[float]
    goal: float
    at_least: bool = False
    figures: str = ""
    """The absolute numbers."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        spread = f"{_number(min(self.ratios))} to {_number(max(self.ratios))}"
        median = f"**{_number(self.median)}**" if self.met else _number(self.median)
        return [
            self.what,
            self.against,
            f"{sign} {self.goal:g}",
            median,
            f"{spread} ({len(self.ratios)})",
            self.figures,
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a topic: lines of the table, and Markdown notes below it."""

    rows: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


HEADINGS = ["what", "against", "goal", "median", "min to max (pairs)", "figures"]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [headings, [":--"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measure every contender `repeats` times, alternating (A B A B ...), after one warm-up."""
    for measured in contenders.values():
        measured()
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, measured in contenders.items():
            gc.collect()
            results[name].append(measured())
    return results


def now() -> float:
    """Return the time in seconds, after all work that a GPU still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def clocked(work: Work) -> Callable[[], float]:
    """Return a function that runs `work` and returns its duration in seconds."""

    def measured() -> float:
        began = now()
        work()
        return now() - began

    return measured


def ratios(upper: list[float], lower: list[float]) -> list[float]:
    """Divide each number by its counterpart."""
    return [
        numerator / max(denominator, MIN_DIVISOR)
        for numerator, denominator in zip(upper, lower, strict=True)
    ]


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a module-level function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as child:
        return child.submit(function, *args, **kwargs).result()


def peak_of(work: Work) -> float:
    """Return the peak increase of resident memory during `work` in MB (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    before = _resident()["VmRSS"]
    work()
    return (_resident()["VmHWM"] - before) / 1e6


def _resident() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    return {name: 1024 * int(kb) for name, kb in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", status)}


def limit_threads() -> None:
    torch.set_num_threads(THREADS)


def show(report: Report) -> str:
    """Format a report as Markdown."""
    parts = [table(HEADINGS, [row.cells() for row in report.rows])] if report.rows else []
    return "\n\n".join([*parts, *report.notes])


def main(topic: Callable[[int], Report], description: str | None) -> None:
    """Run one topic as a command and print its report."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    limit_threads()
    print(show(topic(parser.parse_args().repeats)))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
