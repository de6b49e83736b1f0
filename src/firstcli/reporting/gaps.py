"""Bars of accuracy with the gap to the confidence, coloured by its direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from firstcli.reporting.style import INK

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


class GapStyle(NamedTuple):
    """Fill of the gaps of one direction."""

    edge: str
    face: str
    hatch: str


# Colours that are safe for the colour-blind (Okabe and Ito 2008); hatching repeats the distinction.
OVER = GapStyle(edge="#D55E00", face="#F7CDAE99", hatch="/////")
UNDER = GapStyle(edge="#0072B2", face="#A8D1EA99", hatch="\\\\\\\\\\")
ACCURACY = "#E4E7EB"
BAND = "#CFC8E6"


class Gap(NamedTuple):
    """One bar: its position, confidence and accuracy, and the accuracy's interval."""

    left: float
    width: float
    confidence: float
    accuracy: float
    low: float
    high: float


def draw(axes: Axes, gap: Gap) -> None:
    """Draw the bar of accuracy, the gap to the confidence, and the accuracy's interval."""
    left, width, confidence, accuracy, low, high = gap
    style = OVER if confidence > accuracy else UNDER
    axes.bar(left, accuracy, width, align="edge", color=ACCURACY, edgecolor="white", zorder=1)
    axes.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor=style.face,
        edgecolor=style.edge,
        hatch=style.hatch,
        linewidth=0.7,
        zorder=2,
    )
    middle = left + width / 2
    axes.plot([left, left + width], [accuracy] * 2, color=INK, linewidth=1.6, zorder=4)
    axes.plot([middle] * 2, [low, high], color=INK, linewidth=0.9, zorder=4, clip_on=False)


def key(place: SubFigure, accuracy: str, more: list[Artist]) -> None:
    """Draw the key to the marks, shared by all panels."""
    handles = [
        Line2D([], [], color=INK, linewidth=1.6, label=accuracy),
        Line2D(
            *([], []),
            color=INK,
            linewidth=0,
            marker="|",
            markersize=9,
            markeredgewidth=0.9,
            label="its 95 % interval",
        ),
        _patch(OVER, "over-confident by"),
        _patch(UNDER, "under-confident by"),
        *more,
    ]
    place.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0.0, 0.5),
        ncols=2,
        fontsize=7.5,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
    )


def _patch(style: GapStyle, label: str) -> Patch:
    return Patch(
        facecolor=style.face, edgecolor=style.edge, hatch=style.hatch, linewidth=0.7, label=label
    )


def band_patch(label: str) -> Patch:
    return Patch(facecolor=BAND, linewidth=0, label=label)
