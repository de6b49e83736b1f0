"""One run of one recipe: its folder, its data, and what has been loaded so far."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from firstcli import splits
from firstcli.api import ModelRef, Sample
from firstcli.artifacts import Digests, Manifest
from firstcli.console import Console
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe import Evaluation, ModelSection, PluginRef, Recipe, task_of

Part = Literal["train", "validation"]
Role = Literal["teacher", "student"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Training:
    """The training split, cut in two; no model trains on the validation part."""

    train: list[Sample]
    validation: list[Sample]

    def part(self, part: Part) -> list[Sample]:
        return self.train if part == "train" else self.validation


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

    def samples(self, ref: PluginRef, split: str, where: str) -> list[Sample]:
        """Load a split, with ids; counts of dropped and duplicate rows become warnings.

        Raises:
            UserError: no such split, no rows, malformed rows or ids that occur twice.
        """
        key = json.dumps([ref.name, ref.options, split], default=str, sort_keys=True)
        return self.cached(f"samples {key}", lambda: self._load(ref, split, where))

    def _load(self, ref: PluginRef, split: str, where: str) -> list[Sample]:
        task = task_of(ref)
        if split not in task.splits:
            raise UserError(
                f"{where}: task '{ref.name}' has no split '{split}'"
                f"{did_you_mean(split, task.splits)}; it has {', '.join(task.splits) or 'none'}"
            )
        loaded = task.load(split)
        if not loaded.samples:
            raise UserError(f"{where}: split '{split}' of task '{ref.name}' has no rows to use")
        for reason, count in loaded.dropped.items():
            self.console.warn(f"{where}: {count} rows of split '{split}' left out: {reason}")
        samples = splits.with_ids(loaded.samples, where)
        if repeated := splits.duplicate_rows(samples):
            self.console.warn(
                f"{where}: {repeated} rows of split '{split}' repeat the prompt and response of an "
                "earlier row"
            )
        return samples

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

    def evaluation_samples(self, name: str) -> list[Sample]:
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
