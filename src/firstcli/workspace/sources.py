"""Reading the splits of tasks: samples with ids, progress, and sources that break off."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from firstcli.api import Sample, Task
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.references import TaskRef
from firstcli.recipe.sections import TEST
from firstcli.runtime.console import Console
from firstcli.workspace.content import as_json

PROGRESS_SECONDS = 15
"""Seconds of reading between two progress messages."""


class Sources:
    """The splits of a run's tasks, each read once."""

    def __init__(self, folder: Path, console: Console) -> None:
        """Read nothing yet.

        Args:
            folder: the run folder, in which large sets of samples are kept on disk.
            console: shows progress and warnings.
        """
        self.folder = folder
        self.console = console
        self._samples: dict[str, Samples] = {}

    def samples(self, ref: TaskRef, split: str, where: str, limit: int | None) -> Samples:
        """Load a split, with ids; counts of dropped and duplicate samples become warnings.

        Args:
            ref: the task.
            split: one of the task's splits.
            where: the key of the recipe, for messages.
            limit: number of samples after which reading stops.

        Raises:
            UserError: the task has no such split or no samples, a row is malformed, an id occurs
                twice, or reading broke off.
        """
        key = as_json([ref.name, ref.effective, split, limit])
        if key not in self._samples:
            task = ref.build()
            if split not in task.splits:
                advice = f"; {ref.advice_on_test_split}name one of these with `split:`"
                raise UserError(
                    f"{where}: task '{ref.name}' has no split '{split}'"
                    f"{did_you_mean(split, task.splits)}; it has {', '.join(task.splits) or 'none'}"
                    f"{advice if split == TEST else ''}"
                )
            self._samples[key] = self.read(task, ref.name, split, where, limit)
        return self._samples[key]

    def read(
        self, task: Task[Any], name: str, split: str, where: str, limit: int | None
    ) -> Samples:
        """Read a split of a task anew, as `samples` does.

        Args:
            task: the task.
            name: name of its plugin.
            split: one of its splits.
            where: the key of the recipe, for messages.
            limit: number of samples after which reading stops.
        """
        source = f"{where}: split '{split}' of task '{name}'"
        with self.console.status(f"reading split '{split}' of task '{name}'"):
            with _interruption_reported(source, 0):
                loaded = task.load(split)
            rows = self._with_progress(loaded.samples, source)
            given = Samples(islice(rows, limit), self.folder)
            if not given:
                raise UserError(f"{source} has no samples to use")
            if limit and next(rows, None):
                self.console.warn(
                    f"{where}: only the first {limit} rows of split '{split}' are used (limit)"
                )
            for note in loaded.notes:
                self.console.warn(f"{where}: {note}")
            for reason, count in loaded.dropped.items():
                self.console.warn(
                    f"{where}: {count} rows of split '{split}' are left out: {reason}"
                )
            samples = Samples(splits.with_ids(given, where), self.folder)
        if repeated := splits.duplicate_rows(samples):
            self.console.warn(
                f"{where}: {repeated} rows of split '{split}' repeat the prompt and response of an "
                "earlier row"
            )
        return samples

    def _with_progress(self, samples: Iterable[Sample], source: str) -> Iterator[Sample]:
        """Pass samples on; report the progress of a slow source, and where reading breaks off."""
        remaining, count, reported = iter(samples), 0, time.monotonic()
        while True:
            with _interruption_reported(source, count):
                sample = next(remaining, None)
            if sample is None:
                return
            yield sample
            count += 1
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                self.console.say(f"{source}: {count} rows read so far")


@contextmanager
def _interruption_reported(source: str, count: int) -> Iterator[None]:
    """Turn a lost connection or an unreadable disk into a sentence; libraries wrap these errors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise UserError(
            f"{source} broke off after {count} rows ({type(error).__name__}: {error}); none of "
            "them is used; run the same command again"
        ) from error
