"""Tables of `docs/active.md` from the rounds that `first select` has written.

    python benchmarks/active_tables.py runs/active-study/curves/rounds.csv [--to 1500]

All differences are paired by seed, with 95 % intervals over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from firstcli.metrics.learning_curves import LearningCurve, MeanOverSeeds

EVERYTHING = "everything"
SHARE = 0.95
EQUAL_COSTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the least that an arm spends in tokens at which accuracy at equal cost is compared."""
Curves = Mapping[int, LearningCurve]


def read_curves(path: Path, place: Callable[[Mapping[str, str]], float]) -> dict[str, Curves]:
    """Return the accuracy of every arm and seed against what `place` reads from a row."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["model"] == row["arm"]:  # a temperature does not change accuracy
                seeds = points.setdefault(row["arm"], {})
                seeds.setdefault(int(row["seed"]), []).append((place(row), float(row["accuracy"])))
    return {
        arm: {
            seed: LearningCurve(*(np.array(column) for column in zip(*sorted(found), strict=True)))
            for seed, found in seeds.items()
        }
        for arm, seeds in points.items()
    }


def annotations_of(row: Mapping[str, str]) -> float:
    return float(row["annotations"])


def tokens_of(row: Mapping[str, str]) -> float:
    return float(row["tokens_read"]) + float(row["tokens_written"])


def accuracy_at(curve: LearningCurve, place: float) -> float:
    return float(curve.at(np.array([place]))[0])


def mean_accuracy(curve: LearningCurve, to: float) -> float:
    """Return the mean of a curve from nothing to `to`, which is always defined."""
    places = np.linspace(0.0, to, 301)
    return float(np.trapezoid(curve.at(places), places) / to)


def paired(ours: Curves, theirs: Curves, value: Callable[[LearningCurve], float]) -> str:
    """Return the mean difference over the seeds that both have, in percentage points."""
    seeds = sorted(ours.keys() & theirs.keys())
    return in_points([value(ours[seed]) - value(theirs[seed]) for seed in seeds])


def in_points(differences: Sequence[float]) -> str:
    mean = MeanOverSeeds.of([100 * each for each in differences])
    if mean.interval is None:
        return f"{mean.value:+.1f}"
    return f"{mean.value:+.1f} [{mean.interval[0]:+.1f}, {mean.interval[1]:+.1f}]"


def needed(curves: Curves, levels: Mapping[int, float]) -> str:
    """Return the annotations needed on average, or how many seeds do not reach the level."""
    found = [curve.needed(levels[seed]) for seed, curve in curves.items() if seed in levels]
    reached = [value for value in found if value is not None]
    if len(reached) < len(found):
        return f"not reached in {len(found) - len(reached)} of {len(found)}"
    mean = MeanOverSeeds.of(reached)
    return f"{mean.value:,.0f}" + (f" ± {mean.half_width:,.0f}" if mean.half_width else "")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(headings) + " |")
    print("|---|" + "--:|" * (len(headings) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rounds", type=Path)
    parser.add_argument("--to", type=float, help="annotations; by default the least of any arm")
    given = parser.parse_args()
    by_annotations = read_curves(given.rounds, annotations_of)
    by_tokens = read_curves(given.rounds, tokens_of)
    arms = [arm for arm in by_annotations if arm != EVERYTHING]
    to = given.to or min(curve.places[-1] for arm in arms for curve in by_annotations[arm].values())
    whole = by_annotations.get(EVERYTHING, {})
    levels = {seed: SHARE * float(curve.values[-1]) for seed, curve in whole.items()}

    print(
        f"### Accuracy by annotations, and annotations for {SHARE:.0%} of annotating everything\n"
    )
    places = sorted({x for arm in arms for c in by_annotations[arm].values() for x in c.places})
    rows = []
    for arm in arms:
        curves = by_annotations[arm]
        cells = [arm, str(len(curves))]
        for x in places:
            values = [100 * float(curve.at(np.array([x]))[0]) for curve in curves.values()]
            cells.append(f"{np.mean(values):.1f}")
        areas = [100 * mean_accuracy(curve, to) for curve in curves.values()]
        first = next(a for a in arms if a.split("-")[0] == arm.split("-")[0])
        versus = paired(curves, by_annotations[first], lambda curve: mean_accuracy(curve, to))
        cells += [f"{np.mean(areas):.1f}", versus if arm != first else "", needed(curves, levels)]
        rows.append(cells)
    mean, difference = f"mean to {to:,.0f}", "difference from the first"
    table(["arm", "seeds", *(f"{x:,.0f}" for x in places), mean, difference, "needed"], rows)

    print("### Recalibrated minus raw: mean accuracy up to the budget\n")
    pairs = [
        (a, b)
        for a, b in combinations(arms, 2)
        if _without(a, "raw") == _without(b, "recalibrated")
    ]
    area = partial(mean_accuracy, to=to)
    rows = [[f"{b} - {a}", paired(by_annotations[b], by_annotations[a], area)] for a, b in pairs]
    table(["arms", "points"], rows)

    print("### Revise minus explain: at equal annotations, and at equal tokens\n")
    rows = []
    for a, b in combinations(arms, 2):
        if (a.split("-")[0], b.split("-")[0]) != ("explain", "revise"):
            continue
        if a.split("-")[1:] != b.split("-")[1:]:
            continue
        cells = [a.removeprefix("explain-"), paired(by_annotations[b], by_annotations[a], area)]
        ends = [c.places[-1] for arm in (a, b) for c in by_tokens[arm].values()]
        for share in EQUAL_COSTS:
            at = partial(accuracy_at, place=share * min(ends))
            cells.append(paired(by_tokens[b], by_tokens[a], at))
        rows.append(cells)
    table(
        ["selector", "mean at equal annotations", *(f"{s:.0%} of the tokens" for s in EQUAL_COSTS)],
        rows,
    )


def _without(arm: str, word: str) -> str:
    return arm.removesuffix(f"-{word}") if arm.endswith(f"-{word}") else f"{arm} (not {word})"


if __name__ == "__main__":
    main()
