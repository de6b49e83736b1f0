"""Studies of some recipes: how many tokens to keep, and questions without a right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from scipy.stats import t

from firstcli.api import FloatArray
from firstcli.metrics import Metric
from firstcli.metrics.calibration import Z95
from firstcli.metrics.uncertainty import Estimate
from firstcli.reporting import style
from firstcli.reporting.data import ReportData
from firstcli.reporting.table import ECE, PAPER
from firstcli.reporting.temperature import draw_estimates


def top_k_lines(data: ReportData) -> dict[str, list[str]]:
    """Return the arms that differ only in k, by kind and in the order of k."""
    lines: dict[str, list[str]] = {}
    for arm, facts in data.arms.items():
        if facts.temperature is None:
            lines.setdefault(facts.kind, []).append(arm)
    return {
        kind: sorted(arms, key=lambda arm: data.arms[arm].top_k)
        for kind, arms in lines.items()
        if len({data.arms[arm].top_k for arm in arms}) > 1
    }


def top_k(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return accuracy, ECE, Trust, mass and bytes over k; None if arms do not differ in k."""
    lines = {
        kind: [arm for arm in arms if "trust" in data.estimates(evaluation, arm)]
        for kind, arms in top_k_lines(data).items()
    }
    lines = {kind: arms for kind, arms in lines.items() if arms}
    if not lines:
        return None
    panels = [_top_k_panel(data, evaluation, lines, metric) for metric in PAPER]
    sizes = {int(k): size for k, size in (data.concentration or {}).get("bytes", {}).items()}
    arms = [arm for line in lines.values() for arm in line]
    panels += _cost_panels(data, arms, sizes)
    rows = []
    for arm in arms:
        facts, estimates = data.arms[arm], data.estimates(evaluation, arm)
        shown = [estimates[metric.name] for metric in PAPER]
        values = [v for e in shown for v in (e.value, *e.interval)]
        rows.append((arm, facts.top_k, facts.mass, sizes.get(facts.top_k), *values))
    ends = [name for metric in PAPER for name in (metric.short, "low", "high")]
    numbers = style.Numbers(("arm", "k", "P", "bytes per position", *ends), rows)
    size = (3.0, 2.6 + style.key_height(len(lines)))
    return style.Drawing(f"top-k+{evaluation}", tuple(panels), numbers, size=size)


def _top_k_panel(
    data: ReportData, evaluation: str, lines: Mapping[str, Sequence[str]], metric: Metric
) -> style.Panel:
    title = f"{metric.short} on {evaluation}"
    points = {
        kind: [(data.arms[a].top_k, data.estimates(evaluation, a)[metric.name]) for a in arms]
        for kind, arms in lines.items()
    }
    values = "; ".join(f"k = {k}: {100 * e.value:.1f}" for line in points.values() for k, e in line)
    draw = partial(_draw_top_k, title, points, metric)
    return style.Panel(title, draw, f"{title} by number of tokens kept, in percent: {values}.")


def _draw_top_k(
    title: str,
    lines: Mapping[str, Sequence[tuple[int, Estimate]]],
    metric: Metric,
    place: SubFigure,
) -> None:
    look = style.looks(list(lines))
    main = style.keyed_axes(place, title, look, left=0.6)
    for kind, points in lines.items():
        draw_estimates(main, points, look[kind])
    _over_k(main, sorted({k for points in lines.values() for k, _ in points}))
    style.percent(main.yaxis)
    if metric is ECE:
        main.set_ylim(bottom=0)
    main.set_ylabel(metric.short)


def _cost_panels(
    data: ReportData, arms: Sequence[str], sizes: Mapping[int, float]
) -> list[style.Panel]:
    """Return the cost and benefit of k: bytes on disk and the teacher's probability."""
    ks = sorted({data.arms[arm].top_k for arm in arms})
    masses = {data.arms[arm].top_k: data.arms[arm].mass for arm in arms}
    panels = []
    for title, values, text in (
        ("P, the teacher's mass on the k tokens", [masses[k] for k in ks], "{:.3f}"),
        ("Bytes per position on disk", [sizes.get(k) for k in ks], "{:.1f}"),
    ):
        points = [(k, value) for k, value in zip(ks, values, strict=True) if value is not None]
        if points:
            shown = "; ".join(f"k = {k}: {text.format(value)}" for k, value in points)
            draw = partial(_draw_cost, title, points, text)
            panels.append(style.Panel(title, draw, f"{title} by number of tokens kept: {shown}."))
    return panels


def _draw_cost(
    title: str, points: Sequence[tuple[int, float]], text: str, place: SubFigure
) -> None:
    style.heading(place, title)
    main = style.axes(place, left=0.6, top=0.32, bottom=0.62)
    main.plot(*zip(*points, strict=True), color=style.INK, marker="s", markersize=3.5)
    style.label_points(main, points, text)
    main.margins(x=0.12, y=0.18)
    _over_k(main, [k for k, _ in points])


def _over_k(main: Axes, ks: Sequence[int]) -> None:
    style.logarithmic(main, ks)
    main.set_xlabel("tokens kept, k")
    main.grid(True)


def unanswerable(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return each row's mean confidence where no candidate is right, and 1 / n."""
    shown = {row: [c for _, c in data.shown(evaluation, row)] for row in data.rows}
    means = {row: _mean(confidences) for row, confidences in shown.items() if confidences}
    if not means:
        return None
    records = next(iter(data.first_of(evaluation).values()))
    chance = float(np.mean(1 / records.count))
    rows = tuple((row, mean, mean - half, mean + half) for row, (mean, half) in means.items())
    numbers = style.Numbers(("model", "mean confidence", "low", "high"), (*rows, ("1 / n", chance)))
    values = ", ".join(f"{row} {100 * mean:.1f} percent" for row, (mean, _) in means.items())
    panel = style.Panel(
        evaluation,
        partial(_draw_unanswerable, evaluation, means, chance, style.looks(data.rows)),
        f"Mean confidence on {evaluation}, where no candidate is right and a calibrated model "
        f"would have {100 * chance:.1f} percent: {values}.",
    )
    size = (3.5, 0.9 + 0.26 * len(means))
    return style.Drawing(f"unanswerable+{evaluation}", (panel,), numbers, size=size)


def _mean(confidences: Sequence[FloatArray]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval.

    Seeds differ far more than questions, so that with several seeds the interval is Student's t
    over the seeds.
    """
    values = confidences[0] if len(confidences) == 1 else [float(c.mean()) for c in confidences]
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    factor = Z95 if len(confidences) == 1 else float(t.ppf(0.975, len(values) - 1))
    return float(np.mean(values)), float(factor * error)


def _draw_unanswerable(
    title: str,
    means: Mapping[str, tuple[float, float]],
    chance: float,
    look: Mapping[str, style.Look],
    place: SubFigure,
) -> None:
    style.heading(place, title, f"1 / n = {100 * chance:.1f} %")
    main = style.axes(place, left=1.45, right=0.25, bottom=0.42)
    for y, (row, (mean, half)) in enumerate(means.items()):
        main.errorbar(mean, y, xerr=half, capsize=2, **look[row].options)
    main.axvline(chance, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    main.set(xlim=(0, 1), ylim=(len(means) - 0.5, -0.5), xlabel="mean confidence")
    main.set_yticks(range(len(means)), [style.shortened(row, 20) for row in means])
    style.percent(main.xaxis)
    main.grid(True, axis="x")
