"""The tables of `docs/study-protocol.md`, from the results of `worlds.py`, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from firstcli.metrics.uncertainty import Difference, holm, over_seeds

WINNER = "first-plus + T"
BASELINES = ("first", "distill + T")
SPLITS = ("test", "shifted")
EVALUATIONS = (*SPLITS, "unanswerable")
COLUMNS = {  # measure -> heading, factor, digits
    "accuracy": ("Acc", 100, 1),
    "ece": ("ECE", 100, 1),
    "ece_true": ("ECE true", 100, 1),
    "trust": ("Trust", 100, 1),
    "nll": ("NLL", 1, 3),
    "confidence": ("conf.", 100, 1),
}
Values = dict[tuple[str, str, str], dict[int, float]]
"""(arm, split, measure) -> world -> value"""


class Test(NamedTuple):
    """A comparison of two arms in one measure."""

    ours: str
    theirs: str
    split: str
    measure: str


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of results; without a file, there are none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def values_of(lines: Iterable[dict[str, Any]]) -> Values:
    """Arrange the results of models on evaluations."""
    values: Values = defaultdict(dict)
    for line in lines:
        for measure in line.keys() & COLUMNS.keys():
            values[line["arm"], line["split"], measure][line["world"]] = line[measure]
    return values


def difference(values: Values, test: Test) -> tuple[Difference, int, int]:
    """Return the paired difference, in how many worlds it is above 0, and the number of worlds."""
    ours, theirs = (values[arm, test.split, test.measure] for arm in (test.ours, test.theirs))
    worlds = sorted(ours.keys() & theirs.keys())
    pairs = [(ours[world], theirs[world]) for world in worlds]
    above = sum(one > other for one, other in pairs)
    return over_seeds(*zip(*pairs, strict=True)), above, len(worlds)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def means(values: Values) -> str:
    """Return mean and standard deviation over worlds, one model a line."""
    shown = [(split, measure) for split in SPLITS for measure in COLUMNS]
    shown.append(("unanswerable", "confidence"))
    headings = [f"{split}: {COLUMNS[measure][0]}" for split, measure in shown]
    lines = [row(["model", *headings]), row(["--", *["--:"] * len(shown)])]
    for arm in dict.fromkeys(arm for arm, *_ in values):
        cells = []
        for split, measure in shown:
            _, factor, digits = COLUMNS[measure]
            each = [factor * value for value in values[arm, split, measure].values()]
            spread = statistics.stdev(each) if len(each) > 1 else 0.0
            cells.append(f"{statistics.mean(each):.{digits}f} ± {spread:.{digits}f}")
        lines.append(row([arm, *cells]))
    return "\n".join(lines)


def differences(values: Values, theirs: str, ours: Sequence[str]) -> str:
    """Return each arm minus a baseline, with intervals that are not corrected."""
    shown = [(split, each) for split in SPLITS for each in ("trust", "ece", "ece_true", "nll")]
    shown += [("test", "accuracy"), ("shifted", "accuracy"), ("unanswerable", "confidence")]
    headings = [f"{split}: {COLUMNS[measure][0]}" for split, measure in shown]
    lines = [row([f"minus {theirs}", *headings]), row(["--", *["--:"] * len(shown)])]
    for arm in ours:
        cells = []
        for split, measure in shown:
            _, factor, digits = COLUMNS[measure]
            gap, *_ = difference(values, Test(arm, theirs, split, measure))
            low, high = factor * gap.interval.low, factor * gap.interval.high
            text = f"{factor * gap.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(row([arm, *cells]))
    return "\n".join(lines)


def family(winner: str) -> list[Test]:
    """Return the four tests of a winner's primary family."""
    return [Test(winner, theirs, split, "trust") for theirs in BASELINES for split in SPLITS]


def primary(values: Values, winner: str) -> str:
    """Return the tests of a winner's primary family with their corrected p-values."""
    tests = family(winner)
    found = [difference(values, test) for test in tests]
    corrected = holm([gap.p_value for gap, *_ in found])
    lines = [
        row(["minus", "split", "Trust", "95 % interval", "worlds above 0", "p", "Holm p"]),
        row(["--", "--", "--:", "--:", "--:", "--:", "--:"]),
    ]
    for test, (gap, above, count), p in zip(tests, found, corrected, strict=True):
        low, high = 100 * gap.interval.low, 100 * gap.interval.high
        interval, share = f"[{low:+.1f}, {high:+.1f}]", f"{above}/{count}"
        p_values = [f"{gap.p_value:.2g}", f"{p:.2g}"]
        mean = f"{100 * gap.value:+.1f}"
        lines.append(row([test.theirs, test.split, mean, interval, share, *p_values]))
    return "\n".join(lines)


def costs(lines: Iterable[dict[str, Any]]) -> str:
    """Return the tokens that teachers and student read for an arm, relative to `distill`."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in lines:
        if line["split"] == "cost":
            for part, name in enumerate(("extracted", "trained")):
                totals[line["arm"]][part] += line[name]
    table = [row(["arm", "extraction", "training"]), row(["--", "--:", "--:"])]
    for arm, each in totals.items():
        shares = (own / base for own, base in zip(each, totals["distill"], strict=True))
        table.append(row([arm, *(f"{share:.2f}" for share in shares)]))
    return "\n".join(table)


def seconds(lines: Iterable[dict[str, Any]]) -> str:
    """Return the mean seconds of each part of a world."""
    every = [line for line in lines if line["split"] == "seconds"]
    parts = [name for name in every[0] if name not in ("world", "split")]
    each = {name: statistics.mean(line[name] for line in every) for name in parts}
    return ", ".join(f"{name} {value:.0f} s" for name, value in each.items())


def report(path: Path, winner: str = WINNER) -> str:
    """Return all tables as Markdown."""
    lines = read(path)
    values = values_of(lines)
    worlds = sorted({line["world"] for line in lines})
    arms = list(dict.fromkeys(arm for arm, *_ in values))
    parts = [f"{len(worlds)} worlds: {', '.join(map(str, worlds))}", means(values)]
    if len(worlds) > 1:
        parts.append(f"{winner}:\n\n{primary(values, winner)}")
        for theirs in dict.fromkeys((*BASELINES, WINNER)):
            parts.append(differences(values, theirs, [arm for arm in arms if arm != theirs]))
    parts.append(f"tokens, relative to distill:\n\n{costs(lines)}")
    parts.append(f"processor time of a world: {seconds(lines)}")
    return "\n\n".join(parts)
