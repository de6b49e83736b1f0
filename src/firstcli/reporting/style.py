"""The common style of all figures, and how they are saved; matplotlib's own style is untouched."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from firstcli.api import JSON
from firstcli.reporting.data import PLUS_T, TEACHER

INK = "#222222"
SOFT = "#5F6875"
GRID = "#E3E6EA"
BAND = "#AEB6C2"
BAR = "#E4E7EB"
CALIBRATED = "#CFC8E6"
OVER, OVER_FILL = "#D55E00", "#F7CDAE"
UNDER, UNDER_FILL = "#0072B2", "#A8D1EA"

# Colours that are safe for the colour-blind (Okabe and Ito 2008), without yellow, which is
# invisible on white. Lines and markers repeat the distinction.
_HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DARK = {
    INK: "#E4E8EE",
    SOFT: "#A3ADBA",
    GRID: "#2C343E",
    BAND: "#66717F",
    BAR: "#333C47",
    CALIBRATED: "#4B4570",
    OVER_FILL: "#7A4A26",
    UNDER_FILL: "#2B5874",
    "#FFFFFF": "#14181D",
    "#0072B2": "#58ACE6",
    "#D55E00": "#F28C45",
    "#009E73": "#35C99D",
    "#CC79A7": "#E5A3CB",
}
"""The colour in dark mode that takes the place of each colour of a figure; the SVG file of a
figure contains both, so the page follows the reader's system without a second image."""
_MARKERS = "osD^vP"
Dash = Literal["-"] | tuple[float, tuple[float, ...]]
_DASHES: tuple[Dash, ...] = ("-", (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))

_DPI = 160
_PER_ROW = 4
_KEY_WIDTH = 3.3
_KEY_COLUMNS = 3
_SETTINGS = {
    "font.size": 8.0,
    "axes.linewidth": 0.7,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # the usual 13 names are a fifth of an SVG
    "svg.fonttype": "none",  # text in the reader's font, half the size of outlines
}


class Look(NamedTuple):
    """The style of one row of the table in every figure."""

    color: str
    line: Dash
    marker: str
    filled: bool

    @property
    def options(self) -> dict[str, Any]:
        """The look as keyword arguments of matplotlib."""
        face = self.color if self.filled else "white"
        line = {"color": self.color, "linestyle": self.line}
        return line | {"marker": self.marker, "markerfacecolor": face}


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: an image on the page and a part of the figure's file."""

    title: str
    draw: Callable[[SubFigure], None]
    description: str
    """Text alternative for readers who cannot see the image."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a figure as a table; shares are fractions of 1."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[JSON, ...]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure: panels of equal size, their key, and their numbers."""

    name: str
    """The file name without its suffix."""
    panels: tuple[Panel, ...]
    numbers: Numbers
    key: Panel | None = None
    """The key to the marks, shared by all panels."""
    size: tuple[float, float] = (3.0, 3.3)
    """Width and height of a panel in inches."""
    key_height: float = 0.62


class Picture(NamedTuple):
    """A panel for the page: SVG and its natural size in CSS pixels."""

    svg: bytes
    description: str
    width: int
    height: int
    key: bool = False


def looks(rows: Sequence[str]) -> dict[str, Look]:
    """Return the look of each row: black for the teacher, dashed and hollow for `+ T`."""
    arms = [row for row in rows if not row.endswith(PLUS_T) and row != TEACHER]
    result = {TEACHER: Look(INK, "-", "X", True)}
    for i, arm in enumerate(arms):
        turn, hue = divmod(i, len(_HUES))
        result[arm] = Look(_HUES[hue], _DASHES[turn % len(_DASHES)], _MARKERS[hue], True)
    for row in rows:
        if row.endswith(PLUS_T):
            plain = result.get(row.removesuffix(PLUS_T), result[TEACHER])
            result[row] = plain._replace(line=(0, (4, 2)), filled=False)
    return {row: result[row] for row in rows}


def save(drawing: Drawing, folder: Path) -> list[Picture]:
    """Write a drawing as SVG and PNG into `folder`; return its key and panels as pictures.

    The same drawing gives the same bytes, whatever the user's matplotlib style.
    """
    with _settings(drawing):
        whole = _whole(drawing)
        title = "; ".join(panel.title for panel in drawing.panels)
        (folder / f"{drawing.name}.svg").write_bytes(_svg(whole, title))
        (folder / f"{drawing.name}.png").write_bytes(_png(whole))
        pictures = [_picture(panel, drawing.size) for panel in drawing.panels]
        if drawing.key:
            key = _picture(drawing.key, (_KEY_WIDTH, drawing.key_height))
            pictures.insert(0, key._replace(key=True))
        return pictures


def png(drawing: Drawing) -> bytes:
    """Return a drawing as PNG, with the bytes that `save` writes."""
    with _settings(drawing):
        return _png(_whole(drawing))


def _settings(drawing: Drawing) -> AbstractContextManager[None]:
    settings = _SETTINGS | {"svg.hashsalt": drawing.name}  # without it, ids are random
    return matplotlib.style.context(settings, after_reset=True)


