"""What rounds of annotation have cost and brought: curves, what is needed, and what was picked."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from firstcli.api import JSON
from firstcli.metrics import METRICS, Metric
from firstcli.metrics.learning_curves import (
    LearningCurve,
    MeanOverSeeds,
    NotReached,
    mean_curve,
    needed_by_all,
    needed_difference,
)

SHOWN = (METRICS["accuracy"], METRICS["ece"], METRICS["trust"])
SHARE = 0.95
"""Share of the accuracy of annotating everything that the table of annotations needed asks for."""
PLACES = {"annotations": "annotations", "tokens": "tokens", "cost": "cost"}
"""What can be spent, and what axes call it."""

MOST_COMPARED = 4
"""Arms of which every pair is compared on the page; of more, each is compared with the first."""

ROUND_COLUMNS = {
    "round": "round",
    "annotations": "annotations",
    "failures": "failed",
    "contradictions": "contradict the label",
    "flawed": "flaws found in the student's steps",
    "right_for_wrong_reasons": "right answer, wrong reason",
}
"""Facts of a round in the table of all rounds, with their headings."""

DASH = "–"
"""Stands for what was not measured."""

Needed = MeanOverSeeds | NotReached | None
"""What is needed to reach a level; None if no seed can be compared."""

Facts = Mapping[str, JSON]
"""What a round has cost and brought, as its file states it."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class PickedQuestion:
    """A question that was picked, what the student said of it, and what it is taught."""

    prompt: str
    score: float
    said: Sequence[str]
    """The student's steps."""
    answered: str
    """Its answer; empty if it has none, or if it was not asked for words."""
    unsure: int | None
    """Index of the step that surprised the student most."""
    taught: Sequence[str]
    """The steps that were bought; empty where only probabilities were."""
    right: str
    """The answer that was bought with them."""
    flaw: int | None
    """Index of the first of the student's steps that is wrong, if it is known."""


@dataclass(frozen=True, slots=True)
class PickedRound:
    """Some of the questions that an arm picked in a round, those with the highest score first."""

    arm: str
    number: int
    questions: Sequence[PickedQuestion]


@dataclass(frozen=True, slots=True)
class NeededRow:
    """What a row needs to reach its level, and how much more than another row."""

    row: str
    needed: Needed
    """Over the seeds that have a level and rounds of this row."""
    versus: Mapping[str, Needed]
    """How much more than each other row, paired by seed; over the seeds that both have."""


