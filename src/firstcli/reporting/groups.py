"""Groups of an evaluation's questions: their macro averages, and a table of all groups."""

from __future__ import annotations

from statistics import fmean, stdev

from firstcli.metrics import METRICS, Metric
from firstcli.metrics.groups import GroupScores
from firstcli.metrics.summary import DASH
from firstcli.reporting.data import ReportData
from firstcli.reporting.terminal import Cell, Group, ReportRow, Table

MACRO = (METRICS["accuracy"], METRICS["ece"], METRICS["trust"])
"""The metrics that are averaged over groups."""
_SHOWN = MACRO[:2]  # of each group


def scores(data: ReportData, evaluation: str, row: str) -> list[GroupScores]:
    """Return the metrics by group of a row's models, one per seed; empty without groups."""
    keys = [(evaluation, model) for model in data.models(evaluation, row)]
    return [data.group_scores[key] for key in keys if key in data.group_scores]


def sizes(data: ReportData, evaluation: str) -> dict[str, int]:
    """Return the number of questions of each group, sorted by name."""
    counted: dict[str, int] = {}
    for row in data.rows:
        for by_group in scores(data, evaluation, row):
            counted |= dict(zip(by_group.names, by_group.sizes, strict=True))
    return dict(sorted(counted.items()))


def macro(data: ReportData, evaluation: str, row: str, name: str) -> list[float]:
    """Return a metric's mean over the groups at each seed; empty where it is undefined.

    Args:
        data: the report.
        evaluation: an evaluation whose questions have groups.
        row: a row of the tables.
        name: the metric, one of `MACRO`.
    """
    values = [getattr(each.macro, name) for each in scores(data, evaluation, row)]
    return [value for value in values if value is not None]


def null(data: ReportData, evaluation: str, row: str) -> float | None:
    """Return the macro ECE of a perfectly calibrated model with these confidences."""
    nulls = [each.null for each in scores(data, evaluation, row) if each.null is not None]
    return fmean(nulls) if nulls else None


def of_group(data: ReportData, evaluation: str, row: str, group: str) -> dict[str, float]:
    """Return accuracy, ECE and Trust on one group, means over the seeds, where they are defined.

    Args:
        data: the report.
        evaluation: an evaluation whose questions have groups.
        row: a row of the tables.
        group: the group's name.
    """
    values: dict[str, list[float]] = {}
    for each in scores(data, evaluation, row):
        if group in each.names:
            index = each.names.index(group)
            accuracy = float(each.accuracy[index])
            values.setdefault("accuracy", []).append(accuracy)
            if each.ece is not None:
                values.setdefault("ece", []).append(float(each.ece[index]))
                values.setdefault("trust", []).append(accuracy - float(each.ece[index]))
    return {name: fmean(per_seed) for name, per_seed in values.items()}


def cell(data: ReportData, evaluation: str, row: str, metric: Metric) -> Cell:
    """Return a macro average with its standard deviation over seeds, and the null of an ECE.

    Args:
        data: the report.
        evaluation: an evaluation whose questions have groups.
        row: a row of the tables.
        metric: one of `MACRO`.
    """
    values = macro(data, evaluation, row, metric.name)
    if not values:
        return Cell(DASH)
    text = metric.text(fmean(values))
    if len(values) > 1:
        text = f"{text} ± {metric.text(stdev(values))}"
    expected = null(data, evaluation, row) if metric.name == "ece" else None
    return Cell(text, aside=() if expected is None else (f"null {metric.text(expected)}",))


def difference_cell(
    data: ReportData, evaluation: str, ours: str, theirs: str, metric: Metric
) -> Cell:
    """Return a difference of two macro averages, which has no interval.

    Args:
        data: the report.
        evaluation: an evaluation whose questions have groups.
        ours: the row from which is subtracted.
        theirs: the row that is subtracted.
        metric: one of `MACRO`.
    """
    values = [macro(data, evaluation, row, metric.name) for row in (ours, theirs)]
    if not all(values):
        return Cell(DASH)
    return Cell(metric.text(fmean(values[0]) - fmean(values[1]), signed=True))


def group_tables(data: ReportData) -> list[Table]:
    """Return one table per evaluation with groups: a line per group, columns for each model."""
    return [_table(data, evaluation) for evaluation in data.grouped]


def _table(data: ReportData, evaluation: str) -> Table:
    counted = sizes(data, evaluation)
    shown = [row for row in data.rows if scores(data, evaluation, row)]
    names, headings = zip(*((m.name, m.heading) for m in _SHOWN), strict=True)
    columns = tuple(Group(row, evaluation, names, headings) for row in shown)
    micro = [[data.mean(evaluation, row, m.name) for m in _SHOWN] for row in shown]
    averages = [[cell(data, evaluation, row, m).text for m in _SHOWN] for row in shown]
    lines = {
        f"all {sum(counted.values())} questions (micro)": [
            [m.text(value) for m, value in zip(_SHOWN, values, strict=True)] for values in micro
        ],
        f"mean of {len(counted)} groups (macro)": averages,
    }
    for group, n in counted.items():
        values = [of_group(data, evaluation, row, group) for row in shown]
        lines[f"{group} (n = {n})"] = [[m.text(v.get(m.name)) for m in _SHOWN] for v in values]
    rows = tuple(
        ReportRow(name, "group", tuple(tuple(map(Cell, texts)) for texts in by_model))
        for name, by_model in lines.items()
    )
    seeds = "; means over seeds" if data.several_seeds else ""
    caption = f"{data.definition}; in percent{seeds}"
    return Table(f"Groups of {evaluation}", caption, "", columns, rows, "group")
