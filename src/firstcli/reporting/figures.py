# ruff: noqa: TID253
"""Reliability diagrams: accuracy against confidence, bin by bin, with the number of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from firstcli.metrics import EvalMetrics, ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


class GapStyle(NamedTuple):
    """How a gap of one direction is filled."""

    edge: str
    face: str
    hatch: str


# Colours that the colour-blind can tell apart (Okabe and Ito 2008); the hatching says it as well.
ACCURACY = "#C9CED6"
OVER = GapStyle(edge="#D55E00", face="#F9DFCC", hatch="////")
UNDER = GapStyle(edge="#0072B2", face="#CCE3F0", hatch="\\\\\\\\")
INK = "#222222"

_SIZE = (3.2, 3.8)  # inches of one diagram
_PER_ROW = 5


@dataclass(frozen=True, slots=True)
class Diagram:
    """What one reliability diagram shows."""

    title: str
    metrics: EvalMetrics
    bins: Sequence[ReliabilityBin]
    confidence: str
    """The kind of confidence, for the axis."""

    def description(self) -> str:
        """Say in words what the diagram shows, for those who cannot see it."""
        used = [(b.confidence, b.accuracy) for b in self.bins if b.n]
        over = sum(c > a for c, a in used if c is not None and a is not None)
        under = sum(c < a for c, a in used if c is not None and a is not None)
        m = self.metrics
        return (
            f"Reliability diagram of {self.title}: ECE {_percent(m.ece)} percent, accuracy "
            f"{_percent(m.accuracy)} percent, {m.n} questions; of {len(used)} bins in use "
            f"{over} over-confident and {under} under-confident."
        )


def save_diagrams(diagrams: Sequence[Diagram], stem: Path) -> bytes:
    """Draw diagrams side by side, write `stem`.svg and `stem`.png, and return the SVG.

    The same diagrams give the same bytes, whatever style the user has set for matplotlib.
    """
    with _style(salt=stem.name):
        figure = _figure(diagrams)
        svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
        title = "; ".join(diagram.title for diagram in diagrams)
        figure.savefig(svg, metadata={"Date": None, "Title": title})
        figure.savefig(png, metadata={"Software": None})
    return svg.read_bytes()


@contextmanager
def _style(salt: str) -> Iterator[None]:
    with mpl.rc_context():  # restores what the process had
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 8.0
        mpl.rcParams["axes.linewidth"] = 0.7
        mpl.rcParams["axes.edgecolor"] = INK
        mpl.rcParams["hatch.linewidth"] = 0.7
        mpl.rcParams["svg.hashsalt"] = salt  # else ids are random
        yield


def _figure(diagrams: Sequence[Diagram]) -> Figure:
    columns = min(len(diagrams), _PER_ROW)
    rows = -(-len(diagrams) // columns)
    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), dpi=160, facecolor="white")
    places = figure.subfigures(rows, columns, squeeze=False).flat
    for place, diagram in zip(places, diagrams, strict=False):  # the last row may not be full
        _draw(place, diagram)
    return figure


def _draw(place: SubFigure, diagram: Diagram) -> None:
    m = diagram.metrics
    main = place.add_axes((0.17, 0.35, 0.78, 0.52))
    counts = place.add_axes((0.17, 0.19, 0.78, 0.12))
    size = min(9.0, 9.0 * 33 / len(diagram.title))  # points, so that a long title fits
    place.text(0.17, 0.955, diagram.title, size=size, weight="bold", va="center", parse_math=False)
    numbers = (
        f"ECE {_percent(m.ece)}   Acc {_percent(m.accuracy)}   Trust {_percent(m.trust)}   n {m.n}"
    )
    place.text(0.17, 0.905, numbers, size=7.5, va="center")
    _draw_bars(main, diagram.bins)
    _draw_counts(counts, diagram.bins)
    counts.set_xlabel(f"confidence ({diagram.confidence})")
    main.set_ylabel("accuracy")
    place.legend(
        handles=[
            Line2D([], [], color=INK, linewidth=1.6, label="accuracy"),
            _gap_patch(OVER, "over-confident by"),
            _gap_patch(UNDER, "under-confident by"),
        ],
        loc="lower center",
        bbox_to_anchor=(0.54, 0.0),
        ncols=3,
        fontsize=6,
        frameon=False,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.0,
    )


def _draw_bars(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """Draw accuracy, and between it and the mean confidence the gap; nothing for an empty bin."""
    for b in bins:
        if b.confidence is None or b.accuracy is None:
            continue
        left, width = b.lo, b.hi - b.lo
        style = OVER if b.confidence > b.accuracy else UNDER
        axes.bar(left, b.accuracy, width, align="edge", color=ACCURACY, edgecolor="white", zorder=1)
        axes.bar(
            left,
            b.confidence - b.accuracy,
            width,
            bottom=b.accuracy,
            align="edge",
            facecolor=style.face,
            edgecolor=style.edge,
            hatch=style.hatch,
            linewidth=0.7,
            zorder=2,
        )
        axes.plot([left, b.hi], [b.accuracy] * 2, color=INK, lw=1.6, zorder=4, clip_on=False)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])


def _draw_counts(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    most = max(b.n for b in bins)
    size = min(6.0, 190 / len(bins))  # points, so that the numbers of many bins do not touch
    for b in bins:
        axes.bar(b.lo, b.n, b.hi - b.lo, align="edge", color=ACCURACY, edgecolor=INK, linewidth=0.4)
        axes.text(
            (b.lo + b.hi) / 2,
            b.n + 0.08 * most,
            str(b.n),
            size=size,
            ha="center",
            va="bottom",
            rotation=90 if len(bins) > 12 or most > 99_999 else 0,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.6 * most), yticks=[], xticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_ylabel("questions", size=6)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _gap_patch(style: GapStyle, label: str) -> Patch:
    return Patch(
        facecolor=style.face, edgecolor=style.edge, hatch=style.hatch, linewidth=0.7, label=label
    )