@dataclass(frozen=True)
class RoundsData:
    """Everything that the page of `first select` shows."""

    run: str
    rounds: Mapping[str, Mapping[int, Sequence[Facts]]]
    """The facts of every round, by arm and seed, in order."""
    evaluations: Sequence[str]
    picked: Sequence[PickedRound] = ()
    outdated: Sequence[str] = ()
    """Arms of which rounds are not shown, because they are not up to date, and from which round."""

    @cached_property
    def rows(self) -> list[str]:
        """The rows of tables: arms, each with and without a post-hoc recalibrator."""
        measured = (
            facts["evaluations"].get(name, {})
            for seeds in self.rounds.values()
            for every in seeds.values()
            for facts in every
            for name in self.evaluations
        )
        return list(dict.fromkeys(row for rows in measured for row in rows))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of all arms."""
        return sorted({seed for seeds in self.rounds.values() for seed in seeds})

    @cached_property
    def places(self) -> list[str]:
        """What was spent: annotations, and tokens or money if there are any."""
        last = [every[-1] for seeds in self.rounds.values() for every in seeds.values() if every]
        found = ["annotations"]
        found += ["tokens"] if any(spent(facts, "tokens") for facts in last) else []
        found += ["cost"] if any("cost" in facts for facts in last) else []
        return found

    def curves(
        self, evaluation: str, row: str, metric: str, place: str
    ) -> dict[int, LearningCurve]:
        """Return a row's curve of every seed.

        Args:
            evaluation: the evaluation's name.
            row: an arm, or an arm with ` + T`.
            metric: the metric's name.
            place: what was spent, of `PLACES`.
        """
        found = {}
        for seed, every in self.rounds[_arm_of(row, self.rounds)].items():
            points = [
                (spent(facts, place), float(values[metric]))
                for facts in every
                if metric in (values := facts["evaluations"].get(evaluation, {}).get(row, {}))
            ]
            if points:
                xs, ys = zip(*points, strict=True)
                found[seed] = LearningCurve(np.array(xs, np.float64), np.array(ys, np.float64))
        return found

    def means(
        self, evaluation: str, row: str, metric: str, place: str
    ) -> list[tuple[float, MeanOverSeeds]]:
        """Return the mean over seeds of a row's curves, with its interval.

        Args: as for `curves`.
        """
        curves = self.curves(evaluation, row, metric, place)
        return mean_curve(list(curves.values())) if curves else []

    def whole(self, evaluation: str) -> dict[int, float]:
        """Return the accuracy of annotating everything, by seed, as far as an arm has done so.

        Questions that could not be annotated were asked, too. Of several such arms it is the mean.
        """
        found: dict[int, list[float]] = {}
        for arm, seeds in self.rounds.items():
            for seed, every in seeds.items():
                if every and asked(every[-1]) >= every[-1]["pool"]:
                    values = every[-1]["evaluations"].get(evaluation, {}).get(arm, {})
                    if "accuracy" in values:
                        found.setdefault(seed, []).append(float(values["accuracy"]))
        return {seed: float(np.mean(values)) for seed, values in found.items()}

    def levels(self, evaluation: str) -> tuple[dict[int, float], str]:
        """Return the accuracy to reach, by seed, and what it is in words.

        It is `SHARE` of the accuracy of annotating everything, or if no arm has done that, of the
        last accuracy of the arm that is best on average.
        """
        whole = self.whole(evaluation)
        if whole:
            text = f"{100 * SHARE:.0f} % of the accuracy of annotating everything"
            text += _of_seeds(len(whole), len(self.seeds))
            return {seed: SHARE * value for seed, value in whole.items()}, text
        last = {
            arm: {seed: float(c.values[-1]) for seed, c in curves.items()}
            for arm in self.rounds
            if (curves := self.curves(evaluation, arm, "accuracy", "annotations"))
        }
        if not last:
            return {}, ""
        best = max(last, key=lambda arm: float(np.mean([*last[arm].values()])))
        text = f"{100 * SHARE:.0f} % of the last accuracy of {best}, the best arm"
        text += _of_seeds(len(last[best]), len(self.seeds))
        return {seed: SHARE * value for seed, value in last[best].items()}, text

    def needed(self, evaluation: str, place: str) -> list[NeededRow]:
        """Return what each arm needs to reach its level, with the differences paired by seed."""
        levels, _ = self.levels(evaluation)
        if not levels:
            return []
        curves = {arm: self.curves(evaluation, arm, "accuracy", place) for arm in self.rounds}

        def alone(arm: str) -> Needed:
            seeds = [seed for seed in levels if seed in curves[arm]]
            own, targets = _of(curves[arm], seeds), _of(levels, seeds)
            return needed_by_all(own, targets) if seeds else None

        def more(arm: str, other: str) -> Needed:
            seeds = [seed for seed in levels if seed in curves[arm] and seed in curves[other]]
            ours, theirs = _of(curves[arm], seeds), _of(curves[other], seeds)
            return needed_difference(ours, theirs, _of(levels, seeds)) if seeds else None

        return [
            NeededRow(
                arm, alone(arm), {other: more(arm, other) for other in curves if other != arm}
            )
            for arm in curves
        ]


def _arm_of(row: str, arms: Mapping[str, object]) -> str:
    return row if row in arms else row.removesuffix(" + T")


def _of(values: Mapping[int, _T], seeds: Sequence[int]) -> list[_T]:
    return [values[seed] for seed in seeds]


def _of_seeds(count: int, whole: int) -> str:
    """Say how many seeds something is about, unless it is about all."""
    return "" if count == whole else f" ({count} of {whole} seeds)"


def asked(facts: Facts) -> int:
    """Return how many questions were chosen by the end of a round, failures included."""
    return int(facts.get("asked", facts["annotations"]))  # earlier versions did not state it


def spent(facts: Facts, place: str) -> float:
    """Return what was spent by the end of a round."""
    if place == "tokens":
        return float(facts["tokens_read"] + facts["tokens_written"])
    return float(facts.get(place, 0.0))


def in_text(mean: Needed, seeds: int = 1, *, signed: bool = False) -> str:
    """Return a number of annotations, tokens or money with its interval.

    Args:
        mean: the number.
        seeds: number of seeds that there are; fewer are named.
        signed: whether a plus sign is written.
    """
    if mean is None:
        return DASH
    if isinstance(mean, NotReached):
        return f"not reached in {mean.missing} of {mean.seeds} seeds"
    sign = "+" if signed else ""
    digits = ".3g" if abs(mean.value) < 10 else ",.0f"
    text = format(mean.value, f"{sign}{digits}")
    if mean.interval is not None:
        low, high = (format(end, f"{sign}{digits}") for end in mean.interval)
        text = f"{text} [{low}, {high}]"
    return text + (_of_seeds(mean.seeds, seeds) if mean.seeds < seeds else "")


def needed_in_text(mean: Needed, seeds: int) -> str:
    """Return what is needed, of which nothing means that students start with it.

    Args: as for `in_text`.
    """
    text = in_text(mean, seeds)
    at_start = isinstance(mean, MeanOverSeeds) and mean.value == 0
    return f"{text}: reached at the start" if at_start else text


def rounds_table(data: RoundsData) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table of all rounds; columns without a value are left out.

    A dash stands for what was not measured.
    """
    rows = [
        [arm, str(seed), *(_counted(facts.get(key)) for key in ROUND_COLUMNS)]
        for arm, seeds in data.rounds.items()
        for seed, every in seeds.items()
        for facts in every
    ]
    columns = list(zip(["arm", "seed", *ROUND_COLUMNS.values()], *rows, strict=True))
    kept = [column for column in columns if any(cell != DASH for cell in column[1:])]
    return [column[0] for column in kept], [list(row) for row in zip(*kept, strict=True)][1:]


