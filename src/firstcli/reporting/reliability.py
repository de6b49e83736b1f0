"""Reliability diagrams (the paper's Figure 5): accuracy over confidence, before and after `+ T`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from firstcli.api import JSON
from firstcli.metrics import EvalMetrics, ReliabilityBin, reliability_bins
from firstcli.reporting.data import PLUS_T, ReportData
from firstcli.reporting.style import (
    BAND,
    CALIBRATED,
    INK,
    SOFT,
    Drawing,
    Look,
    Numbers,
    Panel,
    axes,
    heading,
    looks,
)
from firstcli.reporting.table import ECE, p_text

FEW = 20
"""A bin with fewer questions is faded."""
_FADED = 0.3
_TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]


class Filled(NamedTuple):
    """A `ReliabilityBin` that contains questions, so that all values are known."""

    lo: float
    hi: float
    n: int
    confidence: float
    accuracy: float
    low: float
    high: float
    band_low: float
    band_high: float


class BinnedRow(NamedTuple):
    """The bins of one row: a model, or the model with its temperature."""

    row: str
    metrics: EvalMetrics
    bins: Sequence[ReliabilityBin]
    look: Look

    @property
    def filled(self) -> list[Filled]:
        return [Filled._make(b) for b in self.bins if b.n]


def drawing(data: ReportData, evaluation: str, first: Sequence[str] = ()) -> Drawing | None:
    """Return one panel per model, at its first seed; None if no confidence is known.

    Args:
        data: the report.
        evaluation: the evaluation's name.
        first: the models whose panels come first, by their row without a temperature.
    """
    look = looks(data.rows)
    curves = {
        row: BinnedRow(
            row,
            data.metrics[evaluation, data.models(evaluation, row)[0]],
            reliability_bins(confidence, records.correct, data.settings.bins),
            look[row],
        )
        for row in data.rows
        for records, confidence in data.shown(evaluation, row)[:1]
    }
    if not curves:
        return None
    order = {row: i for i, row in enumerate(first)}
    pairs = sorted(_by_model(curves), key=lambda pair: order.get(pair[0].row, len(order)))
    panels = [panel(pair, data.settings.confidence) for pair in pairs]
    rows: list[tuple[JSON, ...]] = [
        (row, *b) for row, curve in curves.items() for b in curve.filled
    ]
    key = Panel("key", _key, "Key to the reliability diagrams, explained in the text above.")
    numbers = Numbers(("model", *ReliabilityBin._fields), rows)
    name = f"reliability+{evaluation}"
    return Drawing(name, tuple(panels), numbers, key, size=(3.0, 3.15), key_height=0.45)


def _by_model(curves: dict[str, BinnedRow]) -> Iterator[list[BinnedRow]]:
    """Yield each model's curves: before and, if there is one, after the temperature."""
    for row, curve in curves.items():
        if not (row.endswith(PLUS_T) and row.removesuffix(PLUS_T) in curves):
            after = curves.get(row + PLUS_T)
            yield [curve, *([after] if after else [])]


def panel(curves: Sequence[BinnedRow], kind: str) -> Panel:
    """Return the diagram of one model.

    Args:
        curves: the model and, if evaluated, the same model with its temperature.
        kind: the kind of confidence.
    """
    title = curves[0].row + (f" →{PLUS_T}" if len(curves) > 1 else "")
    last = curves[-1].metrics
    eces = " → ".join(ECE.text(curve.metrics.ece) for curve in curves)
    null = "" if last.ece_null is None else f" (null {ECE.text(last.ece_null)})"
    line = f"ECE {eces}{null} · Acc {ECE.text(last.accuracy)}"
    description = f"Reliability diagram of {title}. {' '.join(map(_described, curves))}"
    return Panel(title, partial(_draw, title, line, curves, kind), description)


