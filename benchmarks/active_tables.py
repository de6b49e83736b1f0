"""Tables of `docs/active.md` from the rounds that `first select` has written.

    cd benchmarks/active
    python ../active_tables.py runs/active-study/curves/rounds.csv [--to 1500]
        [--figures ../../docs/figures]

Arms that begin with the same annotator are one group. They are compared with its first arm, and
each group has a figure. All differences are paired by seed, with 95 % intervals over seeds
(Student's t).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from firstcli.metrics.learning_curves import (
    LearningCurve,
    MeanOverSeeds,
    needed_by_all,
    needed_difference,
)
from firstcli.reporting import curves
from firstcli.reporting.rounds import SHOWN, RoundsData, in_text
from firstcli.reporting.style import save
from firstcli.tasks.known_steps import KnownSteps

EVERYTHING = "everything"
ANNOTATORS = ("explain", "revise", "oracle")
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


def group_of(arm: str) -> str:
    annotator = arm.split("-")[0]
    return annotator if annotator in ANNOTATORS else "all"


def write_figures(path: Path, arms: Sequence[str], folder: Path) -> None:
    """Draw the metrics of every group of arms against annotations, as the page does."""
    rounds: dict[str, dict[int, list[dict[str, Any]]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["model"] == row["arm"]]
    for row in lines:
        metrics = {each.name: float(row[each.name]) for each in SHOWN}
        spent = {"annotations": float(row["annotations"])}
        facts = {**spent, "evaluations": {row["evaluation"]: {row["arm"]: metrics}}}
        rounds.setdefault(row["arm"], {}).setdefault(int(row["seed"]), []).append(facts)
    (evaluation,) = {row["evaluation"] for row in lines}
    for group in dict.fromkeys(map(group_of, arms)):
        some = {arm: rounds[arm] for arm in arms if group_of(arm) == group}
        data = RoundsData(path.parent.parent.name, some, [evaluation])
        drawing = curves.drawing(data, evaluation, "annotations")
        save(replace(drawing, name=f"active-{evaluation}-{group}"), folder)


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
    seeds = sorted(curves.keys() & levels.keys())
    return in_text(needed_by_all([curves[seed] for seed in seeds], [levels[s] for s in seeds]))


def more_needed(ours: Curves, theirs: Curves, levels: Mapping[int, float]) -> str:
    """Return how many more annotations ours need, paired by seed."""
    seeds = sorted(ours.keys() & theirs.keys() & levels.keys())
    both = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    return in_text(needed_difference(*both, [levels[seed] for seed in seeds]), signed=True)


def print_steps(run: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Count the different steps that were bought by the end of each round, and check them.

    In `known-steps`, a step is one look-up or one calculation, so the number of different ones is
    how much of the world an arm has been told, as long as they are right.
    """
    print("### Different steps by the end of each round, and explanations with a wrong one\n")
    task = task_of(run / "rounds" / f"{arms[0]}@{seeds[0]}" / "0" / "run" / "recipe.yaml")
    questions = {str(sample.id): sample for sample in task.load("pool").samples}
    rows = []
    for arm in arms:
        bought = [explanations(run / "rounds" / f"{arm}@{seed}") for seed in seeds]
        different = [different_steps(rounds) for rounds in bought]
        every = [each for rounds in bought for some in rounds for each in some]
        wrong = [not all(task.check_steps(questions[id], steps)) for id, steps in every]
        means = (np.mean(counts) for counts in zip(*different, strict=True))
        rows.append([arm, *(f"{mean:.0f}" for mean in means), f"{100 * np.mean(wrong):.1f} %"])
    headings = [f"round {number}" for number in range(1, len(rows[0]) - 1)]
    table(["arm", *headings, "with a wrong step"], rows)


def task_of(recipe: Path) -> KnownSteps:
    """Return the task of a round's evaluation, whose world is that of the pool."""
    options = yaml.safe_load(recipe.read_text("utf-8"))["evaluate"][0]["task"]["options"]
    return KnownSteps(KnownSteps.Options(**options))


