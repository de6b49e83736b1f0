"""Output for people: lines, tables and progress, with rich on a terminal and plain elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from firstcli.runtime import distributed
from firstcli.runtime.redaction import without_secrets

Advance = Callable[[int], None]
MIN_WIDTH = 40  # columns; a narrower terminal wraps lines, so that tables lose no digits
PROGRESS_INTERVAL = 15  # seconds between two lines of progress without a terminal
SEPARATOR = " · "
DONE = "✓"


class Console:
    """Output of one command; with `json`, stdout is reserved for the machine-readable result."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        silent = quiet or not distributed.is_first()
        self._out = RichConsole(stderr=json, quiet=silent, highlight=False)
        self._err = RichConsole(stderr=True, quiet=silent, highlight=False)
        self._warned: set[str] = set()
        self._collected: list[list[str]] = []  # one list per open `collect_warnings`
        self._drawn: list[RenderableType] = []  # what a terminal draws anew, from top to bottom
        self._paces: list[_Pace] = []  # one per open `progress`
        self._overall: Callable[[], str] = str
        self._stated: set[str] = set()  # lines of `status` without a terminal
        self._last_line = time.monotonic()  # when progress was last printed without a terminal
        if not self._out.is_terminal and "COLUMNS" not in os.environ:
            self._out.width = 160  # a file has no width; do not cut tables to 80 columns
        if self._out.width < MIN_WIDTH:
            self._out.width = MIN_WIDTH

    @property
    def _is_live(self) -> bool:
        """Whether lines can be drawn anew, as spinners and bars require."""
        return self._out.is_terminal and not self._out.is_dumb_terminal

    def say(self, text: str, *, wrap: bool = False) -> None:
        """Print a text; with `wrap`, a terminal that is too narrow breaks it between words."""
        self._out.print(escape(text), soft_wrap=not (wrap and self._out.is_terminal))

    def say_phrases(self, head: str, phrases: Sequence[str], tail: str = "") -> None:
        """Print a line of phrases; a terminal that is too narrow breaks it between them.

        Args:
            head: the beginning of the line, below which further lines are indented.
            phrases: what follows, separated by dots.
            tail: the end of the line.
        """
        line = "   ".join(filter(None, (head, SEPARATOR.join(phrases), tail)))
        if self._out.is_terminal:
            line = "\n".join(_wrapped(head, phrases, tail, self._out.width))
        self.say(line)

    def show(self, renderable: RenderableType) -> None:
        """Print a text or a table.

        A table that is too wide wraps between words. If that is not enough, its columns are divided
        among several tables, or it becomes a list of headings and values, as single rows do.
        """
        if isinstance(renderable, Table) and not self._fits(renderable):
            for part in (parts := self._divided(renderable)):
                self._out.print(part)
            if not parts:
                self._show_records(renderable)
        else:
            self._out.print(renderable)

    def _fits(self, table: Table) -> bool:
        """Return whether a table needs no break within a word; set the widths of its columns.

        Left to itself, rich breaks long words although other columns have room.
        """
        unlimited = self._out.options.update(width=10_000)
        ranges = []
        for column in table.columns:
            cells = (column.header, *column.cells)
            each = [Measurement.get(self._out, unlimited, cell) for cell in cells]
            widest = max(cell.maximum for cell in each)
            least = widest if column.no_wrap else max(cell.minimum for cell in each)
            ranges.append((least, widest))
        needed = Measurement.get(self._out, unlimited, table).maximum
        room = self._out.width - needed + sum(widest for _, widest in ranges)
        limit = max((widest for _, widest in ranges), default=0)
        if needed <= self._out.width:
            return True
        if table.row_count == 1 or sum(least for least, _ in ranges) > room:
            return False
        while sum(max(least, min(widest, limit)) for least, widest in ranges) > room:
            limit -= 1
        for column, (least, widest) in zip(table.columns, ranges, strict=True):
            column.width = max(least, min(widest, limit))
        return True

    def _divided(self, table: Table) -> list[Table]:
        """Return tables with the first column and some others each; none if one is too wide."""
        parts: list[Table] = []
        start, count = 1, len(table.columns)
        while start < count and table.row_count > 1:
            candidates = (
                _selected(table, [0, *range(start, end)]) for end in range(count, start, -1)
            )
            fitting = next(filter(self._fits, candidates), None)
            if fitting is None:
                return []
            parts.append(fitting)
            start += len(fitting.columns) - 1
        return parts

    def _show_records(self, table: Table) -> None:
        """Print each row of a table as lines of a heading and a value."""
        if table.title:
            self._out.print(table.title, style="italic")
        headings = [_plain(column.header) for column in table.columns]
        width = max(map(cell_len, headings))
        for number, row in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
            if number:
                self.say("")
            for heading, cell in zip(headings, map(_plain, row), strict=True):
                if cell:
                    self.say(f"{heading:<{width}}  {cell}".rstrip())
        if table.caption:
            self._out.print(table.caption, style="dim")

    def warn(self, text: str) -> None:
        """Print a warning, unless it has been printed before."""
        text = without_secrets(text)
        for warnings in self._collected:
            warnings.append(text)
        if text not in self._warned:
            self._warned.add(text)
            # What is drawn at the bottom of the terminal must be moved, which its console does.
            out = self._out if self._drawn and self._err.is_terminal else self._err
            line = f"[yellow]warning:[/yellow] {escape(text)}"
            out.print(line, soft_wrap=not self._err.is_terminal)

    @contextmanager
    def collect_warnings(self) -> Iterator[list[str]]:
        """Yield a list that receives every warning in this block, also repeated ones."""
        warnings: list[str] = []
        self._collected.append(warnings)
        try:
            yield warnings
        finally:
            self._collected = [other for other in self._collected if other is not warnings]

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show at once what is being done: a spinner on a terminal, elsewhere one line, once."""
        if not self._is_live:
            if text not in self._stated:
                self._stated.add(text)
                self.say(text)
            yield
            return
        with self._drawing(Spinner(self._spinner, escape(text)), at=0):
            yield

    @contextmanager
    def work(self, name: str, overall: Callable[[], str]) -> Iterator[None]:
        """Show that a unit is worked on, and how much of the whole command is done.

        On a terminal, this is one line below everything else. Elsewhere, the lines of `progress`
        end with it.

        Args:
            name: the unit.
            overall: returns the progress of the whole command, in words.
        """
        self._overall = overall
        try:
            if self._is_live:
                with self._drawing(_Refreshed(name, overall, Spinner(self._spinner)), at=None):
                    yield
            else:
                yield
        finally:
            self._overall = str

    def say_if_due(self, text: str) -> None:
        """Without a terminal, print how far a command is, unless a line of progress is recent."""
        if not self._is_live and self._is_due():
            self.say(f"  {text}")

    def seconds_left(self) -> float | None:
        """Return how long the innermost open `progress` will take; None if that is unknown."""
        return self._paces[-1].seconds_left() if self._paces else None

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show progress with rate and time left; without a terminal, a line every 15 seconds.

        Args:
            what: the description of the work.
            total: number of units of the whole work.
            unit: the plural of what is counted.
            done: number of units that were finished before.
        """
        pace = _Pace(total, done, done, time.monotonic())
        self._paces.append(pace)
        self._last_line = pace.began
        try:
            if self._is_live:
                with self._bar(what, pace, unit) as advance:
                    yield advance
            else:
                yield self._plain_progress(what, pace, unit)
        finally:
            self._paces.remove(pace)

    @contextmanager
    def _bar(self, what: str, pace: _Pace, unit: str) -> Iterator[Advance]:
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=max(8, min(40, self._out.width - 72))),
            bars.MofNCompleteColumn(),
            _PaceColumn(pace, unit),
        )
        bar = bars.Progress(*columns, console=self._out)
        task = bar.add_task(escape(what), total=pace.total, completed=pace.done)

        def advance(count: int) -> None:
            pace.done += count
            bar.advance(task, count)

        with self._drawing(bar, at=0):
            yield advance

    def _plain_progress(self, what: str, pace: _Pace, unit: str) -> Advance:
        def advance(count: int) -> None:
            pace.done += count
            if pace.done < pace.total and self._is_due():
                left = duration(round(pace.seconds_left() or 0))
                line = f"  {what}: {pace.done}/{pace.total} {unit}, {pace.rate:.1f}/s, {left} left"
                self.say(SEPARATOR.join(filter(None, (line, self._overall()))))

        return advance

    def _is_due(self) -> bool:
        """Return whether the last line of progress is old enough for the next one."""
        now = time.monotonic()
        if now - self._last_line < PROGRESS_INTERVAL:
            return False
        self._last_line = now
        return True

    @property
    def _spinner(self) -> str:
        return "line" if self._out.options.ascii_only else "dots"

    @contextmanager
    def _drawing(self, renderable: RenderableType, at: int | None) -> Iterator[None]:
        """Draw something at the bottom of the terminal, at a place among what is drawn already."""
        live = None
        self._drawn.insert(len(self._drawn) if at is None else at, renderable)
        try:
            if len(self._drawn) == 1:
                live = Live(
                    console=self._out, transient=True, get_renderable=lambda: Group(*self._drawn)
                )
                live.start(refresh=True)  # now, not when the refresh thread gets its turn
            yield
        finally:
            if live is not None:
                live.refresh()  # a short piece of work is shown, too
                live.stop()
            self._drawn = [other for other in self._drawn if other is not renderable]


