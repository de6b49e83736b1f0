"""Bars of accuracy with the gap to the confidence, coloured by its direction."""

from __future__ import annotations

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from firstcli.reporting.style import BAR, INK, OVER, OVER_FILL, UNDER, UNDER_FILL

# Colours that are safe for the colour-blind (Okabe and Ito 2008); hatching repeats the distinction.
_OVER: dict[str, Any] = {"edgecolor": OVER, "facecolor": f"{OVER_FILL}99", "hatch": "/////"}
_UNDER: dict[str, Any] = {"edgecolor": UNDER, "facecolor": f"{UNDER_FILL}99", "hatch": "\\\\\\\\\\"}


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
    axes.bar(left, accuracy, width, align="edge", color=BAR, edgecolor="white", zorder=1)
    style = (_OVER if confidence > accuracy else _UNDER) | {"linewidth": 0.7, "zorder": 2}
    axes.bar(left, confidence - accuracy, width, bottom=accuracy, align="edge", **style)
    middle = left + width / 2
    axes.plot([left, left + width], [accuracy] * 2, color=INK, linewidth=1.6, zorder=4)
    axes.plot([middle] * 2, [low, high], color=INK, linewidth=0.9, zorder=4, clip_on=False)


def key(place: SubFigure, accuracy: str, *more: Patch) -> None:
    """Draw the key to the marks, shared by all panels."""
    bar: dict[str, Any] = {"marker": "|", "markersize": 9, "markeredgewidth": 0.9}
    handles = [
        Line2D([], [], color=INK, linewidth=1.6, label=accuracy),
        Line2D([], [], color=INK, linewidth=0, label="its 95 % interval", **bar),
        Patch(linewidth=0.7, label="over-confident by", **_OVER),
        Patch(linewidth=0.7, label="under-confident by", **_UNDER),
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
