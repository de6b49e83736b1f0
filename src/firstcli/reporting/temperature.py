"""Temperatures (the paper's Figure 6): how one was found, and what others do to the students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter

from firstcli.reporting import ReportData
from firstcli.reporting.style import (
    BAND,
    INK,
    SOFT,
    Drawing,
    Look,
    Numbers,
    Panel,
    axes,
    heading,
    key_rows,
    logarithmic,
    looks,
    row_key,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    from firstcli.api import JSON, FloatArray
    from firstcli.metrics.uncertainty import Estimate

_CRITERIA = {"ece": "ECE", "nll": "NLL", "brier": "Brier"}
_SIZE = (3.0, 2.7)


def search(name: str, calibration: Mapping[str, JSON]) -> Drawing | None:
    """Return ECE and NLL over T with the chosen one; None for what has no such curve."""
    state = calibration.get("state", {})
    criteria = state.get("criteria", {})
    decides = calibration.get("criterion")
    known = [key for key in _CRITERIA if key in ("ece", "nll", decides) and key in criteria]
    if not known:
        return None
    panels, rows = [], []
    for key in known:
        found = criteria[key]
        title = f"{name}: {_CRITERIA[key]}{' (it decides)' if key == decides else ''}"
        draw = partial(_draw_search, title, _CRITERIA[key], found)
        panels.append(Panel(title, draw, _described(title, found)))
        rows += [(_CRITERIA[key], t, value) for t, value in found["curve"]]
    numbers = Numbers(("criterion", "T", "value"), tuple(rows))
    return Drawing(f"temperature+{name}", tuple(panels), numbers, size=_SIZE)


def _described(title: str, found: Mapping[str, JSON]) -> str:
    best = min(value for _, value in found["curve"])
    return (
        f"Search for the temperature of {title}: lowest at T = {_best_line(found)}, where it is "
        f"{best:.3f}."
    )


def _best_line(found: Mapping[str, JSON]) -> str:
    text = f"{found['temperature']:.3g}"
    if interval := found.get("interval"):
        text += " [{:.3g}, {:.3g}]".format(*interval)
    return text


def _draw_search(title: str, label: str, found: Mapping[str, JSON], place: SubFigure) -> None:
    heading(place, title, f"lowest at T = {_best_line(found)}")
    main = axes(place, bottom=0.42, left=0.72)
    temperatures, values = np.transpose(sorted(found["curve"]))
    if found.get("interval"):
        main.axvspan(*found["interval"], color=BAND, alpha=0.45, linewidth=0)
    main.axvline(found["temperature"], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    main.plot(temperatures, values, color="#0072B2", marker="o", markersize=2)
    if temperatures[-1] > 20 * temperatures[0]:
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        logarithmic(main, [t for t in ticks if temperatures[0] <= 1.01 * t <= temperatures[-1]])
    main.set(xlabel="temperature T", ylabel=label)
    # An ECE is bounded, and jumps where a row changes its bin: all of it is shown.
    main.set_ylim(*((0, 1.05 * max(values)) if label == "ECE" else _span(values)))
    main.grid(True)


def _span(values: FloatArray) -> tuple[float, float]:
    """Return what part of a curve to draw: a steep end would flatten the minimum."""
    best, highest, lower_end = values.min(), values.max(), min(values[0], values[-1])
    top = highest if lower_end <= best else min(highest, best + 2 * (lower_end - best))
    room = 0.08 * max(top - best, 1e-3)
    return float(best - room), float(top + room)


def fixed(data: ReportData, evaluation: str) -> Drawing | None:
    """Return the Trust of arms with fixed temperatures over T; None where there are no two."""
    lines: dict[str, list[tuple[float, str, Estimate]]] = {}
    for arm, facts in data.arms.items():
        trust = data.estimates(evaluation, arm).get("trust")
        if facts.temperature is not None and trust:
            kind = facts.kind if facts.top_k == data.top_k else f"{facts.kind}, k {facts.top_k}"
            lines.setdefault(kind, []).append((facts.temperature, arm, trust))
    lines = {kind: sorted(points) for kind, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    rows = tuple(
        (kind, arm, t, e.value, *e.interval) for kind, ps in lines.items() for t, arm, e in ps
    )
    columns = ("recalibrator", "arm", "T", "Trust", "low", "high")
    panel = Panel(evaluation, partial(_draw_fixed, evaluation, lines), _told(evaluation, lines))
    name = f"trust-over-temperature+{evaluation}"
    size = (3.5, 2.7 + 0.17 * key_rows(len(lines)))
    return Drawing(name, (panel,), Numbers(columns, rows), size=size)


def _told(evaluation: str, lines: Mapping[str, Sequence[tuple[float, str, Estimate]]]) -> str:
    said = "; ".join(
        f"{kind}, T = {t:.3g}: {100 * estimate.value:.1f}"
        for kind, points in lines.items()
        for t, _, estimate in points
    )
    return f"Trust of the students on {evaluation} over the temperature, in percent: {said}."


def _draw_fixed(
    title: str, lines: Mapping[str, Sequence[tuple[float, str, Estimate]]], place: SubFigure
) -> None:
    heading(place, title)
    below = 0.17 * key_rows(len(lines))
    main = axes(place, left=0.6, top=0.32, bottom=0.45 + below)
    look = looks(list(lines))
    for kind, points in lines.items():
        draw_estimates(main, [(t, estimate) for t, _, estimate in points], look[kind])
    main.set(xlabel="temperature T", ylabel="Trust")
    main.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    main.grid(True)
    row_key(place, {kind: look[kind] for kind in lines})


def draw_estimates(main: Axes, points: Sequence[tuple[float, Estimate]], look: Look) -> None:
    """Draw values with their intervals, joined by a line."""
    at = [x for x, _ in points]
    values = [estimate.value for _, estimate in points]
    # a value lies within its interval but for rounding
    below = [max(0.0, e.value - e.interval.low) for _, e in points]
    above = [max(0.0, e.interval.high - e.value) for _, e in points]
    main.errorbar(
        at,
        values,
        yerr=[below, above],
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markerfacecolor=look.color if look.filled else "white",
        elinewidth=0.9,
        capsize=2,
        ecolor=look.color if look.filled else SOFT,
    )
