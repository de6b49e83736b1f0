"""Every use of a plugin: arguments are read-only, results are checked, exceptions are explained.

The parts of a recipe that name plugins build them here, so no stage can forget a check.
Recalibrators, selectors, annotators and objectives have modules of their own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any, cast

from firstcli import plugins
from firstcli.api import (
    Adaptation,
    Augmenter,
    CandidateQuery,
    ExplanationForm,
    FloatArray,
    ModelFamily,
    PluginOptions,
    RemoteScorer,
    RemoteText,
    RemoteUsage,
    ResponseTokens,
    Sample,
    Split,
    Task,
    TaskUsage,
    TextQuery,
    TokenQuery,
    TopTokens,
    TrainingPrompt,
    UserError,
    WritingSettings,
)
from firstcli.plugins.facts import writing_problem
from firstcli.plugins.registry import Plugin, reason
from firstcli.plugins.samples import checked_samples, copy_problem


@contextmanager
def explained(
    plugin: Plugin, doing: str, *, passing: type[Exception] = MemoryError
) -> Iterator[None]:
    """Turn an exception of a third-party plugin into one sentence; a built-in's is a bug.

    Args:
        plugin: the plugin.
        doing: what it is used for, after "failed in".
        passing: exceptions that mean something else than a mistake in the plugin.
    """
    try:
        yield
    except (UserError, MemoryError, passing):
        raise
    except (Exception, SystemExit) as error:
        if plugin.is_built_in:
            raise
        text = f"{plugin.title} failed in {doing}: {reason(plugin, error)}; correct the plugin"
        raise UserError(text) from error


def validated(plugin: Plugin, options: object) -> PluginOptions:
    """Return a plugin's options, validated by its model.

    Raises:
        ValidationError: they are invalid.
        UserError: the model has a mistake.
    """
    from pydantic import ValidationError

    with explained(plugin, "its options", passing=ValidationError):
        return cast(
            PluginOptions, plugins.load(plugin.kind, plugin.name).Options.model_validate(options)
        )


def built(plugin: Plugin, options: PluginOptions) -> Any:
    """Return a new object of a plugin's class."""
    with explained(plugin, "`__init__`"):
        return plugins.load(plugin.kind, plugin.name)(options)


class CheckedTask(Task[Any]):
    """A task whose splits and samples are checked."""

    def __init__(self, plugin: Plugin, task: Task[Any]) -> None:
        super().__init__(task.options)
        self._plugin, self._task = plugin, task

    @property
    def has_candidates(self) -> bool:  # type: ignore[override]
        return self._task.has_candidates

    @property
    def has_teacher_prompts(self) -> bool:
        with explained(self._plugin, "`has_teacher_prompts`"):
            return bool(self._task.has_teacher_prompts)

    @property
    def splits(self) -> tuple[str, ...]:
        with explained(self._plugin, "`splits`"):
            splits = tuple(self._task.splits)
        if not all(isinstance(split, str) for split in splits):
            raise UserError(f"{self._plugin.title}: `splits` returned {splits}, expected names")
        return splits

    def load(self, split: str) -> Split:
        # A lost connection is no mistake of the plugin, and is reported by the caller.
        with explained(self._plugin, f"`load('{split}')`", passing=OSError):
            loaded = self._task.load(split)
        if not isinstance(loaded, Split):
            found = type(loaded).__name__
            raise UserError(f"{self._plugin.title}: `load` returned a {found}, expected a Split")
        where = f"{self._plugin.title}: split '{split}'"
        return replace(loaded, samples=checked_samples(self._each(loaded, split), where))

    def _each(self, loaded: Split, split: str) -> Iterator[object]:
        with explained(self._plugin, f"`load('{split}')`", passing=OSError):
            apart = self.has_teacher_prompts
            for sample in loaded.samples:
                if not apart and getattr(sample, "teacher_prompt", None) is not None:
                    raise UserError(
                        f"{self._plugin.title}: a sample of split '{split}' has a teacher_prompt, "
                        "but `has_teacher_prompts` is false; correct the plugin"
                    )
                yield sample

    def sources(self, split: str) -> Sequence[Path] | None:
        with explained(self._plugin, "`sources`"):
            files = self._task.sources(split)
            return None if files is None else [Path(file) for file in files]

    def unlabelled(self, path: Path | Sequence[Path]) -> CheckedTask | None:
        with explained(self._plugin, "`unlabelled`"):
            task = self._task.unlabelled(path)
        return None if task is None else CheckedTask(self._plugin, task)

    def explanations(self) -> ExplanationForm | None:
        with explained(self._plugin, "`explanations`"):
            form = self._task.explanations()
        if form is not None and not isinstance(form, ExplanationForm):
            found = type(form).__name__
            raise UserError(
                f"{self._plugin.title}: `explanations` returned a {found}, expected an "
                "ExplanationForm or None; correct the plugin"
            )
        return form

    def usage(self) -> TaskUsage | None:
        with explained(self._plugin, "`usage`"):
            usage = self._task.usage()
        if not (usage is None or isinstance(usage, TaskUsage)):
            found = type(usage).__name__
            raise UserError(
                f"{self._plugin.title}: `usage` returned a {found}, expected a TaskUsage or None"
            )
        return usage

    def __getattr__(self, name: str) -> Any:
        if name in ("repair", "check_steps", "true_answer"):  # of a task that knows all steps
            return getattr(self._task, name)
        raise AttributeError(name)

    @property
    def adapts(self) -> bool:
        """Whether its options may depend on the tokenizers or on the training task."""
        return type(self._task).adapted is not Task.adapted

    def adapted(self, tokens: ResponseTokens, training: Any) -> Adaptation[Any]:
        with explained(self._plugin, "`adapted`"):
            adaptation = self._task.adapted(tokens, training)
        if not isinstance(adaptation, Adaptation):
            found = type(adaptation).__name__
            raise UserError(
                f"{self._plugin.title}: `adapted` returned a {found}, expected an Adaptation"
            )
        return adaptation


