"""Accuracy and confidence on shifted questions as tables: all of them, and those of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from firstcli.metrics import METRICS, Metric
from firstcli.recipe.shift import Shift
from firstcli.reporting.data import ReportData
from firstcli.reporting.table import range_text
from firstcli.reporting.terminal import Cell, Group, ReportRow, Table

UNSHIFTED = "as it is"
"""What a shift of strength 0 is called."""
ACCURACY, CONFIDENCE, CHANCE = METRICS["accuracy"], METRICS["confidence"], METRICS["chance"]
_SHOWN = (ACCURACY, CONFIDENCE, METRICS["ece"], METRICS["trust"])


def in_words(shift: Shift) -> str:
    """Return a shift with its strength, such as `typos 10 %`; of a wording, its number."""
    if shift.kind == "wording":
        return f"wording {shift.strength:g}"
    return f"{shift.kind} {100 * shift.strength:g} %"


def strongest(shifts: Mapping[str, Shift]) -> dict[str, Shift]:
    """Return the strongest shift of each kind, and every wording, by name."""
    last = {
        shift.label if shift.kind == "wording" else shift.kind: name
        for name, shift in shifts.items()
    }
    return {name: shifts[name] for name in last.values()}


def changed_in_words(shifts: Mapping[str, Shift], changed: Mapping[str, float]) -> str:
    """Say how many prompts each shift changes; empty if nothing is known.

    Args:
        shifts: the shifts by name.
        changed: the shares of prompts, by the same names.
    """
    known = [
        f"{100 * changed[name]:.0f} % ({in_words(shift)})"
        for name, shift in shifts.items()
        if name in changed
    ]
    return f"prompts changed: {', '.join(known)}" if known else ""


def counts_in_words(titles: Mapping[str, str], counts: Mapping[str, int]) -> str:
    """Say how many questions there are, if they are not the same everywhere; otherwise empty.

    They differ where changed prompts are too long and dropped.

    Args:
        titles: what evaluations are called, by their names.
        counts: of questions, by the names of evaluations.
    """
    known = [f"{counts[name]:,} ({title})" for name, title in titles.items() if name in counts]
    differ = len({counts[name] for name in titles if name in counts}) > 1
    return f"not the same questions, as long ones are dropped: {', '.join(known)}" if differ else ""


def _notes(data: ReportData, evaluation: str, shifts: Mapping[str, Shift]) -> str:
    """Return what a caption says of the questions; empty or beginning with a semicolon.

    Args:
        data: the report.
        evaluation: the evaluation.
        shifts: those of its shifts that the table shows.
    """
    counts: dict[str, int] = {}
    for (name, _), records in data.records.items():
        counts[name] = min(len(records), counts.get(name, len(records)))
    titles = {evaluation: UNSHIFTED} | {name: in_words(shift) for name, shift in shifts.items()}
    texts = (changed_in_words(shifts, data.changed), counts_in_words(titles, counts))
    return "".join(f"; {text}" for text in texts if text)


def shift_tables(data: ReportData) -> list[Table]:
    """Return a table per shifted evaluation: a line per shift, and per metric a column a model."""
    return [_table(data, evaluation) for evaluation in data.shifts]


def _table(data: ReportData, evaluation: str) -> Table:
    shifts = data.shifts[evaluation]
    lines = {UNSHIFTED: evaluation, **{in_words(shift): name for name, shift in shifts.items()}}
    rows = [row for row in data.rows if data.models(evaluation, row)]
    shown = [m for m in _SHOWN if any(data.values(evaluation, row, m.name) for row in rows)]
    groups = tuple(Group(metric.title, evaluation, tuple(rows), tuple(rows)) for metric in shown)
    lines_of_cells = tuple(
        ReportRow(
            title,
            "group",
            tuple(tuple(_cell(data, name, row, metric) for row in rows) for metric in shown),
        )
        for title, name in lines.items()
    )
    seeds = "; means over the seeds ± their standard deviation" if data.several_seeds else ""
    caption = f"{data.definition}; in percent, with 95 % intervals over questions{seeds}"
    caption += _notes(data, evaluation, shifts)
    return Table(f"{evaluation} under shift", caption, "", groups, lines_of_cells, "shift")


def _cell(data: ReportData, name: str, row: str, metric: Metric) -> Cell:
    text = metric.text(data.mean(name, row, metric.name))
    if (spread := data.spread(name, row, metric.name)) is not None:
        text = f"{text} ± {metric.text(spread)}"
    estimate = data.estimates(name, row).get(metric.name)
    return Cell(text, interval=range_text(metric, estimate.interval) if estimate else "")


def terminal_tables(data: ReportData) -> Iterator[Table]:
    """Yield the tables of a terminal: the strongest shifts, and questions without an answer."""
    for evaluation, shifts in data.shifts.items():
        names = {UNSHIFTED: evaluation}
        names |= {in_words(shift): name for name, shift in strongest(shifts).items()}
        metrics = (ACCURACY, CONFIDENCE) if evaluation in data.judged else (CONFIDENCE,)
        note = _notes(data, evaluation, strongest(shifts))
        yield _narrow(data, f"{evaluation} under shift", names, metrics, note)
    if data.unanswerable:
        names = {name: name for name in data.unanswerable}
        title = "Questions without a right answer: the honest confidence is 1 / n"
        yield _narrow(data, title, names, (CONFIDENCE, CHANCE))


def _narrow(
    data: ReportData,
    title: str,
    names: Mapping[str, str],
    metrics: Sequence[Metric],
    note: str = "",
) -> Table:
    """Return a table with a line per model and a group of columns per evaluation.

    Args:
        data: the report.
        title: the table's title.
        names: the evaluations by the titles of their groups.
        metrics: the columns.
        note: the end of the caption.
    """
    headings = tuple(metric.short for metric in metrics)
    groups = tuple(
        Group(heading, name, tuple(metric.name for metric in metrics), headings)
        for heading, name in names.items()
    )
    rows = tuple(
        ReportRow(
            row,
            "student" if row in data.students else "teacher",
            tuple(
                tuple(Cell(m.text(data.mean(name, row, m.name))) for m in metrics)
                for name in names.values()
            ),
        )
        for row in data.rows
    )
    mean = "; means over the seeds" if data.several_seeds else ""
    return Table(title, f"{data.definition}; in percent{mean}{note}", "", groups, rows)
