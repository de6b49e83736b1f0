"""One run of one recipe: its folder, its data, and what has been loaded so far."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import yaml

from firstcli.api import ModelRef, Sample
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.data.shifts import changed_share
from firstcli.errors import UserError
from firstcli.recipe.evaluations import Evaluation, GenerationSettings
from firstcli.recipe.references import ModelSection, TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import Training, training_of
from firstcli.recipe.shift import Shift, unshifted
from firstcli.runtime.console import Console
from firstcli.runtime.redaction import redacted, without_folders
from firstcli.workspace.adaptation import TaskAdapter
from firstcli.workspace.artifacts import Digests, Manifest
from firstcli.workspace.caches import Caches
from firstcli.workspace.content import ContentDigests, of_first
from firstcli.workspace.copies import (
    copies_content,
    rewording_requests,
    training_copies,
    unchanged_copies,
)
from firstcli.workspace.memory import Memory
from firstcli.workspace.responses import prompts_to_answer, written_samples
from firstcli.workspace.shifts import shifted_content, shifted_questions
from firstcli.workspace.sources import Sources
from firstcli.workspace.tokenizers import Tokenizers
from firstcli.workspace.training_split import (
    TRAINING_TASK,
    TrainingSplit,
    labelled_split,
    unlabelled_samples,
    validation_questions,
)
from firstcli.workspace.units import (
    RESPONSES_KEY,
    REWORDINGS_KEY,
    Part,
    Role,
    Unit,
    responses_path,
    shifts_of,
)

P = ParamSpec("P")
T = TypeVar("T")


def once_per_run(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Call a function once for a run and its other arguments, then return the same result."""

    @wraps(function)
    def remembered(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, args, tuple(sorted(kwargs.items())))
        if key not in run.loaded:
            run.loaded[key] = function(run, *args, **kwargs)
        return cast(T, run.loaded[key])

    return remembered


