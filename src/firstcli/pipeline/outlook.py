"""How much of a command's work is done, and about how long the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import mean

from firstcli.errors import UserError
from firstcli.stages import stage_of
from firstcli.workspace.units import Unit

LEAST = 10
"""Seconds to which estimates of less than a minute are rounded up."""


class Outlook:
    """The pending units of a command, and how long similar units took.

    A unit will take as long as it took before, or else as long as similar units did: in an earlier
    run of the run folder, or in this one. Units of which nothing is known make the estimate a lower
    bound, unless they are brief.
    """

    def __init__(self, pending: Sequence[Unit], known: Iterable[Unit]) -> None:
        """Read how long units took.

        Args:
            pending: the units to work on, in this order.
            known: units whose artifacts may tell how long they took.
        """
        self.widths: dict[str, int] = {}
        """The length of the longest key of each stage, to align their lines."""
        for unit in pending:
            self.widths[unit.stage] = max(len(unit.key), self.widths.get(unit.stage, 0))
        self._total = len(pending)
        self._left = list(pending)
        self._seconds: dict[Unit, float] = {}
        self._current: Unit | None = None
        self._began = 0.0
        for unit in known:
            with suppress(UserError):  # a newer firstcli made it
                if (manifest := unit.artifact.written()) is not None:
                    self._seconds[unit] = manifest.seconds

    def begin(self, unit: Unit) -> None:
        """Note that a unit is worked on from now on."""
        self._current, self._began = unit, time.monotonic()

    def finish(self, unit: Unit, seconds: float | None = None) -> None:
        """Note that a unit is done, and how long it took if it was worked on."""
        self._left = [other for other in self._left if other != unit]
        self._current = None
        if seconds is not None:
            self._seconds[unit] = seconds

    @property
    def remains(self) -> bool:
        """Whether there is more to do."""
        return bool(self._left)

    def in_words(self, seconds_left: Callable[[], float | None]) -> str:
        """Return how many units are done, and how long the rest will take as far as it is known.

        Args:
            seconds_left: returns how long the current unit will take, if its progress shows it.

        Returns:
            The progress in words; empty if there is only one unit, which shows its own.
        """
        if self._total == 1:
            return ""
        done = f"{self._total - len(self._left)} of {self._total} done"
        each = [self._of(unit, seconds_left) for unit in self._left]
        others = [seconds for seconds in each[1:] if seconds is not None]
        if None not in each:
            return f"{done}, about {rounded(sum(filter(None, each)))} left"
        if sum(others):
            return f"{done}, at least {rounded(sum(filter(None, each)))} left"
        return done

    def _of(self, unit: Unit, seconds_left: Callable[[], float | None]) -> float | None:
        """Estimate how long a unit will still take."""
        estimate = self._estimate(unit)
        if unit != self._current:
            return estimate
        if (left := seconds_left()) is not None:
            return left
        return None if estimate is None else max(estimate - (time.monotonic() - self._began), 0.0)

    def _estimate(self, unit: Unit) -> float | None:
        if unit in self._seconds:
            return self._seconds[unit]
        alike = [other for other in self._seconds if _kind(other) == _kind(unit)]
        same = [other for other in alike if other.evaluation == unit.evaluation]
        if alike:
            return mean(self._seconds[other] for other in same or alike)
        return 0.0 if stage_of(unit).is_brief(unit) else None


def _kind(unit: Unit) -> tuple[str, bool]:
    return unit.stage, unit.model.posthoc


def rounded(seconds: float) -> str:
    """Format an estimated time, which is not as exact as a measured one."""
    if seconds < 55:
        return f"{max(LEAST, math.ceil(seconds / LEAST) * LEAST)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
