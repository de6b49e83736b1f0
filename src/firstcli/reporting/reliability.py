"""Reliability diagrams (the paper's Figure 5): accuracy and confidence per bin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch

from firstcli.api import JSON
from firstcli.metrics import EvalMetrics, ReliabilityBin, reliability_bins
from firstcli.reporting import gaps
from firstcli.reporting.data import ReportData
from firstcli.reporting.gaps import Gap
from firstcli.reporting.style import INK, SOFT, Drawing, Numbers, Panel, axes, heading
from firstcli.reporting.table import ECE, p_text

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


def drawing(data: ReportData, evaluation: str) -> Drawing | None:
    """Return one diagram per row, at its first seed; None if no confidence is known."""
    panels: list[Panel] = []
    rows: list[tuple[JSON, ...]] = []
    for row in data.rows:
        for records, confidence in data.shown(evaluation, row)[:1]:
            metrics = data.metrics[evaluation, data.models(evaluation, row)[0]]
            bins = reliability_bins(confidence, records.correct, data.settings.bins)
            panels.append(panel(row, metrics, bins, data.settings.confidence))
            rows += [(row, *b) for b in bins if b.n]
    key = Panel("key", _key, "Key to the reliability diagrams, explained in the text above.")
    numbers = Numbers(("model", *ReliabilityBin._fields), rows)
    return Drawing(f"reliability+{evaluation}", tuple(panels), numbers, key) if panels else None


def panel(title: str, metrics: EvalMetrics, bins: Sequence[ReliabilityBin], kind: str) -> Panel:
    """Return one diagram; empty bins are left empty.

    Args:
        title: the model's name.
        metrics: its metrics.
        bins: its reliability bins.
        kind: the kind of confidence.
    """
    m, filled = metrics, [Filled._make(b) for b in bins if b.n]
    null = "" if m.ece_p is None else f" (null {ECE.text(m.ece_null)}, {p_text(m.ece_p)})"
    line = f"ECE {ECE.text(m.ece)}{null} · Acc {ECE.text(m.accuracy)}"
    counts = [(b.lo, b.hi, b.n) for b in bins]
    draw = partial(_draw, title, line, filled, counts, kind)
    over = sum(b.confidence > b.accuracy for b in filled)
    under = sum(b.confidence < b.accuracy for b in filled)
    outside = sum(not b.band_low <= b.accuracy <= b.band_high for b in filled)
    description = (
        f"Reliability diagram of {title}: ECE {ECE.text(m.ece)} percent, compared with "
        f"{ECE.text(m.ece_null)} for a perfectly calibrated model; accuracy "
        f"{ECE.text(m.accuracy)} percent, mean confidence {ECE.text(m.confidence)} percent, "
        f"{m.n} questions; of {len(filled)} bins in use, {over} over-confident and {under} "
        f"under-confident, {outside} outside the range of calibrated models."
    )
    return Panel(title, draw, description)


def _draw(
    title: str,
    line: str,
    filled: Sequence[Filled],
    counted: Sequence[tuple[float, float, int]],
    kind: str,
    place: SubFigure,
) -> None:
    heading(place, title, line)
    main = axes(place, bottom=1.02)
    counts = axes(place, top=2.36, bottom=0.42)
    for b in filled:
        gaps.draw(main, Gap(b.lo, b.hi - b.lo, b.confidence, b.accuracy, b.low, b.high))
        band = (b.band_low, b.band_high)
        main.fill_between([b.lo, b.hi], *band, color=gaps.BAND, linewidth=0, zorder=1.5)
    main.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    main.set(xlim=(0, 1), ylim=(0, 1), xticks=_TICKS, xticklabels=[], yticks=_TICKS)
    main.set_ylabel("accuracy")
    _draw_counts(counts, counted)
    counts.set_xlabel(f"confidence ({kind})")


def _draw_counts(main: Axes, counted: Sequence[tuple[float, float, int]]) -> None:
    largest = max(n for _, _, n in counted)
    size = min(6.5, 190 / len(counted))  # points; the counts of many bins must not touch
    for low, high, n in counted:
        box = main.bar(low, n, high - low, align="edge", color=gaps.ACCURACY)
        box[0].set(edgecolor=SOFT, linewidth=0.4)
        if len(counted) <= 30:  # more would be illegible
            rotation = 90 if len(counted) > 12 or largest > 99_999 else 0
            place = ((low + high) / 2, n + 0.08 * largest)
            main.text(*place, str(n), size=size, ha="center", va="bottom", rotation=rotation)
    main.set(xlim=(0, 1), ylim=(0, 1.6 * largest), yticks=[], xticks=_TICKS)
    main.set_ylabel("questions", size=7)
    main.spines[["left"]].set_visible(False)


def _key(place: SubFigure) -> None:
    band = Patch(facecolor=gaps.BAND, linewidth=0, label="95 % of calibrated models")
    gaps.key(place, "accuracy of the bin", band)