def explanations(folder: Path) -> list[list[tuple[str, list[str]]]]:
    """Return the question and the steps of every annotation of each round of an arm and seed."""
    files = sorted(folder.glob("*/annotations.jsonl"), key=lambda file: int(file.parent.name))
    lines = [map(json.loads, file.read_text("utf-8").splitlines()) for file in files]
    return [[(row["id"], row["steps"]) for row in rows] for rows in lines]


def different_steps(rounds: Sequence[Sequence[tuple[str, Sequence[str]]]]) -> list[int]:
    """Return how many different steps were bought by the end of each round."""
    known, found = set[str](), []
    for some in rounds:
        known |= {step for _, steps in some for step in steps}
        found.append(len(known))
    return found


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
    parser.add_argument("--figures", type=Path, help="folder of a figure for each group of arms")
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
        own = by_annotations[arm]
        cells = [arm, str(len(own))]
        for x in places:
            values = [100 * float(curve.at(np.array([x]))[0]) for curve in own.values()]
            cells.append(f"{np.mean(values):.1f}")
        areas = [100 * mean_accuracy(curve, to) for curve in own.values()]
        first = next(other for other in arms if group_of(other) == group_of(arm))
        theirs = by_annotations[first]
        cells += [f"{np.mean(areas):.1f}", paired(own, theirs, partial(mean_accuracy, to=to))]
        cells += [needed(own, levels), more_needed(own, theirs, levels)]
        if arm == first:
            cells[-3] = cells[-1] = ""
        rows.append(cells)
    headings = ["arm", "seeds", *(f"{x:,.0f}" for x in places), f"mean to {to:,.0f}"]
    table([*headings, "difference from the first", "needed", "more than the first"], rows)

    print("### Recalibrated minus raw: mean accuracy up to the budget\n")
    pairs = [
        (a, b)
        for a, b in combinations(arms, 2)
        if _without(a, "raw") == _without(b, "recalibrated")
    ]
    area = partial(mean_accuracy, to=to)
    rows = [
        [
            f"{b} - {a}",
            paired(by_annotations[b], by_annotations[a], area),
            more_needed(by_annotations[b], by_annotations[a], levels),
        ]
        for a, b in pairs
    ]
    table(["arms", "points", "annotations needed"], rows)

    if {*ANNOTATORS} & {*map(group_of, arms)}:
        print_annotators(arms, by_annotations, by_tokens, area)
    run = given.rounds.parent.parent
    if {*ANNOTATORS} & {*map(group_of, arms)} and (run / "rounds").is_dir():
        print_steps(run, arms, sorted(next(iter(by_annotations.values()))))
    if given.figures:
        write_figures(given.rounds, arms, given.figures)


def print_annotators(
    arms: Sequence[str],
    by_annotations: Mapping[str, Curves],
    by_tokens: Mapping[str, Curves],
    area: Callable[[LearningCurve], float],
) -> None:
    """Compare other annotators with `explain` under the same selector.

    Args:
        arms: all arms.
        by_annotations: their curves against annotations.
        by_tokens: the same against tokens.
        area: the mean accuracy up to the budget.
    """
    print("### Other annotators minus explain: at equal annotations, and at equal tokens\n")
    rows = []
    for a, b in combinations(arms, 2):
        if group_of(a) != "explain" or a.split("-")[1:] != b.split("-")[1:]:
            continue
        cells = [f"{b} - {a}", paired(by_annotations[b], by_annotations[a], area)]
        end = min(c.places[-1] for arm in (a, b) for c in by_tokens[arm].values())
        for share in EQUAL_COSTS:
            at = partial(accuracy_at, place=share * end)
            cells.append(paired(by_tokens[b], by_tokens[a], at) if end else "")
        rows.append(cells)
    table(
        ["arms", "mean at equal annotations", *(f"{s:.0%} of the tokens" for s in EQUAL_COSTS)],
        rows,
    )


def _without(arm: str, word: str) -> str:
    return arm.removesuffix(f"-{word}") if arm.endswith(f"-{word}") else f"{arm} (not {word})"


if __name__ == "__main__":
    main()