def _whole(drawing: Drawing) -> Figure:
    """Draw all panels in a grid with the key below."""
    columns = min(len(drawing.panels), _PER_ROW)
    lines = -(-len(drawing.panels) // columns)
    width, height = drawing.size
    below = drawing.key_height if drawing.key else 0.0
    total = (max(width * columns, _KEY_WIDTH if drawing.key else 0.0), height * lines + below)
    figure = Figure(figsize=total, dpi=_DPI, facecolor="white")
    parts = [height * lines, below] if drawing.key else [1.0]
    above, *strip = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=parts).flat
    if drawing.key:
        drawing.key.draw(strip[0])
    places = above.subfigures(lines, columns, squeeze=False).flat
    for place, panel in zip(places, drawing.panels, strict=False):  # the last row may have gaps
        panel.draw(place)
    return figure


def _picture(panel: Panel, size: tuple[float, float]) -> Picture:
    figure = Figure(figsize=size, facecolor="white")
    panel.draw(figure.subfigures(1, 1, squeeze=False)[0, 0])
    width, height = (round(96 * inches) for inches in size)
    return Picture(_svg(figure, panel.title), panel.description, width, height)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _svg(figure: Figure, title: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None, "Title": title})
    svg = file.getvalue()
    return svg.replace(b"</style>", _dark_rules(svg.decode("utf-8")).encode() + b"</style>", 1)


def _dark_rules(svg: str) -> str:
    """Return the CSS that exchanges the colours of an SVG file in dark mode."""
    rules = [
        f'[style*="{name}: {color}"],[{name}="{color}"]{{{name}:{_DARK[key]}!important}}'
        for key in _DARK
        for name in ("fill", "stroke")
        if f"{name}: {(color := key.lower())}" in svg or f'{name}="{color}"' in svg
    ]
    return f"@media (prefers-color-scheme:dark){{{''.join(rules)}}}" if rules else ""


def inches(place: SubFigure) -> tuple[float, float]:
    """Return a panel's width and height in inches."""
    return place.bbox.width / place.figure.dpi, place.bbox.height / place.figure.dpi


def heading(place: SubFigure, title: str, line: str = "") -> None:
    """Write a panel's title and a smaller line of numbers below it."""
    width, height = inches(place)
    fitting = 72 * 0.92 * width / (0.68 * len(title))  # points; bold letters are 0.68 of it wide
    for text, below, size, weight in (
        (title, 0.15, min(9.0, fitting), "bold"),
        (line, 0.32, 7.5, "normal"),
    ):
        place.text(
            *(0.1 / width, 1 - below / height, text),
            size=size,
            weight=weight,
            va="center",
            parse_math=False,
        )


def logarithmic(main: Axes, ticks: Sequence[float]) -> None:
    """Make the x axis logarithmic, with plain numbers at the ticks."""
    main.set_xscale("log")
    main.set_xticks(ticks)
    main.xaxis.set_major_formatter(ScalarFormatter())
    main.xaxis.set_minor_formatter(NullFormatter())


def percent(axis: Axis) -> None:
    """Label an axis of shares in percent, with as many digits as its ticks have."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))


def axes(
    place: SubFigure, *, left: float = 0.5, right: float = 0.17, top: float = 0.48, bottom: float
) -> Axes:
    """Return axes with the given margins.

    Args:
        place: the panel.
        left: left margin in inches, and so on for the other sides.
        right: right margin.
        top: top margin.
        bottom: bottom margin.
    """
    width, height = inches(place)
    return place.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )


def key_columns(rows: Iterable[str]) -> int:
    """Return in how many columns of a narrow panel's key these names fit."""
    longest = max(map(len, rows), default=0)
    return 3 if longest <= 11 else 2 if longest <= 22 else 1


def key_height(count: int, columns: int = _KEY_COLUMNS) -> float:
    """Return the height in inches of a key with `count` entries."""
    return 0.17 * -(-count // columns)


def keyed_axes(
    place: SubFigure,
    title: str,
    shown: Mapping[str, Look],
    columns: int = _KEY_COLUMNS,
    **margins: float,
) -> Axes:
    """Return axes below a title and above the key to the rows' lines.

    Args:
        place: where they are drawn.
        title: the panel's title.
        shown: the rows and their looks.
        columns: columns of the key.
        margins: further margins in inches.
    """
    heading(place, title)
    length = 45 if min(columns, len(shown)) == 1 else 22
    handles = [
        Line2D([], [], **look.options, label=shortened(row, length)) for row, look in shown.items()
    ]
    place.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=min(columns, len(handles)),
        fontsize=7.5,
        frameon=False,
        handlelength=2.6,
        columnspacing=1.0,
        labelspacing=0.35,
    )
    return axes(place, top=0.32, bottom=0.45 + key_height(len(shown), columns), **margins)


def label_points(main: Axes, points: Iterable[tuple[float, float]], text: str) -> None:
    """Write the value of each point above it, in the format `text`."""
    above: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
    for x, y in points:
        main.annotate(text.format(y), (x, y), size=7, **above)


def shortened(text: str, length: int) -> str:
    """Replace the middle of a text that exceeds a length by an ellipsis."""
    if len(text) <= length:
        return text
    kept = length - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
