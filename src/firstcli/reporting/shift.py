"""Accuracy and confidence over the strength of a shift: a panel a kind, a line a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from firstcli.api import JSON
from firstcli.metrics.calibration import Z95
from firstcli.metrics.spread import by_id
from firstcli.metrics.uncertainty import Estimate, Interval
from firstcli.recipe.shift import Shift, ShiftKind
from firstcli.reporting import style
from firstcli.reporting.data import PLUS_T, ReportData
from firstcli.reporting.shift_tables import UNSHIFTED, in_words

_TITLES: dict[ShiftKind, str] = {
    "typos": "Typing errors",
    "case": "Upper and lower case",
    "dropout": "Words left out",
    "wording": "Other wordings",
}
_AXES = {
    "typos": "words with an error",
    "case": "words in another case",
    "dropout": "words left out",
    "wording": "number of the wording",
}
_KEY_COLUMNS = 2
_LINE = 0.17  # inches of a line of the key
_HEIGHT = 1.5  # inches of the axes of one measure
_ABOVE, _BELOW = 0.36, 0.36  # inches of the title, and of the labels below the axes
_DODGE = 0.012  # of the width, between the bars of two rows


class ShiftPoint(NamedTuple):
    """An evaluation as it is or with one shift."""

    strength: float
    """0 for the evaluation as it is."""
    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of a row at the strengths of one kind."""

    strengths: tuple[float, ...]
    estimates: tuple[Estimate, ...]

    @property
    def ends(self) -> list[float]:
        """The ends of all intervals."""
        return [end for estimate in self.estimates for end in estimate.interval]


def drawing(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return the panels of an evaluation; None if it has no shifts, or no confidence is known."""
    kinds = places(data, evaluation)
    lines = {kind: _lines(data, evaluation, found) for kind, found in kinds.items()}
    lines = {kind: by_measure for kind, by_measure in lines.items() if any(by_measure.values())}
    if not lines:
        return None
    every = [line for kind in lines.values() for rows in kind.values() for line in rows.values()]
    chance = None if evaluation in data.judged else _chance(data, evaluation)
    span = _span([end for line in every for end in line.ends] + ([chance] if chance else []))
    shown = [row for row in data.rows if any(row in m for k in lines.values() for m in k.values())]
    look = {row: each for row, each in style.looks(data.rows).items() if row in shown}
    panels = tuple(
        style.Panel(
            f"{_TITLES[kind]}, {evaluation}",
            partial(_draw, kind, kinds[kind], by_measure, look, span, chance),
            _description(evaluation, kind, by_measure),
        )
        for kind, by_measure in lines.items()
    )
    measures = max(len(by_measure) for by_measure in lines.values())
    names = "; ".join(shown)
    key = style.Panel("key", partial(_key, look, chance), f"Key to the lines: {names}.")
    count = len(look) + (chance is not None)
    height = _LINE * -(-count // _KEY_COLUMNS) + 0.12
    numbers = _numbers(data, evaluation, shown)
    size = (3.0, _ABOVE + _HEIGHT * measures + _BELOW)
    return style.Drawing(f"shift+{evaluation}", panels, numbers, key, size, height)


def places(data: ReportData, evaluation: str) -> dict[ShiftKind, list[ShiftPoint]]:
    """Return where each kind of an evaluation's shifts is measured, from strength 0 upwards."""
    found: dict[ShiftKind, list[ShiftPoint]] = {}
    for name, shift in data.shifts.get(evaluation, {}).items():
        start = ShiftPoint(0.0, evaluation, UNSHIFTED)
        found.setdefault(shift.kind, [start]).append(_place(name, shift))
    return found


def _chance(data: ReportData, evaluation: str) -> float | None:
    """Return 1 / n, which is the same for all rows that answered the questions."""
    values = [data.mean(evaluation, row, "chance") for row in data.rows]
    return next((value for value in values if value is not None), None)


def _place(name: str, shift: Shift) -> ShiftPoint:
    return ShiftPoint(shift.strength, name, in_words(shift))


def _lines(
    data: ReportData, evaluation: str, found: Sequence[ShiftPoint]
) -> dict[str, dict[str, Line]]:
    """Return the lines of accuracy and confidence by row; no accuracy without a right answer.

    A row with a temperature that changes no answer has no line of accuracy: it is that of the model
    above it.
    """
    accuracy, confidence = {}, {}
    for row in data.rows:
        plain = row.removesuffix(PLUS_T)
        same = row != plain and all(data.same_answers(p.name, row, plain) for p in found)
        if evaluation in data.judged and not same:
            accuracy[row] = [(p, data.estimates(p.name, row).get("accuracy")) for p in found]
        confidence[row] = [(p, mean_confidence(data, p.name, row)) for p in found]
    measures = (
        {"accuracy": accuracy, "confidence": confidence} if accuracy else {"confidence": confidence}
    )
    return {
        title: {row: line for row, points in rows.items() if (line := _line(points))}
        for title, rows in measures.items()
    }


def _line(points: Sequence[tuple[ShiftPoint, Estimate | None]]) -> Line | None:
    known = [(place.strength, estimate) for place, estimate in points if estimate]
    return Line(*map(tuple, zip(*known, strict=True))) if known else None


def mean_confidence(data: ReportData, name: str, row: str) -> Estimate | None:
    """Return the mean confidence of a row, over questions and seeds, with its 95 % interval.

    The interval is over questions, whose confidence is the mean over the seeds.
    """
    shown = [by_id(records, confidence) for records, confidence in data.shown(name, row)]
    if not shown:
        return None
    each = np.mean(shown, axis=0)
    mean = float(each.mean())
    half = float(Z95 * each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0
    return Estimate(mean, Interval(max(0.0, mean - half), min(1.0, mean + half)))


def _span(ends: Sequence[float]) -> tuple[float, float]:
    """Return the limits of all axes, which are the same so that their lines can be compared."""
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) + 0.01
    return max(0.0, low - margin), min(1.0, high + margin)


def _description(
    evaluation: str, kind: ShiftKind, measures: Mapping[str, Mapping[str, Line]]
) -> str:
    texts = [
        f"{measure} of {row} {_range(line)}"
        for measure, rows in measures.items()
        for row, line in rows.items()
    ]
    ends = "from the questions as they are to the last wording"
    if kind != "wording":
        ends = "from strength 0 to the largest"
    return f"{_TITLES[kind]} in {evaluation}, in percent, {ends}: {'; '.join(texts)}."


def _range(line: Line) -> str:
    first, last = (100 * line.estimates[place].value for place in (0, -1))
    return f"{first:.1f} to {last:.1f}"


def _numbers(data: ReportData, evaluation: str, rows: Sequence[str]) -> style.Numbers:
    columns = ("shift", "model", "accuracy", "low", "high", "mean confidence", "low", "high")
    start = ShiftPoint(0.0, evaluation, UNSHIFTED)
    each = [start, *(_place(name, shift) for name, shift in data.shifts[evaluation].items())]
    values = [
        (
            place.title,
            row,
            *_cells(data.estimates(place.name, row).get("accuracy")),
            *_cells(mean_confidence(data, place.name, row)),
        )
        for place in each
        for row in rows
    ]
    return style.Numbers(columns, values)


def _cells(estimate: Estimate | None) -> tuple[JSON, ...]:
    return (estimate.value, *estimate.interval) if estimate else (None, None, None)


def _draw(
    kind: ShiftKind,
    found: Sequence[ShiftPoint],
    measures: Mapping[str, Mapping[str, Line]],
    look: Mapping[str, style.Look],
    span: tuple[float, float],
    chance: float | None,
    place: SubFigure,
) -> None:
    """Draw a panel: the axes of each measure below one another.

    Args:
        kind: the kind of shifts.
        found: the strengths, from 0 upwards.
        measures: the lines by measure and row.
        look: the look of each row.
        span: limits of the measures.
        chance: 1 / n, if no answer is right.
        place: where to draw.
    """
    style.heading(place, _TITLES[kind])
    _, height = style.inches(place)
    each = (height - _ABOVE - _BELOW) / len(measures)
    for number, (measure, rows) in enumerate(measures.items()):
        top = _ABOVE + number * each
        main = style.axes(place, left=0.6, top=top, bottom=height - top - each + 0.12)
        _draw_lines(main, kind, rows, look)
        main.set(ylim=span, ylabel="accuracy" if measure == "accuracy" else "mean confidence")
        style.percent(main.yaxis)
        main.grid(True)
        _label_strengths(main, kind, found)
        if number + 1 < len(measures):
            main.set_xticklabels([])
        else:
            main.set_xlabel(_AXES[kind])
        if chance is not None:
            main.axhline(chance, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))


