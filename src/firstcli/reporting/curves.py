"""The figures of `first select`: metrics against annotations, tokens or money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.figure import SubFigure

from firstcli.metrics import Metric
from firstcli.metrics.learning_curves import MeanOverSeeds
from firstcli.reporting import style
from firstcli.reporting.rounds import PLACES, SHOWN, RoundsData

MOST_ROWS = 8
"""Rows of a figure, if rows with ` + T` are among them; a figure of more arms leaves those out."""
Points = Sequence[tuple[float, MeanOverSeeds]]


def drawing(data: RoundsData, evaluation: str, place: str) -> style.Drawing:
    """Return one panel per metric, with a line per row.

    Args:
        data: the rounds.
        evaluation: the evaluation's name.
        place: what the metrics are drawn against, of `PLACES`.
    """
    panels, rows = [], []
    shown = [row for row in data.rows if len(data.rows) <= MOST_ROWS or row in data.rounds]
    for metric in SHOWN:
        lines = {
            row: points
            for row in shown
            if (points := data.means(evaluation, row, metric.name, place))
        }
        panels.append(_panel(lines, metric, evaluation, place))
        rows += [
            (metric.title, row, x, mean.value, *(mean.interval or (None, None)))
            for row, points in lines.items()
            for x, mean in points
        ]
    columns = ("metric", "model", PLACES[place], "mean", "low", "high")
    size = (3.4, 2.8 + style.key_height(len(shown), style.key_columns(shown)))
    numbers = style.Numbers(columns, rows)
    return style.Drawing(f"{place}+{evaluation}", tuple(panels), numbers, size=size)


def _panel(lines: Mapping[str, Points], metric: Metric, evaluation: str, place: str) -> style.Panel:
    title = f"{metric.short} on {evaluation}"
    ends = "; ".join(
        f"{row}: {metric.text(points[0][1].value)} at {points[0][0]:g}, "
        f"{metric.text(points[-1][1].value)} at {points[-1][0]:g}"
        for row, points in lines.items()
    )
    description = f"{title} in percent by {PLACES[place]}, at the start and at the end: {ends}."
    return style.Panel(title, partial(_draw, title, lines, PLACES[place]), description)


def _draw(title: str, lines: Mapping[str, Points], label: str, place: SubFigure) -> None:
    look = style.looks(list(lines))
    main = style.keyed_axes(place, title, look, style.key_columns(look), left=0.6)
    for row, points in lines.items():
        xs = [x for x, _ in points]
        main.plot(xs, [mean.value for _, mean in points], **look[row].options)
        bands = [(x, *mean.interval) for x, mean in points if mean.interval]
        if bands:
            at, low, high = zip(*bands, strict=True)
            main.fill_between(at, low, high, color=look[row].color, alpha=0.15, linewidth=0)
    style.percent(main.yaxis)
    main.set_xlabel(label)
    main.grid(True)