def _counted(count: int | None) -> str:
    return DASH if count is None else f"{count:,}"


def costless(data: RoundsData) -> dict[str, list[str]]:
    """Return the arms that have spent nothing of what others have, by place."""
    ends = {
        arm: [every[-1] for every in seeds.values() if every] for arm, seeds in data.rounds.items()
    }
    return {
        place: [arm for arm, last in ends.items() if not any(spent(each, place) for each in last)]
        for place in data.places
    }


def compared(needed: Sequence[NeededRow]) -> list[str]:
    """Return the arms with which the page compares every arm."""
    rows = [each.row for each in needed]
    return rows if len(rows) <= MOST_COMPARED else rows[:1]


def needed_csv(data: RoundsData) -> str:
    """Return what each arm needs, and how much more than each other arm, at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("evaluation", "by", "arm", "more_than", "mean", "low", "high", "seeds", "not_reached")
    writer.writerow(head)
    for evaluation in data.evaluations:
        for place in data.places:
            for each in data.needed(evaluation, place):
                for other, mean in {"": each.needed, **each.versus}.items():
                    writer.writerow((evaluation, place, each.row, other, *_cells(mean)))
    return file.getvalue()


def _cells(mean: Needed) -> tuple[float | str, ...]:
    """Return mean, lower and upper limit, number of seeds, and how many do not reach the level."""
    if mean is None:
        return ("", "", "", 0, "")
    if isinstance(mean, NotReached):
        return ("", "", "", mean.seeds, mean.missing)
    return (mean.value, *(mean.interval or ("", "")), mean.seeds, 0)


def share_in_text(mean: MeanOverSeeds, metric: Metric) -> str:
    """Return a metric with its interval, in percent."""
    if mean.half_width is None:
        return metric.text(mean.value)
    return f"{metric.text(mean.value)} ± {100 * mean.half_width:.1f}"


def last_rows(data: RoundsData, evaluation: str) -> Iterator[tuple[str, ...]]:
    """Yield each row's name, its number of seeds, what it has spent, and its last metrics."""
    for row in data.rows:
        cells = [row, str(len(data.curves(evaluation, row, "accuracy", "annotations")))]
        for place in data.places:
            curves = data.curves(evaluation, row, "accuracy", place)
            ends = [float(curve.places[-1]) for curve in curves.values()]
            cells.append(in_text(MeanOverSeeds(float(np.mean(ends)), None, 1)) if ends else DASH)
        for metric in SHOWN:
            curves = data.curves(evaluation, row, metric.name, "annotations")
            last = [float(curve.values[-1]) for curve in curves.values()]
            cells.append(share_in_text(MeanOverSeeds.of(last), metric) if last else DASH)
        yield tuple(cells)


def to_csv(data: RoundsData) -> str:
    """Return one line per arm, seed, round, evaluation and row, at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ("arm", "seed", "round", "annotations", "tokens_read", "tokens_written", "cost")
    counts = ("failures", "contradictions", "retried", "flawed", "right_for_wrong_reasons")
    writer.writerow([*head, *counts, "evaluation", "model", *METRICS])
    for arm, seeds in data.rounds.items():
        for seed, every in seeds.items():
            for facts in every:
                start = [arm, seed, *(facts.get(key, "") for key in (*head[2:], *counts))]
                for evaluation, rows in facts["evaluations"].items():
                    for row, values in rows.items():
                        metrics = [values.get(name, "") for name in METRICS]
                        writer.writerow([*start, evaluation, row, *metrics])
    return file.getvalue()