def _draw_lines(
    main: Axes, kind: ShiftKind, rows: Mapping[str, Line], look: Mapping[str, style.Look]
) -> None:
    """Draw the lines of one measure; rows are a little apart, so that no bar hides another.

    Wordings have no order, so no line joins them.

    Args:
        main: the axes.
        kind: the kind of shifts.
        rows: the lines by row.
        look: the look of each row, in the order of the table.
    """
    joined: dict[str, Any] = {} if kind != "wording" else {"linestyle": "none"}
    for number, row in enumerate(look):
        if (line := rows.get(row)) is None:
            continue
        apart = _DODGE * max(line.strengths) * (number - (len(look) - 1) / 2)
        values = [e.value for e in line.estimates]
        # a value is within its interval except for rounding
        below = [max(0.0, e.value - e.interval.low) for e in line.estimates]
        above = [max(0.0, e.interval.high - e.value) for e in line.estimates]
        color = look[row].color
        bars: dict[str, Any] = {"elinewidth": 0.7, "capsize": 0, "ecolor": color}
        xs = [strength + apart for strength in line.strengths]
        options = look[row].options | joined | {"markersize": 3.2}
        main.errorbar(xs, values, [below, above], **bars, **options)


def _label_strengths(main: Axes, kind: ShiftKind, found: Sequence[ShiftPoint]) -> None:
    labels = [f"{100 * p.strength:g} %" if p.strength else "0" for p in found]
    if kind == "wording":
        labels = [f"{p.strength:g}" if p.strength else "own" for p in found]
    main.set_xticks([p.strength for p in found], labels)


def _key(look: Mapping[str, style.Look], chance: float | None, place: SubFigure) -> None:
    handles = [
        Line2D([], [], **each.options, label=style.shortened(row, 22)) for row, each in look.items()
    ]
    if chance is not None:
        dashed: dict[str, Any] = {"color": style.INK, "linewidth": 0.9, "linestyle": (0, (4, 3))}
        handles.append(Line2D([], [], label=f"1 / n = {100 * chance:.1f} %", **dashed))
    place.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0.0, 0.5),
        ncols=_KEY_COLUMNS,
        fontsize=7.5,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.2,
        labelspacing=0.35,
    )
