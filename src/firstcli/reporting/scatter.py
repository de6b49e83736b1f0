"""Accuracy against ECE: each row of the table as a point, the first picture of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from firstcli.reporting import style
from firstcli.reporting.data import PLUS_T, ReportData
from firstcli.reporting.table import ECE, PAPER

_SIZE = (4.5, 2.85)
_TEXT = 7.5  # points
_LETTER = 0.6  # mean width of a letter, per point of its size
_LONGEST = 22  # letters of a label
_LABELLED = 14  # with more points, a key is easier to read than labels


class Point(NamedTuple):
    """One row of the table: ECE and accuracy, with their 95 % intervals, as fractions of 1."""

    ece: float
    accuracy: float
    ece_ends: tuple[float, float]
    accuracy_ends: tuple[float, float]


class Limits(NamedTuple):
    """The ends of both axes, shared by the pictures of all evaluations."""

    ece: tuple[float, float]
    accuracy: tuple[float, float]


def points(data: ReportData, evaluation: str) -> dict[str, Point]:
    """Return the point of each row with a known ECE."""
    found = {}
    for row in data.rows:
        estimates = data.estimates(evaluation, row)
        if "ece" in estimates:
            ece, accuracy = estimates["ece"], estimates["accuracy"]
            found[row] = Point(ece.value, accuracy.value, ece.interval, accuracy.interval)
    return found


def limits(shown: Iterable[Point]) -> Limits:
    """Return axes that hold all points, from an ECE of zero on."""
    every = list(shown)
    right = 1.12 * max(0.05, *(p.ece for p in every))
    accuracies = [p.accuracy for p in every]
    margin = max(0.02, 0.18 * (max(accuracies) - min(accuracies)))
    bottom, top = max(0.0, min(accuracies) - margin), min(1.0, max(accuracies) + margin)
    return Limits((0.0, right), (bottom, max(top, bottom + 0.02)))


def drawing(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return accuracy against ECE for all rows; None if no ECE is known."""
    shown = points(data, evaluation)
    if not shown:
        return None
    alike = [p for name in data.illustrated for p in points(data, name).values()]
    look = {row: each for row, each in style.looks(data.rows).items() if row in shown}
    values = "; ".join(
        f"{row}: accuracy {ECE.text(p.accuracy)}, ECE {ECE.text(p.ece)}" for row, p in shown.items()
    )
    description = f"Accuracy against ECE on {evaluation}, in percent. {values}."
    rows = [(row, p.ece, *p.ece_ends, p.accuracy, *p.accuracy_ends) for row, p in shown.items()]
    names = [name for m in PAPER[:2] for name in (m.short, f"{m.short} low", f"{m.short} high")]
    n = len(data.records_of(evaluation, next(iter(shown)))[0])
    draw = partial(_draw, f"{evaluation} (n = {n:,})", shown, look, limits(alike))
    panel = style.Panel(evaluation, draw, description)
    numbers = style.Numbers(("model", *names), rows)
    height = _SIZE[1] + (style.key_height(len(shown)) if len(shown) > _LABELLED else 0)
    return style.Drawing(f"accuracy-ece+{evaluation}", (panel,), numbers, size=(_SIZE[0], height))


def _draw(
    title: str,
    shown: Mapping[str, Point],
    look: Mapping[str, style.Look],
    ends: Limits,
    place: SubFigure,
) -> None:
    if len(shown) > _LABELLED:
        main = style.keyed_axes(place, title, look, left=0.55)
    else:
        style.heading(place, title, _typical(list(shown.values())))
        main = style.axes(place, left=0.55, top=0.48, bottom=0.45)
    main.set(xlim=ends.ece, ylim=ends.accuracy)
    main.set(xlabel="calibration error (ECE): left is better", ylabel="accuracy")
    for axis in (main.xaxis, main.yaxis):
        style.percent(axis)
    main.grid(True)
    written = _draw_trust(main)
    for row, p in shown.items():
        if plain := shown.get(row.removesuffix(PLUS_T) if row.endswith(PLUS_T) else ""):
            main.plot(
                [plain.ece, p.ece],
                [plain.accuracy, p.accuracy],
                color=look[row].color,
                lw=1,
                ls=":",
            )
        mark = look[row].options | {"linestyle": "none", "markersize": 6.5, "zorder": 4}
        main.plot(p.ece, p.accuracy, **mark)
    if len(shown) <= _LABELLED:
        _label(main, shown, look, written)