class CheckedAugmenter:
    """An augmenter whose every copy is checked."""

    def __init__(self, plugin: Plugin, augmenter: Augmenter[Any]) -> None:
        self._plugin, self._augmenter = plugin, augmenter

    @property
    def copies(self) -> int:
        """Number of copies of each sample."""
        with explained(self._plugin, "`copies`"):
            count = self._augmenter.copies
        if type(count) is not int or count < 1:
            raise UserError(
                f"{self._plugin.title}: `copies` is {count!r}, expected a whole number above 0; "
                "correct the plugin"
            )
        return count

    def read(self, prompts: Iterable[TrainingPrompt]) -> None:
        """Read all training prompts."""
        with explained(self._plugin, "`read`"):
            self._augmenter.read(prompts)

    @property
    def writing(self) -> WritingSettings | None:
        """How the teacher writes text for the copies, if they need some."""
        with explained(self._plugin, "`writing`"):
            writing = self._augmenter.writing
        if writing is not None and (problem := writing_problem(writing)):
            raise UserError(f"{self._plugin.title}: `writing` {problem}; correct the plugin")
        return writing

    def request(self, prompt: TrainingPrompt, number: int) -> str | None:
        """Return what the teacher continues for a copy, or None if there is no copy."""
        with explained(self._plugin, "`request`"):
            request = self._augmenter.request(prompt, number)
        if request is not None and not (isinstance(request, str) and request.strip()):
            raise UserError(
                f"{self._plugin.title}: `request` returned {request!r}, expected text or None; "
                "correct the plugin"
            )
        return request

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        """Return a copy of a sample, or None if there is none."""
        with explained(self._plugin, "`copy`"):
            copy = self._augmenter.copy(prompt, number, random)
        return self._checked(copy, prompt)

    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        """Return a copy, given what the teacher wrote, or None if it cannot be used.

        Args:
            prompt: the sample, and what of its prompt is free text.
            number: the number of the copy.
            text: what the teacher wrote.
            finished: whether it ended the text itself.
        """
        with explained(self._plugin, "`written`"):
            copy = self._augmenter.written(prompt, number, text, finished=finished)
        return self._checked(copy, prompt)

    def _checked(self, copy: Sample | None, prompt: TrainingPrompt) -> Sample | None:
        if copy is not None and (
            problem := copy_problem(copy, prompt.sample, by_letter=prompt.by_letter)
        ):
            raise UserError(
                f"{self._plugin.title}: the copy of sample '{prompt.sample.id}' {problem}; correct "
                "the plugin"
            )
        return copy


class _ExplainedFamily:
    """A third-party family whose exceptions are explained."""

    def __init__(self, plugin: Plugin, family: ModelFamily[Any]) -> None:
        self._plugin, self._family = plugin, family

    def __getattr__(self, name: str) -> Any:
        with explained(self._plugin, f"`{name}`"):
            value = getattr(self._family, name)
        return self._explained(name, value) if callable(value) else value

    def _explained(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with explained(self._plugin, f"`{name}`"):
                result = method(*args, **kwargs)
            if isinstance(result, RemoteScorer):
                return _ExplainedScorer(self._plugin, result)
            return result

        return call


class _ExplainedScorer(RemoteScorer):
    """A third-party scorer whose exceptions are explained."""

    def __init__(self, plugin: Plugin, scorer: RemoteScorer) -> None:
        self._plugin, self._scorer = plugin, scorer

    def check(self, top_k: int) -> None:
        with explained(self._plugin, "`check`"):
            self._scorer.check(top_k)

    def top_k(self, queries: Sequence[TokenQuery], top_k: int) -> Iterator[tuple[int, TopTokens]]:
        with explained(self._plugin, "`top_k`"):
            yield from self._scorer.top_k(queries, top_k)

    def candidates(self, queries: Sequence[CandidateQuery]) -> Iterator[tuple[int, FloatArray]]:
        with explained(self._plugin, "`candidates`"):
            yield from self._scorer.candidates(queries)

    def texts(self, queries: Sequence[TextQuery]) -> Iterator[tuple[int, RemoteText]]:
        with explained(self._plugin, "`texts`"):
            yield from self._scorer.texts(queries)

    def estimate(self, queries: Sequence[TokenQuery]) -> RemoteUsage:
        with explained(self._plugin, "`estimate`"):
            return self._scorer.estimate(queries)

    @property
    def used(self) -> RemoteUsage:
        with explained(self._plugin, "`used`"):
            return self._scorer.used

    def close(self) -> None:
        with explained(self._plugin, "`close`"):
            self._scorer.close()


def task(name: str, options: PluginOptions) -> CheckedTask:
    """Return a task with its options."""
    plugin = plugins.find("tasks", name)
    return CheckedTask(plugin, built(plugin, options))


def augmenter(name: str, options: PluginOptions) -> CheckedAugmenter:
    """Return an augmenter with its options."""
    plugin = plugins.find("augmenters", name)
    return CheckedAugmenter(plugin, built(plugin, options))


def family(name: str, options: PluginOptions) -> ModelFamily[Any]:
    """Return a model family with its options."""
    plugin = plugins.find("families", name)
    own: ModelFamily[Any] = built(plugin, options)
    return own if plugin.is_built_in else cast(ModelFamily[Any], _ExplainedFamily(plugin, own))
