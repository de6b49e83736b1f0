"""One run of one recipe: its folder, its data, and what has been loaded so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from firstcli.api import ModelRef, Sample
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.references import ModelSection, TaskRef
from firstcli.recipe.schema import Evaluation, Recipe, task_of
from firstcli.runtime.console import Console
from firstcli.workspace.artifacts import Digests, Manifest

Part = Literal["train", "validation", "out-of-fold"]
"""What there is knowledge of; `out-of-fold` are the training rows, by teachers that did not see
them."""
Role = Literal["teacher", "student"]
T = TypeVar("T")

PATIENCE = 15  # seconds of reading after which it is said how far it has come


@dataclass(frozen=True, slots=True)
class Training:
    """The training split, cut in two; no model trains on the validation part."""

    train: Sequence[Sample]
    validation: Sequence[Sample]

    def part(self, part: Part) -> Sequence[Sample]:
        return self.validation if part == "validation" else self.train


class Run:
    """What the stages share: the recipe, the run folder, the console, data and a cache."""

    def __init__(
        self, recipe: Recipe, resolved: dict[str, Any], folder: Path, console: Console
    ) -> None:
        self.recipe = recipe
        self.resolved = resolved
        self.folder = folder
        self.console = console
        self.digests = Digests(folder / ".digests.json")
        self.manifests: dict[str, Manifest] = {}
        """Manifests of the units that are known to be up to date, by key."""
        self._cache: dict[str, Any] = {}

    def cached(self, key: str, make: Callable[[], T]) -> T:
        """Return what was made under `key`, making it the first time."""
        if key not in self._cache:
            self._cache[key] = make()
        value: T = self._cache[key]
        return value

    # Data: the tasks' samples, with ids.

    def samples(self, ref: TaskRef, split: str, where: str) -> Sequence[Sample]:
        """Load a split, with ids; counts of dropped and duplicate rows become warnings.

        Raises:
            UserError: no such split, no rows, malformed rows, ids that occur twice, or a source
                that broke off.
        """
        key = json.dumps([ref.name, ref.given, split], default=str, sort_keys=True)
        return self.cached(f"samples {key}", lambda: self._load(ref, split, where))

    def _load(self, ref: TaskRef, split: str, where: str) -> Sequence[Sample]:
        task = task_of(ref)
        if split not in task.splits:
            raise UserError(
                f"{where}: task '{ref.name}' has no split '{split}'"
                f"{did_you_mean(split, task.splits)}; it has {', '.join(task.splits) or 'none'}"
            )
        about = f"{where}: split '{split}' of task '{ref.name}'"
        with _interruption_told(about, 0):
            loaded = task.load(split)
        given = Samples(self._watched(loaded.samples, about), self.folder)
        if not given:
            raise UserError(f"{about} has no rows to use")
        for reason, count in loaded.dropped.items():
            self.console.warn(f"{where}: {count} rows of split '{split}' left out: {reason}")
        samples = Samples(splits.with_ids(given, where), self.folder)
        if repeated := splits.duplicate_rows(samples):
            self.console.warn(
                f"{where}: {repeated} rows of split '{split}' repeat the prompt and response of an "
                "earlier row"
            )
        return samples

    def _watched(self, samples: Iterable[Sample], about: str) -> Iterator[Sample]:
        """Pass samples on; say how far a slow source has come, and where one breaks off."""
        source, count, told = iter(samples), 0, time.monotonic()
        while True:
            with _interruption_told(about, count):
                sample = next(source, None)
            if sample is None:
                return
            yield sample
            count += 1
            if time.monotonic() - told > PATIENCE:
                told = time.monotonic()
                self.console.say(f"{about}: {count} rows read so far")

    @property
    def training(self) -> Training:
        """The training split, cut by the hash of each prompt."""
        return self.cached("training", self._cut)

    def _cut(self) -> Training:
        section = self.recipe.train
        samples = self.samples(section.task, "train", "train.task")
        training = Training(*splits.cut_validation(samples, section.validation))
        if not training.train:
            raise UserError(
                f"train.validation: {section.validation} of {len(samples)} rows leaves none to "
                "train on; lower it"
            )
        return training

    def evaluation(self, name: str) -> Evaluation:
        return next(one for one in self.recipe.evaluate if one.name == name)

    def evaluation_samples(self, name: str) -> Sequence[Sample]:
        one = self.evaluation(name)
        return self.samples(one.task, one.split, f"evaluate '{name}'")

    def content_of_samples(self, key: str, samples: Sequence[Sample]) -> str:
        return self.cached(f"digest {key}", lambda: splits.content_digest(samples))

    # Models: which, and what identifies them.

    def model_section(self, role: Role) -> ModelSection:
        if role == "student":
            return self.recipe.student.model
        if self.recipe.teacher is None:
            raise UserError("teacher: missing; only arms that learn labels can do without")
        return self.recipe.teacher.model

    def reference(self, role: Role) -> ModelRef:
        section = self.model_section(role)
        return ModelRef(section.checkpoint, section.revision)

    def checkpoint_identity(self, role: Role) -> str:
        """Return what identifies a checkpoint: the content of a folder, or hub id and revision."""
        ref = self.reference(role)
        if ref.folder is None:
            return f"{ref.checkpoint}@{ref.revision}"
        if not ref.folder.is_dir():
            raise UserError(f"{role}.model.checkpoint: {ref.folder} is no folder")
        return self.digests.of_checkpoint(ref.folder)


@contextmanager
def _interruption_told(about: str, count: int) -> Iterator[None]:
    """Turn a lost connection or an unreadable disk into a sentence; libraries wrap these."""
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
            f"{about} broke off after {count} rows ({type(error).__name__}: {error}); nothing of "
            "it is used, run the same command again"
        ) from error
