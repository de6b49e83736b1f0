"""A forest plot: by how much one student is better than each other one, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from matplotlib.figure import SubFigure

from firstcli.metrics import METRICS, Metric
from firstcli.reporting import style
from firstcli.reporting.data import ReportData

SHOWN = (METRICS["trust"], METRICS["accuracy"], METRICS["ece"])
_NAMES = 1.35  # inches for the names of the rows


class Lead(NamedTuple):
    """How much better the reference is than one row: positive values are in its favour."""

    value: float
    low: float
    high: float
    clear: bool
    """Whether the difference is distinguishable from zero."""
    seeds: tuple[float, float] | None
    """The interval over the seeds, if there are several."""


def leads(data: ReportData, evaluation: str, reference: str, metric: Metric) -> dict[str, Lead]:
    """Return the lead of the reference over each other student, where it can be compared.

    Args:
        data: the report.
        evaluation: the evaluation's name.
        reference: the row with which all other students are compared.
        metric: one of `SHOWN`; a lower ECE is a lead.
    """
    sign = -1.0 if metric.better == "lower" else 1.0
    found = {}
    for row in data.students:
        compared = data.compared(evaluation, reference, row).get(metric.name)
        if row != reference and compared:
            low, high = sorted(sign * end for end in compared.questions.interval)
            seeds = compared.seeds and sorted(sign * end for end in compared.seeds.interval)
            clear = data.distinguishable(evaluation, reference, row, metric.name)
            value = sign * compared.questions.value
            found[row] = Lead(value, low, high, clear, (seeds[0], seeds[1]) if seeds else None)
    return found


def drawing(data: ReportData, evaluation: str, reference: str) -> style.Drawing | None:
    """Return one panel per metric; None if the reference is compared with no student.

    Args:
        data: the report.
        evaluation: the evaluation's name.
        reference: the row with which all other students are compared.
    """
    by_metric = {metric: leads(data, evaluation, reference, metric) for metric in SHOWN}
    by_metric = {metric: found for metric, found in by_metric.items() if found}
    if not by_metric:
        return None
    every = [lead for found in by_metric.values() for lead in found.values()]
    ends = [end for lead in every for end in (lead.low, lead.high, *(lead.seeds or ()))]
    span = (min(0.0, *ends), max(0.0, *ends))
    look = style.looks(data.rows)
    panels = [_panel(found, metric, reference, look, span) for metric, found in by_metric.items()]
    rows = [
        (metric.title, row, lead.value, lead.low, lead.high, "yes" if lead.clear else "no")
        for metric, found in by_metric.items()
        for row, lead in found.items()
    ]
    columns = ("metric", "compared with", f"{reference} is better by", "low", "high", "clear")
    size = (3.6, 0.98 + 0.22 * max(map(len, by_metric.values())))
    return style.Drawing(
        f"differences+{evaluation}", tuple(panels), style.Numbers(columns, rows), size=size
    )


def _panel(
    found: Mapping[str, Lead],
    metric: Metric,
    reference: str,
    look: Mapping[str, style.Look],
    span: tuple[float, float],
) -> style.Panel:
    better = "lower" if metric.better == "lower" else "higher"
    title = f"{metric.title[:1].upper()}{metric.title[1:]} of {reference}: {better} by"
    values = "; ".join(
        f"{row}: {metric.text(lead.value, signed=True)} [{metric.text(lead.low, signed=True)}, "
        f"{metric.text(lead.high, signed=True)}]{'' if lead.clear else ', not distinguishable'}"
        for row, lead in found.items()
    )
    draw = partial(_draw, title, found, look, span)
    return style.Panel(title, draw, f"{title}, in points, compared with {values}.")


def _draw(
    title: str,
    found: Mapping[str, Lead],
    look: Mapping[str, style.Look],
    span: tuple[float, float],
    place: SubFigure,
) -> None:
    style.heading(place, title)
    main = style.axes(place, left=_NAMES, right=0.2, top=0.32, bottom=0.45)
    main.axvline(0, color=style.INK, linewidth=1.0)
    for y, (row, lead) in enumerate(found.items()):
        color = look[row].color if lead.clear else style.SOFT
        if lead.seeds:
            wide: dict[str, Any] = {"color": color, "alpha": 0.3, "linewidth": 4}
            main.plot([100 * end for end in lead.seeds], [y, y], solid_capstyle="butt", **wide)
        main.plot([100 * lead.low, 100 * lead.high], [y, y], color=color, linewidth=1.5)
        face = color if lead.clear else "white"
        mark: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": face}
        main.plot(100 * lead.value, y, color=color, **mark)
    margin = 4 * (span[1] - span[0]) + 0.5
    main.set(xlim=(100 * span[0] - margin, 100 * span[1] + margin), ylim=(len(found) - 0.5, -0.5))
    main.set_yticks(range(len(found)), [f"than {style.shortened(row, 16)}" for row in found])
    main.tick_params(axis="y", length=0)
    main.spines[["left"]].set_visible(False)
    main.set_xlabel("points, with 95 % interval")
    main.grid(True, axis="x")
