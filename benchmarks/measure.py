"""How the benchmarks measure: in turns, as ratios pair by pair, each topic in a fresh process.

The topics are `extraction`, `objective`, `steps`, `questions`, `startup` and `data`; each file runs
alone, for example `python benchmarks/objective.py --repeats 3`, and `bench.py` runs them all.
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
LITTLE = 1e-9  # what nobody could measure counts as this much

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ratios, one a pair of runs, and the goal for their median."""

    what: str
    against: str
    ratios: list[float]
    goal: float
    at_least: bool = False
    figures: str = ""
    """The same in absolute numbers."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def cells(self) -> list[str]:
        sign = "≥" if self.at_least else "≤"
        spread = f"{_number(min(self.ratios))} to {_number(max(self.ratios))}"
        shown = f"**{_number(self.median)}**" if self.met else _number(self.median)
        return [
            self.what,
            self.against,
            f"{sign} {self.goal:g}",
            shown,
            f"{spread} ({len(self.ratios)})",
            self.figures,
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """What a topic has to say: lines of the table, and Markdown to go below it."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


HEADINGS = ["what", "against", "goal", "median", "min to max (pairs)", "figures"]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = [headings, [":--"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Let each measure itself once unseen, then `repeats` times in turns: A B A B ..."""
    for measured in contenders.values():
        measured()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, measured in contenders.items():
            gc.collect()
            found[name].append(measured())
    return found


def clocked(work: Work) -> Callable[[], float]:
    """Let work return how many seconds it took."""

    def measured() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return measured


def ratios(upper: list[float], lower: list[float]) -> list[float]:
    """Divide pair by pair."""
    return [one / max(other, LITTLE) for one, other in zip(upper, lower, strict=True)]


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as child:
        return child.submit(function, *args, **kwargs).result()


def peak_of(work: Work) -> float:
    """Return the MB by which resident memory rises above what it is now, at its peak (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _resident()["VmRSS"]
    work()
    return (_resident()["VmHWM"] - before) / 1e6


def _resident() -> dict[str, int]:
    status = Path("/proc/self/status").read_text()
    return {name: 1024 * int(kb) for name, kb in re.findall(r"(VmRSS|VmHWM):\s+(\d+)", status)}


def limit_threads() -> None:
    torch.set_num_threads(THREADS)


def show(report: Report) -> str:
    """Write a report as Markdown."""
    parts = [table(HEADINGS, [row.cells() for row in report.rows])] if report.rows else []
    return "\n\n".join([*parts, *report.notes])


def alone(topic: Callable[[int], Report], about: str | None) -> None:
    """Run one topic as a command and print what it found."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    limit_threads()
    print(show(topic(parser.parse_args().repeats)))


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