@dataclass(eq=False)
class _Pace:
    """How fast some work goes."""

    total: int
    done: int
    done_before: int
    began: float

    @property
    def rate(self) -> float:
        """What is done per second."""
        seconds = time.monotonic() - self.began
        return (self.done - self.done_before) / seconds if seconds else 0.0

    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None


@dataclass(frozen=True)
class _Refreshed:
    """A spinner with a text that changes while it is shown."""

    name: str
    overall: Callable[[], str]
    spinner: Spinner

    def __rich__(self) -> Spinner:
        self.spinner.update(text=escape(SEPARATOR.join(filter(None, (self.name, self.overall())))))
        return self.spinner


def _wrapped(head: str, phrases: Sequence[str], tail: str, width: int) -> list[str]:
    """Break a line between phrases; further lines are indented by the width of the head."""
    indent = " " * (cell_len(head) + 3 if cell_len(head) < width / 2 else 2)
    lines, line = list[str](), head
    for phrase in phrases:
        joint = "   " if line == head else SEPARATOR
        if line.strip() and cell_len(line + joint + phrase) > width:
            lines.append(line)
            line = indent + phrase
        else:
            line += joint + phrase
    if tail and cell_len(f"{line}   {tail}") > width:
        lines.append(line)
        line = indent + tail
    elif tail:
        line += f"   {tail}"
    return [*lines, line]


def _selected(table: Table, columns: Sequence[int]) -> Table:
    """Return a table with some of the columns."""
    chosen = [table.columns[index] for index in columns]
    part = Table(
        *(column.copy() for column in chosen),
        title=table.title,
        caption=table.caption,
        box=table.box,
        padding=table.padding,
        title_justify=table.title_justify,
    )
    for row in zip(*(column.cells for column in chosen), strict=True):
        part.add_row(*row)
    return part


def _plain(cell: RenderableType) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def percent(share: float) -> str:
    """Format a share."""
    return f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Format a time."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _PaceColumn(bars.TextColumn):
    """Rate and time left."""

    def __init__(self, pace: _Pace, unit: str) -> None:
        super().__init__("")
        self._pace, self._unit = pace, unit

    def render(self, task: bars.Task) -> Text:
        left = self._pace.seconds_left()
        text = "" if left is None else f"{self._pace.rate:.1f} {self._unit}/s"
        text += f", {duration(round(left))} left" if left else ""
        return Text(text, style="progress.data.speed")