def as_yaml(value: object) -> str:
    """Return a value as YAML, in its own order of keys."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


class Run:
    """What the stages share: the recipe, the run folder, the console and the data."""

    def __init__(self, recipe: Recipe, folder: Path, console: Console) -> None:
        """Open a run; nothing is read or written yet.

        Args:
            recipe: the validated recipe.
            folder: the run folder, which need not exist.
            console: prints progress and warnings.
        """
        self.recipe = recipe
        self.folder = folder
        self.console = console
        self.digests = Digests(folder / ".digests.json")
        self.memory = Memory(folder / ".checks.json", console)
        self.caches = Caches(folder)
        self.manifests: dict[str, Manifest] = {}
        """Manifests of the units that are known to be up to date, by key."""
        self.shared_answers: Path | None = None
        """The file of a remote teacher's answers that this run shares with others, if any."""
        self.loaded: dict[object, object] = {}
        """Results of `once_per_run` functions."""
        self.tokenizers = Tokenizers(recipe, console, self._text)
        self._sources = Sources(folder, console)
        self._contents = ContentDigests(self.digests, self.memory)
        self._adapter = TaskAdapter(
            recipe, self.tokenizers, self._contents, self.announce_libraries
        )
        self._announced = False

    def save_memory(self) -> None:
        """Write digests, remembered checks and other caches, if the run folder exists."""
        self.digests.save()
        self.memory.save()
        self.caches.write_waiting()

    def announce_libraries(self) -> None:
        """Say once that PyTorch is about to be imported, which takes seconds."""
        if "torch" not in sys.modules and not self._announced:
            self._announced = True
            self.console.say("loading PyTorch and transformers ...")

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The recipe as plain YAML values, with defaults and absolute paths, without secrets."""
        resolved: dict[str, Any] = redacted(self.recipe.resolved())
        return resolved

    @property
    def publishable(self) -> dict[str, Any]:
        """The resolved recipe with names of files and folders instead of their paths."""
        published: dict[str, Any] = without_folders(self.resolved)
        return published

    @property
    def publishable_text(self) -> str:
        """The same as YAML."""
        return as_yaml(self.publishable)

    @property
    def recipe_text(self) -> str:
        """The resolved recipe as YAML."""
        return as_yaml(self.resolved)

    # Tasks, with the options that depend on the tokenizers.

    @property
    def training_task(self) -> TaskRef:
        """The training task with adapted options."""
        return self._adapted_training[0]

    @property
    def adaptation_note(self) -> str:
        """What the training task decided when it saw the tokenizers, in a few words."""
        return self._adapted_training[1]

    @cached_property
    def _adapted_training(self) -> tuple[TaskRef, str]:
        return self._adapter.adapted(self.recipe.train.task, TRAINING_TASK, None)

    @once_per_run
    def evaluation_task(self, name: str) -> TaskRef:
        """Return the task of an evaluation with adapted options."""
        name = unshifted(name)
        return self.adapted_task(self._evaluation(name).task, self.task_key(name))

    def adapted_task(self, ref: TaskRef, where: str) -> TaskRef:
        """Return a task with adapted options: those of the training task, if it is the same.

        Args:
            ref: the task.
            where: its key in the recipe, for messages.
        """
        training = self.recipe.train.task
        if ref == training:
            return self.training_task
        known = self.training_task if ref.name == training.name else None
        return self._adapter.adapted(ref, where, known)[0]

    def split_samples(self, ref: TaskRef, split: str, where: str, limit: int | None) -> Samples:
        """Return the samples of a split, labels included, each split read once.

        Args:
            ref: the task with adapted options.
            split: one of its splits.
            where: the key of the recipe, for messages.
            limit: number of samples after which reading stops.
        """
        return self._sources.samples(ref, split, where, limit)

    def stated_task(self, evaluation: str = "") -> TaskRef:
        """Return the task of an evaluation as the recipe states it; by default that of training."""
        if not evaluation or self.recipe.is_validation(evaluation):
            return self.recipe.train.task
        return self._evaluation(evaluation).task

    def task_key(self, evaluation: str = "") -> str:
        """Return the recipe's key of the task that `stated_task` returns, for messages."""
        is_own = self.stated_task(evaluation) != self.recipe.train.task
        return f"evaluate '{evaluation}'.task" if is_own else TRAINING_TASK

    def _text(self) -> Iterator[Sample]:
        """Return the samples on whose text tokenizers are trained."""
        split = self._training_split(self.recipe.train.task)
        return chain(split.train, split.validation)

    # Data: the samples of the tasks, with ids.

    @cached_property
    def training(self) -> TrainingSplit:
        """The training data: the labelled rows cut by the hash of each prompt, and the others."""
        cut = self._training_split(self.training_task)
        if not self.recipe.train.task.plugin.has_candidates:
            return cut
        unlabelled = unlabelled_samples(self.recipe, self.training_task, cut, self._sources)
        return replace(cut, unlabelled=unlabelled)

    @cached_property
    def copies(self) -> Sequence[Sample]:
        """The copies of the training samples; none if nothing learns them."""
        if self.recipe.augmentation is None:
            return ()
        with self.console.status("making copies of the training samples"):
            copies = training_copies(self.recipe, self.training_task, self.training, self.folder)
            count = unchanged_copies(copies, self.training)
        if count:
            self.console.say(f"train.augment: {count} of {len(copies)} copies equal their samples")
        return copies

    @cached_property
    def rewording_requests(self) -> Sequence[Sample]:
        """What the teacher continues for copies: prompts with the ids of the copies."""
        return rewording_requests(self.recipe, self.training_task, self.training, self.folder)

    def _training_split(self, ref: TaskRef) -> TrainingSplit:
        """Read the training split and cut its labelled samples."""
        limit = self.recipe.train.limit
        samples = self._sources.samples(ref, "train", TRAINING_TASK, limit)
        uses_data = self.recipe.knowledge.responses == "data" and not ref.plugin.has_candidates
        if uses_data and samples.unanswered.any():
            self._warn_of_prompts(int(samples.unanswered.sum()))
        return labelled_split(self.recipe, ref, samples, self._sources)

    @once_per_run
    def _warn_of_prompts(self, count: int) -> None:
        self.console.warn(
            f"train.task: {count} rows of split 'train' are left out: empty response (with "
            "`knowledge.responses: teacher`, the teacher writes one)"
        )

    def samples_of(self, part: Part) -> Sequence[Sample]:
        """Return the samples of a part; those that the teacher writes exist once it has."""
        if part == "copies":
            return self.copies if self.is_written(part) else ()
        return self._written if part == "written" else self.training.part(part)

    @cached_property
    def prompts(self) -> Sequence[Sample]:
        """The samples whose responses the teacher writes, without those that they have.

        Raises:
            UserError: the samples are conversations.
        """
        limit = self.recipe.train.limit
        samples = self._sources.samples(self.training_task, "train", TRAINING_TASK, limit)
        if samples[0].messages:
            raise UserError(
                "knowledge.responses: the samples are conversations, whose turns the data has "
                "written; leave it out, or give prompts without a response"
            )
        rewrites = self.recipe.knowledge.responses == "teacher-always"
        found = prompts_to_answer(samples, self.training, self.console, rewrites=rewrites)
        return Samples(found, self.folder)

    @property
    def prompts_content(self) -> str:
        """A digest of the prompts whose responses the teacher writes."""
        return splits.content_digest(self.prompts)

    def is_written(self, part: Part) -> bool:
        """Return whether the samples of a part exist: what the teacher writes, once it has."""
        if part == "copies":
            return self.recipe.writing is None or REWORDINGS_KEY in self.manifests
        return part != "written" or self._responses is not None

    @property
    def _responses(self) -> Manifest | None:
        """The manifest of the teacher's responses, once they are up to date."""
        return self.manifests.get(RESPONSES_KEY)

    @cached_property
    def _written(self) -> Sequence[Sample]:
        return Samples(written_samples(responses_path(self.folder), self.prompts), self.folder)

    def generation(self, name: str) -> GenerationSettings | None:
        """Return how models generate their answers in an evaluation; None if they are scored."""
        if self.recipe.is_validation(name):
            return self.recipe.validation_answers
        return self._evaluation(name).generation

    def _evaluation(self, name: str) -> Evaluation:
        """Return the section of an evaluation, which a shifted one has in common with it."""
        return next(s for s in self.recipe.evaluate if s.name == unshifted(name))

    @cached_property
    def _shifts(self) -> dict[str, Shift]:
        """The shifts by the names of the shifted evaluations."""
        return {
            name: shift for each in shifts_of(self.recipe).values() for name, shift in each.items()
        }

    @once_per_run
    def _shifted(self, name: str) -> Sequence[Sample]:
        """Return the questions of a shifted evaluation."""
        return shifted_questions(
            self._shifts[name],
            unshifted(name),
            self.evaluation_task(name),
            self.evaluation_samples(unshifted(name)),
            self.recipe.seed,
            self.folder,
            self.console,
        )

    def changed_share(self, name: str) -> float | None:
        """Return the share of prompts that a shift changes; None if an evaluation has no shift."""
        if name not in self._shifts:
            return None
        samples = self.evaluation_samples(unshifted(name))
        return changed_share(samples, self._shifted(name))

    @cached_property
    def _validation_questions(self) -> Sequence[Sample]:
        """The validation samples that have a right candidate."""
        return validation_questions(self.recipe, self.training)

    def evaluation_samples(self, name: str) -> Sequence[Sample]:
        """Return the questions of an evaluation; those without a label are left out.

        If no question has a label, none is left out.
        """
        if self.recipe.is_validation(name):
            return self._validation_questions
        if name in self._shifts:
            return self._shifted(name)
        section = self._evaluation(name)
        where = f"evaluate '{name}'"
        task = self.evaluation_task(name)
        samples = self._sources.samples(task, section.split, where, section.limit)
        without = samples.unanswered
        if not without.any() or without.all():
            return samples
        return self._labelled(samples, where)

    @once_per_run
    def _labelled(self, samples: Samples, where: str) -> Sequence[Sample]:
        """Return the samples with a label; warn of the others."""
        count = int(samples.unanswered.sum())
        self.console.warn(
            f"{where}: {count} of {len(samples)} rows are left out, because they have no label"
        )
        return Selected(samples, np.flatnonzero(~samples.unanswered))

    # The content of the data, which fingerprints cover.

    def part_content(self, part: Part) -> str:
        """Return a digest of one part of the training data; empty if it has no samples."""
        if part == "written":
            assert self._responses
            return self._responses.content
        if part == "copies":
            return self._copies_content
        return self._part_contents["train" if part == "out-of-fold" else part]

    @cached_property
    def _copies_content(self) -> str:
        """A digest of everything that the copies follow from, so that they need not be made."""
        assert self.is_written("copies")
        texts = self.manifests[REWORDINGS_KEY].content if self.recipe.writing else ""
        return copies_content(self.recipe, self.training_task, self._part_contents, texts)

    @cached_property
    def _part_contents(self) -> dict[str, str]:
        section = self.recipe.train

        def make() -> dict[str, str]:
            digests = {
                part: splits.content_digest(self.training.part(part))
                for part in ("train", "validation")
            }
            unlabelled = self.training.unlabelled
            return digests | {"unlabelled": splits.content_digest(unlabelled) if unlabelled else ""}

        return self._contents.of_training(section, self.training_task, make)

    @cached_property
    def text_content(self) -> str | None:
        """A digest of the text on which tokenizers are trained, if the training part has others."""
        section = self.recipe.train
        roles: list[Role] = ["teacher", "student"] if self.recipe.teacher else ["student"]
        trained = any(self.model_section(role).plugin.needs_text for role in roles)
        if not trained or self.training_task == section.task:
            return None

        def make() -> dict[str, str]:
            return {"all": splits.content_digest(self._text())}

        what = f"text of the tokenizers{of_first(section)}"
        return self._contents.of_split(what, section.task, "train", make)["all"]

    @once_per_run
    def evaluation_content(self, name: str) -> str:
        """Return a digest of an evaluation's samples."""
        if self.recipe.is_validation(name):
            return self.part_content("validation")
        if name in self._shifts:
            content = self.evaluation_content(unshifted(name))
            task = self.evaluation_task(name)
            return shifted_content(self._shifts[name], task, content, self.recipe.seed)
        section = self._evaluation(name)

        def make() -> dict[str, str]:
            return {"all": splits.content_digest(self.evaluation_samples(name))}

        what = f"evaluation {name}{of_first(section)}"
        return self._contents.of_split(what, self.evaluation_task(name), section.split, make)["all"]

    # Models: how they are trained, which checkpoint, and what identifies it.

    def training_settings(self, unit: Unit) -> Training:
        """Return the training settings of the model that a unit trains."""
        if unit.arm:
            return training_of(self.recipe.student, self.recipe.arms[unit.arm])
        assert self.recipe.teacher and self.recipe.teacher.finetune
        return self.recipe.teacher.finetune

    def seed_of(self, unit: Unit) -> int:
        """Return the seed of the model that a unit trains."""
        if unit.role == "student":
            return self.recipe.seed if unit.model.seed is None else unit.model.seed
        return self.teacher_seed if unit.teacher_seed is None else unit.teacher_seed

    @property
    def teacher_seed(self) -> int:
        """The seed of the first teacher."""
        teacher = self.recipe.teacher
        return teacher.seeds[0] if teacher and teacher.seeds else self.recipe.seed

    def model_section(self, role: Role) -> ModelSection:
        return self.tokenizers.section(role)

    def reference(self, role: Role) -> ModelRef:
        section = self.model_section(role)
        return ModelRef(section.checkpoint, section.revision)

    def checkpoint_identity(self, role: Role) -> str:
        """Return what identifies a checkpoint: a folder's content, or a hub id and revision."""
        return self._contents.of_checkpoint(role, self.model_section(role))