def _typical(shown: Sequence[Point]) -> str:
    """Return how wide most intervals are."""
    wide, high = (
        50 * float(np.median([end[1] - end[0] for end in ends]))
        for ends in ([p.ece_ends for p in shown], [p.accuracy_ends for p in shown])
    )
    return f"95 % intervals are about ±{high:.1f} high and ±{wide:.1f} wide"


def _draw_trust(main: Axes) -> list[tuple[float, float]]:
    """Draw lines of equal Trust, accuracy - ECE; return the right ends of their labels."""
    written = []
    (left, right), (bottom, top) = main.get_xlim(), main.get_ylim()
    lowest, highest = bottom - right, top - left
    step = 0.1 if highest - lowest > 0.25 else 0.05
    for i in range(math.ceil(lowest / step), math.floor(highest / step) + 1):
        trust = i * step
        main.axline((0, trust), slope=1, color=style.BAND, lw=0.8, ls=(0, (2, 2)), zorder=1)
        x = min(right, top - trust)  # where the line leaves the picture
        if x > left + 0.25 * (right - left):
            corner = (x - 0.008 * (right - left), min(x + trust, top) - 0.012 * (top - bottom))
            up = "top" if x < right else "center"
            text = f"Trust {100 * trust:.0f}"
            main.text(*corner, text, size=6.5, color=style.SOFT, zorder=1, ha="right", va=up)
            written.append(corner)
    return written


class _Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    width: float
    height: float

    def overlap(self, other: _Box) -> float:
        """Return the area that two rectangles share."""
        across = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        up = min(self.bottom + self.height, other.bottom + other.height)
        return max(0.0, across) * max(0.0, up - max(self.bottom, other.bottom))


_DIRECTIONS = (  # right, up, and what the direction costs
    *((1, 0, 0), (-1, 0, 4), (0, 1, 6), (0, -1, 8)),
    *((0.6, 0.8, 12), (-0.6, 0.8, 14), (0.6, -0.8, 14), (-0.6, -0.8, 16)),
)
_DISTANCES = (6.0, 9.0, 13.0)  # points


def _label(
    main: Axes,
    shown: Mapping[str, Point],
    look: Mapping[str, style.Look],
    written: Sequence[tuple[float, float]],
) -> None:
    """Write each name near its point, where it covers no point, line or other text.

    Args:
        main: the axes.
        shown: the points by row.
        look: the look of each row.
        written: the right ends of the labels that are there.
    """

    def in_points(x: float, y: float) -> tuple[float, float]:
        right, up = main.transData.transform((x, y)) * 72 / main.figure.dpi
        return float(right), float(up)

    (left, right), (bottom, top) = main.get_xlim(), main.get_ylim()
    low, high = in_points(left, bottom), in_points(right, top)
    inside = _Box(*low, high[0] - low[0], high[1] - low[1])
    centres = {row: in_points(p.ece, p.accuracy) for row, p in shown.items()}
    taken = [_Box(x - 4, y - 4, 8, 8) for x, y in centres.values()]
    taken += [_Box(x - 32, y - 8, 32, 12) for x, y in (in_points(*end) for end in written)]
    for row, (x, y) in centres.items():  # the lines to the points with a temperature
        if row + PLUS_T in centres:
            end = centres[row + PLUS_T][0]
            taken.append(_Box(min(x, end), y - 0.5, abs(x - end), 1))
    for row, p in shown.items():
        x, y = centres[row]
        text = style.shortened(row, _LONGEST)
        size = (_LETTER * _TEXT * len(text), 1.15 * _TEXT)
        costs = [(_cost(box, taken, inside) + d, box) for d, box in _places(x, y, *size)]
        _, best = min(costs)
        taken.append(best)
        main.annotate(
            text,
            (p.ece, p.accuracy),
            xytext=(best.left - x, best.bottom - y),
            textcoords="offset points",
            va="bottom",
            size=_TEXT,
            color=look[row].color,
            parse_math=False,
        )


def _places(x: float, y: float, width: float, height: float) -> list[tuple[float, _Box]]:
    """Return the places of a label around a point, each with a penalty for its distance."""
    boxes = []
    for distance in _DISTANCES:
        for right, up, cost in _DIRECTIONS:
            left = x + distance * right - width * (1 - np.sign(right)) / 2
            bottom = y + distance * up - height * (1 - np.sign(up)) / 2
            boxes.append((4 * distance + cost, _Box(left, bottom, width, height)))
    return boxes


def _cost(box: _Box, taken: Sequence[_Box], inside: _Box) -> float:
    outside = box.width * box.height - box.overlap(inside)
    return sum(map(box.overlap, taken)) + 8 * outside
