"""Tables for the terminal, and the results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from firstcli.metrics.summary import EvalMetrics, reliability_bins
from firstcli.reporting import BASELINES, ReportData
from firstcli.reporting.table import (
    COMPARED,
    INDISTINCT,
    Cell,
    Table,
    best_keys,
    difference_tables,
    full_tables,
    paper_table,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

    from firstcli.api import JSON
    from firstcli.reporting.style import Numbers

FORMAT = 2  # of table.json


class TerminalTable:
    """A rich renderable that never cuts a number: what is too wide is shown in several parts."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if not self.table.groups:  # no evaluation has a right answer
            return

        def fitting(table: Table) -> Iterator[RichTable]:
            beside, parts = _beside(table), table.split()
            unlimited = options.update(width=10_000)
            if len(parts) == 1 or console.measure(beside, options=unlimited).maximum <= width:
                yield beside
            else:
                for part in parts:
                    yield from fitting(part)

        width = options.max_width
        legend = f"; * {self.table.legend}" if self.table.legend else ""
        yield Text(self.table.title, style="bold")
        yield from fitting(self.table)
        yield Text(self.table.caption + legend, style="dim")


def to_markdown(data: ReportData) -> str:
    """Return all tables and the notes as one Markdown document."""
    paper = paper_table(data)
    parts = [f"# {escape_markdown(paper.title)}", *map(_markdown_table, paper.by_group())]
    for table in (*difference_tables(data), *full_tables(data)):
        parts += [f"## {escape_markdown(table.title)}", *map(_markdown_table, table.by_group())]
    if data.notes:
        notes = (f"- {escape_markdown(label)}: {escape_markdown(v)}" for label, v in data.notes)
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(text.split()))


def to_csv(data: ReportData) -> str:
    """Return a line for each evaluation and row, differences last; shares are fractions of 1.

    A line is a row's mean over its seeds, or that row minus another.
    """
    settings = {"confidence_kind": data.settings.confidence, "bins": data.settings.bins}
    names = ["evaluation", "model", "minus", "seeds", *(f.name for f in fields(EvalMetrics))]
    names += [f"{key}_{end}" for key in COMPARED for end in ("low", "high", "sd")]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, *settings, "best"], lineterminator="\n")
    writer.writeheader()
    for evaluation in data.evaluations:
        for row in data.rows:
            if models := data.models(evaluation, row):
                line: dict[str, JSON] = {"evaluation": evaluation, "model": row}
                line |= {"seeds": len(models), "best": " ".join(best_keys(data, evaluation, row))}
                writer.writerow(line | _csv_values(data, evaluation, row) | settings)
    for evaluation, ours, theirs in _pairs(data):
        line = {"evaluation": evaluation, "model": ours, "minus": theirs}
        for key, found in data.compared(evaluation, ours, theirs).items():
            low, high = found.questions.interval
            line |= {key: found.questions.value, f"{key}_low": low, f"{key}_high": high}
        writer.writerow(line | settings)
    return file.getvalue()


def _csv_values(data: ReportData, evaluation: str, row: str) -> dict[str, JSON]:
    values = {f.name: data.mean(evaluation, row, f.name) for f in fields(EvalMetrics)}
    for key, estimate in data.estimates(evaluation, row).items():
        values[f"{key}_low"], values[f"{key}_high"] = estimate.interval
        values[f"{key}_sd"] = data.spread(evaluation, row, key)
    return values


