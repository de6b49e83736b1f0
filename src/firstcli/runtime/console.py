"""Output for people: lines, tables and progress, with rich on a terminal and plain elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from firstcli.runtime import distributed
from firstcli.runtime.redaction import without_secrets

Advance = Callable[[int], None]
MIN_WIDTH = 40  # columns; a narrower terminal wraps lines, so that tables lose no digits
PROGRESS_INTERVAL = 15  # seconds between two lines of progress without a terminal


class Console:
    """Output of one command; with `json`, stdout is reserved for the machine-readable result."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        silent = quiet or not distributed.is_first()
        self._out = RichConsole(stderr=json, quiet=silent, highlight=False)
        self._err = RichConsole(stderr=True, quiet=silent, highlight=False)
        self._warned: set[str] = set()
        self._collected: list[list[str]] = []  # one list per open `collect_warnings`
        if not self._out.is_terminal and "COLUMNS" not in os.environ:
            self._out.width = 160  # a file has no width; do not cut tables to 80 columns
        if self._out.width < MIN_WIDTH:
            self._out.width = MIN_WIDTH

    @property
    def _is_live(self) -> bool:
        """Whether lines can be drawn anew, as spinners and bars require."""
        return self._out.is_terminal and not self._out.is_dumb_terminal

    def say(self, text: str) -> None:
        self._out.print(escape(text), soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        self._out.print(renderable)

    def warn(self, text: str) -> None:
        """Print a warning, unless it has been printed before."""
        text = without_secrets(text)
        for warnings in self._collected:
            warnings.append(text)
        if text not in self._warned:
            self._warned.add(text)
            self._err.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)

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
        """Show at once what is being done: a spinner on a terminal, elsewhere one line.

        On a terminal, at most one `status` or `progress` can be active.
        """
        if not self._is_live:
            self.say(text)
            yield
            return
        with self._out.status(escape(text)) as status:
            spinner = "line" if self._out.options.ascii_only else "dots"
            status.update(spinner=spinner)  # draws now, not when the refresh thread gets its turn
            yield

    @contextmanager
    def progress(self, what: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Show progress with rate and time left; without a terminal, a line every 15 seconds.

        Args:
            what: the description of the work.
            total: number of units of the whole work.
            unit: the plural of what is counted.
            done: number of units that were finished before.
        """
        if not self._is_live:
            yield self._plain_progress(what, total, unit, done)
            return
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TaskProgressColumn(),
            _RateColumn(unit),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self._out, transient=True) as bar:
            task = bar.add_task(escape(what), total=total, completed=done)
            yield lambda count: bar.advance(task, count)

    def _plain_progress(self, what: str, total: int, unit: str, done: int) -> Advance:
        start = last = time.monotonic()
        done_before = done

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= PROGRESS_INTERVAL and done < total:
                last = now
                rate = (done - done_before) / (now - start)
                left = (total - done) / rate if rate else 0.0
                self.say(f"  {what}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left")

        return advance


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


class _RateColumn(bars.TextColumn):
    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if speed is None else f"{speed:.1f} {self._unit}/s"
        return Text(text, style="progress.data.speed")