def _described(curve: BinnedRow) -> str:
    m, filled = curve.metrics, curve.filled
    over = sum(b.confidence > b.accuracy for b in filled)
    under = sum(b.confidence < b.accuracy for b in filled)
    outside = sum(not b.band_low <= b.accuracy <= b.band_high for b in filled)
    p = "" if m.ece_p is None else f" ({p_text(m.ece_p)})"
    return (
        f"{curve.row}: ECE {ECE.text(m.ece)} percent, compared with {ECE.text(m.ece_null)} for a "
        f"perfectly calibrated model{p}; accuracy {ECE.text(m.accuracy)} percent, mean confidence "
        f"{ECE.text(m.confidence)} percent, {m.n} questions; of {len(filled)} bins in use, {over} "
        f"over-confident and {under} under-confident, {outside} outside the range of calibrated "
        "models."
    )


def _draw(title: str, line: str, curves: Sequence[BinnedRow], kind: str, place: SubFigure) -> None:
    heading(place, title, line)
    main = axes(place, bottom=0.86)
    counts = axes(place, top=2.36, bottom=0.42)
    main.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1.5)
    for b in curves[-1].filled:
        main.fill_between(
            [b.lo, b.hi], b.band_low, b.band_high, color=CALIBRATED, linewidth=0, zorder=1
        )
    for curve in curves:
        _draw_curve(main, curve)
    main.set(xlim=(0, 1), ylim=(0, 1), xticks=_TICKS, xticklabels=[], yticks=_TICKS)
    main.set_ylabel("accuracy")
    _draw_counts(counts, curves)
    counts.set_xlabel(f"confidence ({kind})")


def _draw_curve(main: Axes, curve: BinnedRow) -> None:
    filled, look = curve.filled, curve.look
    xs, ys = [b.confidence for b in filled], [b.accuracy for b in filled]
    line: dict[str, Any] = {"color": look.color, "linestyle": look.line, "zorder": 3}
    for start, end in zip(range(len(filled)), range(1, len(filled)), strict=False):
        faded = min(filled[start].n, filled[end].n) < FEW
        pair = slice(start, end + 1)
        main.plot(xs[pair], ys[pair], linewidth=1.2, alpha=_FADED if faded else 1.0, **line)
    for b in filled:
        alpha = _FADED if b.n < FEW else 1.0
        main.plot([b.confidence] * 2, [b.low, b.high], color=look.color, alpha=alpha, linewidth=0.8)
        face = look.color if look.filled else "white"
        mark: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": face}
        main.plot(b.confidence, b.accuracy, color=look.color, alpha=alpha, zorder=4, **mark)


def _draw_counts(main: Axes, curves: Sequence[BinnedRow]) -> None:
    """Draw how many questions each bin has: filled before, an outline after the temperature."""
    edges = np.array([*(b.lo for b in curves[0].bins), curves[0].bins[-1].hi])
    for curve in curves:
        counts = [b.n for b in curve.bins]
        if curve.look.filled or len(curves) == 1:
            main.stairs(counts, edges, fill=True, color=BAND, alpha=0.8)
        else:
            main.stairs(counts, edges, color=curve.look.color, linewidth=1.0)
    largest = max(b.n for curve in curves for b in curve.bins)
    main.set(xlim=(0, 1), ylim=(0, 1.1 * largest), yticks=[largest], xticks=_TICKS)
    main.tick_params(axis="y", labelsize=6.5)
    main.spines[["left"]].set_visible(False)


def _key(place: SubFigure) -> None:
    dot: dict[str, Any] = {"color": SOFT, "marker": "o", "markersize": 4, "linewidth": 1.2}
    hollow = dot | {"markerfacecolor": "white", "linestyle": (0, (4, 2))}
    place.legend(
        handles=[
            Line2D([], [], label="model, 95 % interval", **dot),
            Line2D([], [], label="the same + T", **hollow),
            Line2D([], [], label=f"fewer than {FEW} questions", alpha=_FADED, **dot),
            Patch(facecolor=CALIBRATED, linewidth=0, label="95 % of calibrated models"),
        ],
        loc="center left",
        bbox_to_anchor=(0.0, 0.5),
        ncols=2,
        fontsize=7.5,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.2,
    )
