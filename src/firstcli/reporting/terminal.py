"""Finished tables of strings: how they are stored as JSON and printed in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult

    from firstcli.api import JSON

INDISTINCT = "not distinguishable"


@dataclass(frozen=True, slots=True)
class Cell:
    """A formatted value with its annotations."""

    text: str
    marked: bool = False
    """Whether the value is among the best, or the difference is distinguishable from zero."""
    interval: str = ""
    aside: tuple[str, ...] = ()


RowKind = Literal["teacher", "student", "shipped", "difference", "group"]


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A model or a difference between two, with one tuple of cells per column group."""

    name: str
    kind: RowKind
    groups: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Adjacent columns of one evaluation: of all its questions, or means over their groups."""

    title: str
    evaluation: str
    metrics: tuple[str, ...]
    headings: tuple[str, ...]
    average: Literal["micro", "macro"] = "micro"


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column groups and rows, ready for output in any format."""

    title: str
    caption: str
    legend: str  # the meaning of a mark; empty if nothing is marked
    groups: tuple[Group, ...]
    rows: tuple[ReportRow, ...]
    head: str = "model"
    """Heading of the rows' names."""

    def to_json(self) -> JSON:
        """Return the table as JSON, from which `from_json` restores it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, JSON]) -> Table:
        """Restore a table from the result of `to_json`."""
        groups = tuple(
            Group(
                *(g["title"], g["evaluation"], tuple(g["metrics"]), tuple(g["headings"])),
                g["average"],
            )
            for g in stored["groups"]
        )

        def cell(c: JSON) -> Cell:
            return Cell(c["text"], c["marked"], c["interval"], tuple(c["aside"]))

        rows = tuple(
            ReportRow(r["name"], r["kind"], tuple(tuple(map(cell, cells)) for cells in r["groups"]))
            for r in stored["rows"]
        )
        texts = (stored["title"], stored["caption"], stored["legend"])
        return cls(*texts, groups, rows, stored["head"])

    def by_group(self) -> list[Table]:
        """Return one table per column group."""
        return [self._select(g, slice(None)) for g in range(len(self.groups))]

    def split(self) -> list[Table]:
        """Return narrower tables: one per group, or the halves of a single group's columns."""
        if len(self.groups) != 1:
            return self.by_group()
        half = (len(self.groups[0].headings) + 1) // 2
        parts = [self._select(0, slice(half)), self._select(0, slice(half, None))]
        return [part for part in parts if part.groups[0].headings]

    def _select(self, g: int, columns: slice) -> Table:
        group = self.groups[g]
        kept = replace(group, metrics=group.metrics[columns], headings=group.headings[columns])
        rows = tuple(replace(row, groups=(row.groups[g][columns],)) for row in self.rows)
        return replace(self, groups=(kept,), rows=rows)


@dataclass(frozen=True, slots=True)
class VerdictText:
    """A rich renderable for a small terminal: headline, why, a narrow table, what to do next.

    Every row of the table takes one line. Evaluations that do not fit into the width, and rows
    that do not fit into the height, are left out and counted.
    """

    decision: Mapping[str, JSON]
    """Content of decision.json."""
    table: Table
    """The narrow tables of all evaluations side by side."""
    commands: Sequence[str]
    page: str
    height: int = 22
    """Lines; the terminal also shows the command and the prompt."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        above = [Text(line, "bold") for line in _wrapped(self.decision["headline"], width)]
        for text in (*self.decision["reasons"], *self.decision["limits"][:1]):
            above += map(Text, _wrapped(f"- {text}", width))
        below = [Text(f"try:    {line}") for line in self.commands[:1]]
        below += [Text(f"export: {line}") for line in self.commands[1:2]]
        below.append(Text(f"report: {self.page}"))
        below.append(Text("        --full prints all tables, --open shows the page", "dim"))
        yield from above
        yield from _narrow_lines(self.table, width, self.height - len(above) - len(below))
        yield from below


_LEGEND = "  > take this one, or one level with it; * best; in percent, ± half the interval"
_FEWEST_ROWS = 3


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


def _narrow_lines(table: Table, width: int, height: int) -> Iterator[Text]:
    """Yield a table of single lines, with as many column groups and rows as fit."""
    if not table.groups:
        return
    room = height - 3  # besides two lines of headings and the legend
    room -= len(table.rows) > room  # the number of hidden rows is stated
    rows = _most_important(table.rows, max(_FEWEST_ROWS, room))
    names = min(2 + max(cell_len(row.name) for row in rows), width // 3)
    columns = [_column_widths(table, g) for g in range(len(table.groups))]
    fit = [sum(map(sum, columns[: g + 1])) <= width - names for g in range(len(columns))]
    shown = max(1, sum(fit))
    titles, headings = Text(" " * names), Text(_fit("  model", names), "dim")
    for group, widths in zip(table.groups[:shown], columns, strict=False):
        titles.append(_fit(group.title, sum(widths) - 2).strip().rjust(sum(widths) - 1) + " ")
        for heading, each in zip(group.headings, widths, strict=True):
            headings.append(f"{heading} ".rjust(each))
    yield titles
    yield headings
    for row in rows:
        yield _narrow_row(row, names, columns[:shown])
    yield Text(_fit(_LEGEND, width), "dim")
    counts = {"evaluations": len(table.groups) - shown, "rows": len(table.rows) - len(rows)}
    if hidden := [f"{count} more {what}" for what, count in counts.items() if count]:
        yield Text(f"  --full shows {' and '.join(hidden)}", "dim")


def _most_important(rows: Sequence[ReportRow], count: int) -> list[ReportRow]:
    """Return the rows to show in a small space, in the table's order: teachers go first."""
    ranks = {"shipped": 0, "student": 1}
    order = sorted(range(len(rows)), key=lambda i: (ranks.get(rows[i].kind, 2), i))
    return [rows[i] for i in sorted(order[:count])]


