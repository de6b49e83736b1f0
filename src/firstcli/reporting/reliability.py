"""Reliability diagrams (the paper's Figure 5): accuracy against confidence, bin by bin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from firstcli.metrics import EvalMetrics, ReliabilityBin, reliability_bins
from firstcli.reporting import ReportData, gaps
from firstcli.reporting.gaps import Gap
from firstcli.reporting.style import INK, SOFT, Drawing, Numbers, Panel, axes, heading
from firstcli.reporting.table import p_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_TICKS = [0, 0.2, 0.4, 0.6, 0.8, 1]


def drawing(data: ReportData, evaluation: str) -> Drawing | None:
    """Return a diagram of each row, at its first seed; None where no confidence is known."""
    panels, rows = [], []
    for row, (records, confidence) in data.shown_of(evaluation).items():
        metrics = data.metrics[evaluation, data.models(evaluation, row)[0]]
        bins = reliability_bins(confidence, records.correct, data.settings.bins)
        panels.append(panel(row, metrics, bins, data.settings.confidence))
        rows += [(row, *b) for b in bins if b.n]
    key = Panel("key", _key, "Key to the reliability diagrams, as in the text above.")
    columns = ("model", *ReliabilityBin._fields)
    name = f"reliability+{evaluation}"
    return Drawing(name, tuple(panels), Numbers(columns, tuple(rows)), key) if panels else None


def panel(title: str, metrics: EvalMetrics, bins: Sequence[ReliabilityBin], kind: str) -> Panel:
    """Return one diagram; an empty bin stays empty."""
    return Panel(
        title, partial(_draw, title, metrics, bins, kind), _description(title, metrics, bins)
    )


def _description(title: str, metrics: EvalMetrics, bins: Sequence[ReliabilityBin]) -> str:
    used = [b for b in bins if b.n]
    over = sum(b.confidence > b.accuracy for b in used)
    under = sum(b.confidence < b.accuracy for b in used)
    outside = sum(not b.band_low <= b.accuracy <= b.band_high for b in used)
    m = metrics
    return (
        f"Reliability diagram of {title}: ECE {100 * m.ece:.1f} percent, where a perfectly "
        f"calibrated model would show {100 * m.ece_null:.1f}; accuracy {100 * m.accuracy:.1f} "
        f"percent, mean confidence {100 * m.confidence:.1f} percent, {m.n} questions; of "
        f"{len(used)} bins in use {over} over-confident and {under} under-confident, {outside} "
        "outside the band of calibrated models."
    )


def _draw(
    title: str, m: EvalMetrics, bins: Sequence[ReliabilityBin], kind: str, place: SubFigure
) -> None:
    numbers = f"ECE {100 * m.ece:.1f} (null {100 * m.ece_null:.1f}, {p_text(m.ece_p)})"
    heading(place, title, f"{numbers} · Acc {100 * m.accuracy:.1f}")
    main = axes(place, bottom=1.02)
    counts = axes(place, top=2.36, bottom=0.42)
    for b in bins:
        if b.n:
            bar = (b.confidence, b.accuracy, b.low, b.high)
            gaps.draw(main, Gap(b.lo, b.hi - b.lo, *bar))
            main.fill_between([b.lo, b.hi], b.band_low, b.band_high, **_BAND)
    main.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=3)
    main.set(xlim=(0, 1), ylim=(0, 1), xticks=_TICKS, xticklabels=[], yticks=_TICKS)
    main.set_ylabel("accuracy")
    _draw_counts(counts, bins)
    counts.set_xlabel(f"confidence ({kind})")


_BAND = {"color": gaps.BAND, "linewidth": 0, "zorder": 1.5}


def _draw_counts(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    most = max(b.n for b in bins)
    size = min(6.5, 190 / len(bins))  # points, so that the numbers of many bins do not touch
    for b in bins:
        axes.bar(
            b.lo, b.n, b.hi - b.lo, align="edge", color=gaps.ACCURACY, edgecolor=SOFT, linewidth=0.4
        )
        if len(bins) <= 30:  # else they could not be read
            axes.text(
                (b.lo + b.hi) / 2,
                b.n + 0.08 * most,
                str(b.n),
                size=size,
                ha="center",
                va="bottom",
                rotation=90 if len(bins) > 12 or most > 99_999 else 0,
            )
    axes.set(xlim=(0, 1), ylim=(0, 1.6 * most), yticks=[], xticks=_TICKS)
    axes.set_ylabel("questions", size=7)
    axes.spines[["left"]].set_visible(False)


def _key(place: SubFigure) -> None:
    gaps.key(
        place, "accuracy of the bin", [gaps.band_patch("95 % of calibrated models")]
    )
