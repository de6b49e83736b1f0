"""Tables for the terminal, and the results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from firstcli.metrics import EvalMetrics, reliability_bins
from firstcli.records import EvalRecords
from firstcli.reporting import ReportData
from firstcli.reporting.table import (
    DIFFERENCE,
    Cell,
    Table,
    best_keys,
    differences,
    full_table,
    paper_table,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
    from rich.table import Table as RichTable
    from rich.text import Text

    from firstcli.api import JSON

FORMAT = 1  # of table.json


class TerminalTable:
    """A rich renderable that never cuts a number: what is too wide is shown in several parts."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        def fitting(table: Table) -> Iterator[RichTable]:
            beside, parts = _beside(table), table.split()
            unlimited = options.update(width=10_000)
            if len(parts) == 1 or console.measure(beside, options=unlimited).maximum <= width:
                yield beside
            else:
                for part in parts:
                    yield from fitting(part)

        width = options.max_width
        legend = "; * best of the students" if self.table.competing else ""
        yield Text(self.table.title, style="bold")
        yield from fitting(self.table)
        yield Text(self.table.caption + legend, style="dim")


def to_markdown(data: ReportData) -> str:
    """Return both tables and the notes as one Markdown document."""
    paper, full = paper_table(data), full_table(data)
    parts = [f"# {escape_markdown(paper.title)}", _markdown_table(paper)]
    parts += [f"## {escape_markdown(full.title)}", *map(_markdown_table, full.by_group())]
    if data.notes:
        notes = (f"- {escape_markdown(label)}: {escape_markdown(v)}" for label, v in data.notes)
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(text.split()))


def to_csv(data: ReportData) -> str:
    """Return a line for each evaluation and model, differences last; shares are fractions of 1."""
    settings = {"confidence_kind": data.settings.confidence, "bins": data.settings.bins}
    names = ["evaluation", "model", *(f.name for f in fields(EvalMetrics)), *settings, "best"]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for evaluation in data.evaluations:
        for model, metrics, _ in data.results(evaluation):
            best = " ".join(best_keys(data, evaluation, model))
            row = {"evaluation": evaluation, "model": model, "best": best}
            writer.writerow(row | asdict(metrics) | settings)
    for evaluation, values in differences(data).items():
        row = {"evaluation": evaluation, "model": DIFFERENCE}
        writer.writerow(row | values | settings)
    return file.getvalue()


def to_json(data: ReportData) -> str:
    """Return every metric and reliability bin at full precision; shares are fractions of 1."""
    content: dict[str, JSON] = {
        "format": FORMAT,
        "run": data.run,
        "confidence": data.settings.confidence,
        "bins": data.settings.bins,
        "unit": "fraction",
        "rows": [
            _json_row(data, evaluation, model, metrics, records)
            for evaluation in data.evaluations
            for model, metrics, records in data.results(evaluation)
        ],
        "differences": [
            {"evaluation": evaluation, "name": DIFFERENCE, **values}
            for evaluation, values in differences(data).items()
        ],
        "notes": [{"label": label, "value": value} for label, value in data.notes],
        "versions": dict(data.versions),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_row(
    data: ReportData, evaluation: str, model: str, metrics: EvalMetrics, records: EvalRecords
) -> dict[str, JSON]:
    shown = records.shown(data.settings.confidence) if records.answerable else None
    bins = [] if shown is None else reliability_bins(shown, records.correct, data.settings.bins)
    return {
        "evaluation": evaluation,
        "model": model,
        **asdict(metrics),
        "best": best_keys(data, evaluation, model),
        "reliability": [b._asdict() for b in bins],
    }


def _markdown_table(table: Table) -> str:
    heads = ["model"]
    for group in table.groups:  # Markdown has no column groups: the first column says the name
        first, *others = (column.heading for column in group.columns)
        heads += [f"{escape_markdown(group.title)}: {first}", *others]
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)]]
    for row in table.rows:
        cells = [f"**{c.text}**" if c.best else c.text for group in row.groups for c in group]
        lines.append([escape_markdown(row.name), *cells])
    legend = "; bold: best of the students" if table.competing else ""
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{escape_markdown(table.caption)}{legend}"


def _beside(table: Table) -> RichTable:
    """Return a grid of the names and each group, small tables whose lines match."""
    from rich.table import Table as RichTable

    names = _small_table(" ", ["model"], "left")
    groups = [_small_table(g.title, [c.heading for c in g.columns], "right") for g in table.groups]
    for row in table.rows:
        if row.kind == "difference":
            for part in (names, *groups):
                part.add_section()
        names.add_row(_styled(Cell(row.name)))
        for part, cells in zip(groups, row.groups, strict=True):
            part.add_row(*map(_styled, cells))
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


def _styled(cell: Cell) -> Text:
    from rich.text import Text

    return Text(f"{cell.text}*", style="bold green") if cell.best else Text(f"{cell.text} ")