def _column_widths(table: Table, group: int) -> list[int]:
    """Return the width of each column of a group, with a space on the left."""
    columns = zip(*(row.groups[group] for row in table.rows), strict=True)
    widths = [1 + max(cell_len(_on_one_line(cell)) for cell in column) for column in columns]
    headings = table.groups[group].headings
    return [max(width, 2 + len(text)) for width, text in zip(widths, headings, strict=True)]


def _on_one_line(cell: Cell) -> str:
    return f"{cell.text}{cell.interval}{'*' if cell.marked else ' '}"


def _narrow_row(row: ReportRow, names: int, columns: Sequence[Sequence[int]]) -> Text:
    shipped = row.kind == "shipped"
    name = _fit(f"{'>' if shipped else ' '} {row.name}", names)
    line = Text(name, "bold green" if shipped else "")
    for cells, widths in zip(row.groups, columns, strict=False):
        for cell, width in zip(cells, widths, strict=True):
            line.append(_on_one_line(cell).rjust(width), "bold" if cell.marked else "")
    line.rstrip()
    return line


def _fit(text: str, width: int) -> str:
    """Return the text with exactly this width; a longer one ends in an ellipsis."""
    return set_cell_size(text if cell_len(text) <= width else f"{text[: width - 2]}…", width)


@dataclass(frozen=True, slots=True)
class TerminalTable:
    """A rich renderable that never truncates a number: a table that is too wide is split."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.table.groups:  # no evaluation has right answers
            return

        def fitting(table: Table) -> Iterator[RichTable]:
            grid, parts = _grid(table), table.split()
            unlimited = options.update(width=10_000)
            width = console.measure(grid, options=unlimited).maximum
            if len(parts) == 1 or width <= options.max_width:
                yield grid
            else:
                for part in parts:
                    yield from fitting(part)

        legend = f"; * {self.table.legend}" if self.table.legend else ""
        yield Text(self.table.title, style="bold")
        yield from fitting(self.table)
        yield Text(self.table.caption + legend, style="dim")


def _grid(table: Table) -> RichTable:
    """Return the row names and the groups side by side, as small tables with aligned lines."""
    names = _small_table(" ", ("model",), "left")
    groups = [_small_table(group.title, group.headings, "right") for group in table.groups]
    for row in table.rows:
        if row.kind == "difference":
            for part in (names, *groups):
                part.add_section()
        height = max(_styled(cell).plain.count("\n") for cells in row.groups for cell in cells)
        names.add_row(row.name + "\n " * height)
        for part, cells in zip(groups, row.groups, strict=True):
            part.add_row(*(_styled(cell, height) for cell in cells))
    grid = RichTable.grid(padding=(0, 1))
    grid.add_column()  # as a last resort, names are truncated and numbers are not
    for _ in groups:
        grid.add_column(no_wrap=True)
    grid.add_row(names, *groups)
    return grid


def _small_table(title: str, headings: tuple[str, ...], justify: JustifyMethod) -> RichTable:
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
    """Return a cell's value and, below it, the interval and "not distinguishable".

    The text has at least `height` line breaks, which aligns the rows of separate tables.
    """
    verdict = INDISTINCT.split() if INDISTINCT in cell.aside else []
    small = [cell.interval, *verdict] if cell.interval else []
    value = Text(f"{cell.text}*", "bold green") if cell.marked else Text(f"{cell.text} ")
    small += [""] * (height - len(small))
    return Text("\n").join([value, *(Text(f"{line} ", "dim") for line in small)])
