"""One run of one recipe: its folder, its data, and what has been loaded so far."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial, wraps
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import yaml

from firstcli import __version__
from firstcli.api import ModelRef, Sample, Task
from firstcli.data import splits
from firstcli.data.copies import WrittenText, copies_of, requests_of
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.plugins.calls import CheckedAugmenter
from firstcli.recipe.references import ModelSection, TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.recipe.sections import TEST, Evaluation, Train, Training, Unlabelled, training_of
from firstcli.runtime import distributed
from firstcli.runtime.console import Console
from firstcli.runtime.files import suppress_read_only, write_json
from firstcli.runtime.redaction import redacted, without_folders
from firstcli.workspace.artifacts import Digests, Manifest, fingerprint
from firstcli.workspace.responses import FILE_NAME, read, request_digest, written_samples
from firstcli.workspace.tokenizers import Tokenizers
from firstcli.workspace.units import (
    RESPONSES_KEY,
    REWORDINGS,
    REWORDINGS_KEY,
    Part,
    Role,
    Unit,
    responses_path,
)

if TYPE_CHECKING:
    import numpy.typing as npt

P = ParamSpec("P")
T = TypeVar("T")

PROGRESS_SECONDS = 15
"""Seconds of reading between two progress messages."""
MOST_ENTRIES = 1000
"""Remembered checks that are kept; the oldest are dropped first."""
NOT_REMEMBERED = "not remembered"
"""The result of a check that could not be made yet."""


TRAINING_TASK = "train.task"
"""The recipe's key of the training task, for messages."""
UNLABELLED_KEY = "train.unlabelled"
"""The recipe's key of unlabelled samples, for messages."""
UNLABELLED_ID = "unlabelled/"
"""Beginning of the ids of samples from `train.unlabelled.path`, whose file has its own ids."""


@dataclass(frozen=True, slots=True)
class TrainingSplit:
    """The training data: no model trains on `validation`, and only students on `unlabelled`."""

    train: Sequence[Sample]
    validation: Sequence[Sample]
    unlabelled: Sequence[Sample] = ()

    def part(self, part: Part) -> Sequence[Sample]:
        parts = {"validation": self.validation, "unlabelled": self.unlabelled}
        return parts.get(part, self.train)


