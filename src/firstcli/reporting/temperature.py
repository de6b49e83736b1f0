"""Temperatures (the paper's Figure 6): the search on validation data, and students over T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from firstcli.api import Curve, FloatArray
from firstcli.metrics.uncertainty import Estimate
from firstcli.reporting import style
from firstcli.reporting.data import FittedRecalibrator, ReportData

_CRITERIA = {"ece": "ECE", "nll": "NLL", "brier": "Brier"}


def search(name: str, fitted: FittedRecalibrator) -> style.Drawing | None:
    """Return each criterion over T; None if the recalibrator did not search for a temperature."""
    shown = ("ece", "nll", fitted.criterion)
    curves = {key: curve for key, curve in fitted.curves.items() if key in shown} or fitted.curves
    if not curves:
        return None
    panels, rows = [], []
    for key, curve in curves.items():
        label = _CRITERIA.get(key, key)
        title = f"{name}: {label}{' (selects T)' if key == fitted.criterion else ''}"
        interval = " [{:.3g}, {:.3g}]".format(*curve.interval) if curve.interval else ""
        best, minimum = f"{curve.best:.3g}{interval}", min(value for _, value in curve.points)
        text = f"Search for the temperature of {title}: minimum {minimum:.3f} at T = {best}."
        draw = partial(_draw_search, title, f"minimum at T = {best}", label, curve)
        panels.append(style.Panel(title, draw, text))
        rows += [(label, t, value) for t, value in curve.points]
    numbers = style.Numbers(("criterion", "T", "value"), rows)
    return style.Drawing(f"temperature+{name}", tuple(panels), numbers, size=(3.0, 2.7))


def _draw_search(title: str, line: str, label: str, curve: Curve, place: SubFigure) -> None:
    style.heading(place, title, line)
    main = style.axes(place, bottom=0.42, left=0.72)
    temperatures, values = np.transpose(curve.points)
    if curve.interval:
        main.axvspan(*curve.interval, color=style.BAND, alpha=0.45, linewidth=0)
    main.axvline(curve.best, color=style.INK, linewidth=1.0, linestyle=(0, (4, 3)))
    main.plot(temperatures, values, color="#0072B2", marker="o", markersize=2)
    if temperatures[-1] > 20 * temperatures[0]:
        ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
        shown = [t for t in ticks if temperatures[0] <= 1.01 * t <= temperatures[-1]]
        style.logarithmic(main, shown)
    main.set(xlabel="temperature T", ylabel=label)
    # An ECE is bounded and jumps where a token changes its bin: show the whole curve.
    main.set_ylim(*((0, 1.05 * max(values)) if label == "ECE" else _span(values)))
    main.grid(True)


def _span(values: FloatArray) -> tuple[float, float]:
    """Return the visible range of a curve; a steep end must not flatten the minimum."""
    best, highest, lower_end = values.min(), values.max(), min(values[0], values[-1])
    top = highest if lower_end <= best else min(highest, best + 2 * (lower_end - best))
    margin = 0.08 * max(top - best, 1e-3)
    return float(best - margin), float(top + margin)


def fixed(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return Trust over T for arms with fixed temperatures; None with fewer than two such arms."""
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
    values = "; ".join(
        f"{kind}, T = {t:.3g}: {100 * estimate.value:.1f}"
        for kind, points in lines.items()
        for t, _, estimate in points
    )
    description = f"Trust of the students on {evaluation} by temperature, in percent: {values}."
    panel = style.Panel(evaluation, partial(_draw_fixed, evaluation, lines), description)
    name = f"trust-over-temperature+{evaluation}"
    size = (3.5, 2.7 + style.key_height(len(lines)))
    return style.Drawing(name, (panel,), style.Numbers(columns, rows), size=size)


def _draw_fixed(
    title: str, lines: Mapping[str, Sequence[tuple[float, str, Estimate]]], place: SubFigure
) -> None:
    look = style.looks(list(lines))
    main = style.keyed_axes(place, title, look, left=0.6)
    for kind, points in lines.items():
        draw_estimates(main, [(t, estimate) for t, _, estimate in points], look[kind])
    main.set(xlabel="temperature T", ylabel="Trust")
    style.percent(main.yaxis)
    main.grid(True)


def draw_estimates(main: Axes, points: Sequence[tuple[float, Estimate]], look: style.Look) -> None:
    """Draw values with their intervals, joined by a line."""
    xs = [x for x, _ in points]
    values = [estimate.value for _, estimate in points]
    # a value is within its interval except for rounding
    below = [max(0.0, e.value - e.interval.low) for _, e in points]
    above = [max(0.0, e.interval.high - e.value) for _, e in points]
    color, bounds = look.color if look.filled else style.SOFT, [below, above]
    main.errorbar(xs, values, bounds, elinewidth=0.9, capsize=2, ecolor=color, **look.options)