def to_json(data: ReportData, figures: Mapping[str, Numbers] | None = None) -> str:
    """Return every metric and reliability bin at full precision; shares are fractions of 1.

    `figures` are the numbers of the report's figures, by file name.
    """
    content: dict[str, JSON] = {
        "format": FORMAT,
        "run": data.run,
        "confidence": data.settings.confidence,
        "bins": data.settings.bins,
        "unit": "fraction",
        "seeds": list(data.seeds),
        "rows": [
            _json_row(data, evaluation, row)
            for evaluation in data.evaluations
            for row in data.rows
            if data.models(evaluation, row)
        ],
        "differences": [_json_difference(data, *pair) for pair in _pairs(data)],
        "notes": [{"label": label, "value": value} for label, value in data.notes],
        "versions": dict(data.versions),
        "figures": {name: asdict(numbers) for name, numbers in (figures or {}).items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_row(data: ReportData, evaluation: str, row: str) -> dict[str, JSON]:
    estimates, models = data.estimates(evaluation, row), data.models(evaluation, row)
    return {
        "evaluation": evaluation,
        "model": row,
        **{f.name: data.mean(evaluation, row, f.name) for f in fields(EvalMetrics)},
        "intervals": {key: list(one.interval) for key, one in estimates.items()},
        "spread": {key: data.spread(evaluation, row, key) for key in estimates},
        "best": best_keys(data, evaluation, row),
        "members": [_json_member(data, evaluation, model) for model in models],
    }


def _json_member(data: ReportData, evaluation: str, model: str) -> dict[str, JSON]:
    records = data.records[evaluation, model]
    shown = records.shown(data.settings.confidence) if records.answerable else None
    bins = [] if shown is None else reliability_bins(shown, records.correct, data.settings.bins)
    metrics = asdict(data.metrics[evaluation, model])
    return {"model": model, **metrics, "reliability": [b._asdict() for b in bins]}


def _json_difference(data: ReportData, evaluation: str, ours: str, theirs: str) -> dict[str, JSON]:
    found = {
        key: {
            "value": one.questions.value,
            "interval": list(one.questions.interval),
            "seeds_interval": list(one.seeds.interval) if one.seeds else None,
            "seeds_p_value": one.seeds.p_value if one.seeds else None,
            "distinguishable": one.distinguishable,
        }
        for key, one in data.compared(evaluation, ours, theirs).items()
    }
    return {"evaluation": evaluation, "model": ours, "minus": theirs, **found}


def _pairs(data: ReportData) -> list[tuple[str, str, str]]:
    """Return the (evaluation, row, baseline) that can be compared."""
    return [
        (evaluation, ours, theirs)
        for theirs in BASELINES
        for evaluation in data.judged
        for ours in data.students
        if ours != theirs and data.compared(evaluation, ours, theirs)
    ]


def _markdown_table(table: Table) -> str:
    heads = ["model"]
    for group in table.groups:  # Markdown has no column groups: the first column says the name
        first, *others = (column.heading for column in group.columns)
        heads += [f"{escape_markdown(group.title)}: {first}", *others]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    for row in table.rows:
        cells = [_markdown_cell(cell) for group in row.groups for cell in group]
        lines.append([escape_markdown(row.name), *cells])
    legend = f"; bold: {table.legend}" if table.legend else ""
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{escape_markdown(table.caption)}{legend}"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.marked else cell.text
    interval = cell.interval.replace("[", "\\[").replace("]", "\\]")
    return " ".join([text, interval, INDISTINCT * (INDISTINCT in cell.aside)]).strip()


def _beside(table: Table) -> RichTable:
    """Return a grid of the names and each group, small tables whose lines match."""
    from rich.table import Table as RichTable

    names = _small_table(" ", ["model"], "left")
    groups = [_small_table(g.title, [c.heading for c in g.columns], "right") for g in table.groups]
    for row in table.rows:
        if row.kind == "difference":
            for part in (names, *groups):
                part.add_section()
        height = max(_styled(cell).plain.count("\n") for cells in row.groups for cell in cells)
        names.add_row(row.name + "\n " * height)
        for part, cells in zip(groups, row.groups, strict=True):
            part.add_row(*(_styled(cell, height) for cell in cells))
    grid = RichTable.grid(padding=(0, 1))
    grid.add_column()  # where all else fails, names are cut and numbers are not
    for _ in groups:
        grid.add_column(no_wrap=True)
    grid.add_row(names, *groups)
    return grid


def _small_table(title: str, headings: list[str], justify: JustifyMethod) -> RichTable:
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        title=Text(title, no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        min_width=cell_len(title),
        title_style="none",
    )
    for heading in headings:
        table.add_column(Text(heading), justify=justify, no_wrap=True)
    return table


def _styled(cell: Cell, height: int = 0) -> Text:
    """Return the value, below it its interval, and whether a difference says nothing.

    With so many line breaks at least, for the groups of a row lie in tables of their own.
    """
    from rich.text import Text

    verdict = INDISTINCT.split() if INDISTINCT in cell.aside else []
    small = [cell.interval, *verdict] if cell.interval else []
    value = Text(f"{cell.text}*", "bold green") if cell.marked else Text(f"{cell.text} ")
    small += [""] * (height - len(small))
    return Text("\n").join([value, *(Text(f"{line} ", "dim") for line in small)])