def once_per_run(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Call a function once for a run and its other arguments, then return the same result."""

    @wraps(function)
    def remembered(run: Run, /, *args: P.args, **kwargs: P.kwargs) -> T:
        key = (function, args, tuple(sorted(kwargs.items())))
        if key not in run.loaded:
            run.loaded[key] = function(run, *args, **kwargs)
        return cast(T, run.loaded[key])

    return remembered


class Memory:
    """Results of checks in the run folder, each under a digest of everything that it depends on.

    Checks need tokenizers, data and sometimes a model's architecture. As long as none of these
    change, their results are read from here, and an up-to-date run is shown without PyTorch.
    """

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._console = console
        self._changed = False
        self._entries: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            if isinstance(entries := json.loads(path.read_text("utf-8")), list):
                self._entries = dict(entries)

    def recall(
        self,
        what: str,
        content: Mapping[str, str],
        make: Callable[[], T],
        *,
        anew: bool = False,
        permanent: bool = False,
    ) -> T:
        """Return a remembered result together with its warnings, or make and remember it.

        Args:
            what: name of the result.
            content: everything that the result depends on.
            make: computes the result, a JSON value; `NOT_REMEMBERED` is returned and forgotten.
            anew: compute the result even if it is remembered.
            permanent: keep the result however many others there are.

        Raises:
            UserError: `make` raised it; nothing is remembered then.
        """
        key = fingerprint({**content, "what": what})
        if key not in self._entries or anew:
            with self._console.collect_warnings() as warnings:
                value = make()
            if value == NOT_REMEMBERED:
                return value
            entry = {"what": what, "value": value, "warnings": warnings, "permanent": permanent}
            self._changed |= self._entries.get(key) != entry
            self._entries[key] = entry
            return value
        for warning in self._entries[key]["warnings"]:
            self._console.warn(warning)
        remembered: T = self._entries[key]["value"]
        return remembered

    def save(self) -> None:
        """Write what was added, if the run folder exists and can be written."""
        if self._changed and self._path.parent.is_dir():
            old = list(self._entries.items())[:-MOST_ENTRIES]
            dropped = {key for key, entry in old if not entry.get("permanent")}
            kept = [item for item in self._entries.items() if item[0] not in dropped]
            with suppress_read_only():
                write_json(self._path, kept)  # a list, because `write_json` sorts keys
            self._changed = False


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
        self.manifests: dict[str, Manifest] = {}
        """Manifests of the units that are known to be up to date, by key."""
        self.loaded: dict[object, object] = {}
        """Results of `once_per_run` functions."""
        self.tokenizers = Tokenizers(recipe, console, self._text)
        self._samples: dict[str, Samples] = {}
        self._caches: list[Callable[[], None]] = []
        self._announced = False

    def write_cache(self, write: Callable[[], None]) -> None:
        """Write a file into the run folder that only saves time: now, or once the folder exists."""
        if not self.folder.is_dir():
            self._caches.append(write)
        elif distributed.is_first():
            with suppress_read_only():
                write()

    @property
    def has_caches(self) -> bool:
        """Whether `write_cache` waits for the run folder."""
        return bool(self._caches)

    def save_memory(self) -> None:
        """Write digests, remembered checks and other caches, if the run folder exists."""
        self.digests.save()
        self.memory.save()
        if self.folder.is_dir():
            caches, self._caches = self._caches, []
            for write in caches:
                self.write_cache(write)

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
        return self._adapted(self.recipe.train.task, TRAINING_TASK, None)

    @once_per_run
    def evaluation_task(self, name: str) -> TaskRef:
        """Return the task of an evaluation with adapted options."""
        ref, training = self._evaluation(name).task, self.recipe.train.task
        if ref == training:
            return self.training_task
        known = self.training_task if ref.name == training.name else None
        return self._adapted(ref, self.task_key(name), known)[0]

    def stated_task(self, evaluation: str = "") -> TaskRef:
        """Return the task of an evaluation as the recipe states it; by default that of training."""
        if not evaluation or self.recipe.is_validation(evaluation):
            return self.recipe.train.task
        return self._evaluation(evaluation).task

    def task_key(self, evaluation: str = "") -> str:
        """Return the recipe's key of the task that `stated_task` returns, for messages."""
        is_own = self.stated_task(evaluation) != self.recipe.train.task
        return f"evaluate '{evaluation}'.task" if is_own else TRAINING_TASK

    def _adapted(self, ref: TaskRef, where: str, training: TaskRef | None) -> tuple[TaskRef, str]:
        """Return a task with the options that `Task.adapted` returns, and its note; remembered.

        Args:
            ref: the task, as the recipe states it.
            where: its key in the recipe, for messages.
            training: the adapted training task, if it uses the same plugin.
        """
        task = ref.build()
        if not task.adapts:
            return ref, ""
        tokens = partial(self.tokenizers.continuations, ref, where)

        def make() -> dict[str, Any]:
            self.announce_libraries()
            options = None if training is None else training.options
            adaptation = task.adapted(tokens, options)
            given = adaptation.options.model_dump(mode="json", exclude_unset=True)
            return {"options": given, "note": adaptation.note}

        source = self._source(ref, "train")
        if source is None:
            result = make()
        else:
            source["models"] = self._tokenizers_source()
            source["training"] = "" if training is None else _as_json(training.effective)
            if ref.chat:
                source["chat"] = _as_json([ref.chat, ref.system])
            result = self.memory.recall("adapted options", source, make)
        return ref.with_options(result["options"]), result["note"]

    def _tokenizers_source(self) -> str:
        """Return everything that the tokenizers depend on."""
        from importlib.metadata import version  # takes a tenth of the time that help takes

        roles: list[Role] = ["teacher", "student"] if self.recipe.teacher else ["student"]
        parts: list[object] = [self.recipe.student.eos]
        for role in roles:
            section = self.model_section(role)
            parts += [section.family, section.effective, section.identity, section.source]
            if section.chat_template is not None:
                parts.append(self.digests.of_file(section.chat_template))
            if section.checkpoint is not None:
                parts.append(self.checkpoint_identity(role))
            elif section.plugin.needs_text:
                parts += [self.recipe.train.limit, self._source(self.recipe.train.task, "train")]
        parts += [version(name) for name in ("transformers", "tokenizers")]
        return _as_json(parts)

    def _text(self) -> Iterator[Sample]:
        """Return the samples on whose text tokenizers are trained."""
        split = self._training_split(self.recipe.train.task)
        return chain(split.train, split.validation)

    # Data: the samples of the tasks, with ids.

    def _samples_of(self, ref: TaskRef, split: str, where: str, limit: int | None) -> Samples:
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
        key = _as_json([ref.name, ref.effective, split, limit])
        if key not in self._samples:
            task = ref.build()
            if split not in task.splits:
                advice = f"; {ref.advice_on_test_split}name one of these with `split:`"
                raise UserError(
                    f"{where}: task '{ref.name}' has no split '{split}'"
                    f"{did_you_mean(split, task.splits)}; it has {', '.join(task.splits) or 'none'}"
                    f"{advice if split == TEST else ''}"
                )
            self._samples[key] = self._read(task, ref.name, split, where, limit)
        return self._samples[key]

    def _read(
        self, task: Task[Any], name: str, split: str, where: str, limit: int | None
    ) -> Samples:
        """Read a split of a task; see `_samples_of`."""
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

    @cached_property
    def training(self) -> TrainingSplit:
        """The training data: the labelled rows cut by the hash of each prompt, and the others."""
        cut = self._training_split(self.training_task)
        if not self.recipe.train.task.plugin.has_candidates:
            return cut
        return replace(cut, unlabelled=self._unlabelled(self.training_task, cut))

    def samples_of(self, part: Part) -> Sequence[Sample]:
        """Return the samples of a part; those that the teacher writes exist once it has."""
        if part == "copies":
            return self.copies if self.is_written(part) else ()
        return self._written if part == "written" else self.training.part(part)

    @cached_property
    def copies(self) -> Sequence[Sample]:
        """The copies of the training samples; none if nothing learns them.

        Left out are those whose prompt is also held out, so that no model is trained on it.
        """
        if self.recipe.augmentation is None:
            return ()
        if not self.training.train:
            raise UserError(
                "train.augment: no row of the training split has a response, so there is nothing "
                "to make copies of; leave it out"
            )
        augmenters, usage = self._augmenters, self.training_task.build().usage()
        texts = read(self.folder / REWORDINGS / FILE_NAME)

        def written(request: Sample) -> WrittenText | None:
            response = texts.get(request_digest(request))
            if response is None:
                return None
            return WrittenText(response.text, response.finished)

        with self.console.status("making copies of the training samples"):
            made = copies_of(self.training.train, usage, augmenters, self.recipe.seed, written)
            copies = Samples(made, self.folder)
        held_out = splits.among(copies, splits.prompt_digests(self.training.validation))
        if not copies or held_out.all():
            raise UserError(
                "train.augment: the augmenters make no copy of any training sample; leave it out, "
                "or give others"
            )
        return Selected(copies, np.flatnonzero(~held_out))

    @property
    def _augmenters(self) -> list[CheckedAugmenter]:
        section = self.recipe.augmentation
        return [ref.build() for ref in section.augmenters] if section else []

    @cached_property
    def rewording_requests(self) -> Sequence[Sample]:
        """What the teacher continues for copies: prompts with the ids of the copies."""
        usage = self.training_task.build().usage()
        return Samples(requests_of(self.training.train, usage, self._augmenters), self.folder)

    def _training_split(self, ref: TaskRef) -> TrainingSplit:
        """Cut the labelled samples of the training split."""
        section = self.recipe.train
        samples = self._samples_of(ref, "train", "train.task", section.limit)
        labelled: Sequence[Sample] = samples
        if samples.unanswered.any():
            labelled = Selected(samples, np.flatnonzero(~samples.unanswered))
            if self.recipe.knowledge.responses == "data" and not ref.plugin.has_candidates:
                self._warn_of_prompts(int(samples.unanswered.sum()))
        if not labelled and self.recipe.knowledge.responses == "data":
            raise UserError(f"train.task: {_nothing_labelled(ref)}")
        train, validation = splits.cut_validation(labelled, section.validation)
        if labelled and not train:
            raise UserError(
                f"train.validation: {section.validation} of {len(labelled)} rows leaves none to "
                "train on; lower it"
            )
        return TrainingSplit(train, validation)

    @once_per_run
    def _warn_of_prompts(self, count: int) -> None:
        self.console.warn(
            f"train.task: {count} rows of split 'train' are left out: empty response (with "
            "`knowledge.responses: teacher`, the teacher writes one)"
        )

    @cached_property
    def prompts(self) -> Sequence[Sample]:
        """The samples whose responses the teacher writes, without those that they have.

        Left out are those whose prompt also has a response in the data: it is learned with that
        one, or held out so that no model is trained on it.

        Raises:
            UserError: the samples are conversations.
        """
        section, always = self.recipe.train, self.recipe.knowledge.responses == "teacher-always"
        samples = self._samples_of(self.training_task, "train", "train.task", section.limit)
        if samples[0].messages:
            raise UserError(
                "knowledge.responses: the samples are conversations, whose turns the data has "
                "written; leave it out, or give prompts without a response"
            )
        train = [] if always else self.training.train
        known = splits.prompt_digests(chain(train, self.training.validation))
        without = Selected(samples, np.flatnonzero(samples.unanswered))
        taken = splits.among(without, known)
        if taken.any():
            self.console.warn(
                f"train.task: {taken.sum()} of {len(without)} prompts without a response are left "
                "out, because they also occur with one"
            )
        rewritten = self.training.train if always else []
        chosen = chain(rewritten, Selected(without, np.flatnonzero(~taken)))
        return Samples((replace(sample, response="") for sample in chosen), self.folder)

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

    def _unlabelled(self, ref: TaskRef, labelled: TrainingSplit) -> Sequence[Sample]:
        """Return the unlabelled samples: those of the training split, then those of the files.

        Left out are those whose prompt also has a label: it is learned with its label, or held out
        so that no model is trained on it.

        Args:
            ref: the training task.
            labelled: the samples with a label.
        """
        section, limit = self.recipe.train.unlabelled or Unlabelled(), self.recipe.train.limit
        samples = self._samples_of(ref, "train", "train.task", limit)
        parts: list[Iterable[Sample]] = [Selected(samples, np.flatnonzero(samples.unanswered))]
        if section.path is not None and section.limit != 0:
            parts.append(self._without_labels(ref, section.path, section.limit))
        found = Samples(islice(chain(*parts), section.limit), self.folder)
        if not found:
            return ()
        if not self._has_teacher_arm:
            self.console.warn(
                f"{UNLABELLED_KEY}: {len(found)} rows without a label are not used, because no arm "
                "learns from a teacher"
            )
            return ()
        with_label = splits.prompt_digests(chain(labelled.train, labelled.validation))
        known = splits.among(found, with_label)
        if known.any():
            self.console.warn(
                f"{UNLABELLED_KEY}: {known.sum()} of {len(found)} unlabelled rows are left out, "
                "because their prompts also occur with a label"
            )
        unlabelled = Selected(found, np.flatnonzero(~known))
        ids = {sample.id for sample in unlabelled if str(sample.id).startswith(UNLABELLED_ID)}
        if ids and (repeated := [s.id for s in samples if s.id in ids]):
            raise UserError(
                f"train.task: sample ids such as {shortened([str(id) for id in repeated], 3)} are "
                f"also given to rows of {UNLABELLED_KEY}.path; rename them"
            )
        return unlabelled

    def _without_labels(
        self, ref: TaskRef, path: Path | Sequence[Path], limit: int | None
    ) -> Iterator[Sample]:
        """Yield the samples of unlabelled files, with ids that the training split does not use."""
        where = f"{UNLABELLED_KEY}.path"
        for sample in self._read(ref.build_unlabelled(path), ref.name, "train", where, limit):
            yield replace(
                sample, id=f"{UNLABELLED_ID}{sample.id}", response="", answer=None, truth=None
            )

    @property
    def _has_teacher_arm(self) -> bool:
        return any(arm.learn == "knowledge" for arm in self.recipe.arms.values())

    def state_data(self) -> None:
        """State in the recipe what the data decides about the units, which follow from it alone."""
        self._state_unlabelled()
        self._state_responses()

    def _state_responses(self) -> None:
        """State that the teacher writes all responses if the data has none."""
        knowledge = self.recipe.knowledge
        if knowledge.responses != "teacher":
            return
        with suppress(UserError):  # a mistake in the data, which the checks report
            if not self.training.train:
                stated = knowledge.model_copy(update={"responses": "teacher-always"})
                self.recipe = self.recipe.model_copy(update={"knowledge": stated})

    def _state_unlabelled(self) -> None:
        """State that the training split has rows without a label, if it has some.

        What students learn of such rows is a unit.
        """
        train = self.recipe.train
        usable = self._has_teacher_arm and train.task.plugin.has_candidates
        if train.unlabelled or not usable:
            return
        with suppress(UserError):  # a mistake in the data, which the checks report
            if self.part_content("unlabelled"):
                stated = train.model_copy(update={"unlabelled": Unlabelled()})
                self.recipe = self.recipe.model_copy(update={"train": stated})

    def _evaluation(self, name: str) -> Evaluation:
        return next(section for section in self.recipe.evaluate if section.name == name)

    @cached_property
    def _validation_questions(self) -> Sequence[Sample]:
        """The validation samples that have a right candidate."""
        questions = [s for s in self.training.validation if s.candidates and s.answer is not None]
        if not questions:
            raise UserError(
                f"train.validation: {self.recipe.train.validation} of the training split leaves no "
                "question for metrics.target_accuracy and metrics.coverage; raise it"
            )
        return questions

    def evaluation_samples(self, name: str) -> Sequence[Sample]:
        """Return the questions of an evaluation; those without a label are left out.

        If no question has a label, none is left out.
        """
        if self.recipe.is_validation(name):
            return self._validation_questions
        section = self._evaluation(name)
        where = f"evaluate '{name}'"
        task = self.evaluation_task(name)
        samples = self._samples_of(task, section.split, where, section.limit)
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

    def overlap(self, name: str) -> int:
        """Count the prompts of an evaluation that also occur in the training split."""
        return splits.overlap(self._trained_prompts, self.evaluation_samples(name))

    def unlabelled_overlap(self, name: str) -> int:
        """Count the prompts of an evaluation that also occur among the unlabelled samples."""
        return splits.overlap(self._unlabelled_prompts, self.evaluation_samples(name))

    def copies_overlap(self, name: str) -> int:
        """Count the prompts of an evaluation that also occur among the copies."""
        if not self.is_written("copies"):
            return 0
        return splits.overlap(self._copied_prompts, self.evaluation_samples(name))

    @cached_property
    def _copied_prompts(self) -> npt.NDArray[np.uint64]:
        return splits.prompt_digests(self.copies)

    @cached_property
    def _trained_prompts(self) -> npt.NDArray[np.uint64]:
        """Digests of all prompts of the training split, with which each evaluation is compared."""
        return splits.prompt_digests(chain(self.training.train, self.training.validation))

    @cached_property
    def _unlabelled_prompts(self) -> npt.NDArray[np.uint64]:
        return splits.prompt_digests(self.training.unlabelled)

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
        if (section := self.recipe.augmentation) is None:
            return ""
        assert self.is_written("copies")
        makers = [[ref.name, ref.effective, ref.identity, ref.source] for ref in section.augmenters]
        usage = self.training_task.build().usage()
        depends_on = {
            "augmenters": _as_json(makers),
            "usage": "" if usage is None else usage.model_dump_json(),
            "seed": str(self.recipe.seed),
            "rewordings": self.manifests[REWORDINGS_KEY].content if self.recipe.writing else "",
            **{part: self._part_contents[part] for part in ("train", "validation")},
        }
        return fingerprint(depends_on)

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

        what = f"training data, {section.validation} of it for validation{_of_first(section)}"
        ref = self.training_task
        source = self._source(ref, "train")
        if section.unlabelled:
            what += f", {section.unlabelled.model_dump_json()}"
            if (path := section.unlabelled.path) is not None:
                more = self._source(ref, "train", ref.build_unlabelled(path))
                if source is not None and more is not None:
                    source |= {f"unlabelled {key}": value for key, value in more.items()}
                else:
                    source = None
        return self._remembered(what, source, make)

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

        what = f"text of the tokenizers{_of_first(section)}"
        return self._content(what, section.task, "train", make)["all"]

    @once_per_run
    def evaluation_content(self, name: str) -> str:
        """Return a digest of an evaluation's samples."""
        if self.recipe.is_validation(name):
            return self.part_content("validation")
        section = self._evaluation(name)

        def make() -> dict[str, str]:
            return {"all": splits.content_digest(self.evaluation_samples(name))}

        what = f"evaluation {name}{_of_first(section)}"
        return self._content(what, self.evaluation_task(name), section.split, make)["all"]

    def _content(
        self, what: str, ref: TaskRef, split: str, make: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Return digests of a split, remembered as long as its source does not change."""
        return self._remembered(what, self._source(ref, split), make)

    def _remembered(
        self, what: str, source: dict[str, str] | None, make: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Return digests of data, remembered as long as their sources do not change."""
        if source is None:
            return make()
        return self.memory.recall(f"content of the {what}", source, make)

    def _source(
        self, ref: TaskRef, split: str, task: Task[Any] | None = None
    ) -> dict[str, str] | None:
        """Return what identifies a split's content; None if only reading the split can tell.

        Args:
            ref: the task.
            split: the split.
            task: the task over other files, if not over its own.
        """
        task = task or ref.build()
        files = task.sources(split) if split in task.splits else None
        if files is None or not all(file.is_file() for file in files):
            return None
        return {
            "task": " ".join((ref.identity, ref.source)).strip(),
            "options": _as_json(ref.effective),
            "split": split,
            "files": ", ".join(self.digests.of_file(file) for file in files),
            "firstcli": __version__,
        }

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
        ref = self.reference(role)
        if ref.folder is None:
            return f"{ref.checkpoint}@{ref.revision}"
        if not ref.folder.is_dir():
            raise UserError(f"{role}.model.checkpoint: {ref.folder} is not a folder")
        return self.digests.of_checkpoint(ref.folder)


def _nothing_labelled(ref: TaskRef) -> str:
    if ref.plugin.has_candidates:
        return (
            "no row of the training split has a label; label some: recalibrators are fitted on "
            "them, and a teacher is fine-tuned on them"
        )
    return (
        "no row of the training split has a response; give some, or let the teacher write them "
        "with `knowledge.responses: teacher`"
    )


def _as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _of_first(section: Train | Evaluation) -> str:
    return f", the first {section.limit}" if section.limit else ""


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
