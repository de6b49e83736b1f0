"""Finished tables of strings: how they are stored as JSON and printed in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len
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
