"""Several tasks as one: its samples are those of all tasks, and each belongs to its task's domain.

`mixture` is for tasks with candidates and `mixture-texts` for those without. The section
`train.mixture` of a recipe makes one of them the training task; on its own, it mixes the tasks as
they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator

from firstcli.api import (
    Adaptation,
    ExplanationForm,
    PluginOptions,
    ResponseTokens,
    Sample,
    Split,
    Task,
    TaskUsage,
)
from firstcli.errors import UserError
from firstcli.tasks.wrapped import InnerTask, sources_of

_NAME = re.compile(r"(?!unlabelled$|copy\d+$)[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A domain's name, with which the ids of its samples begin. Other ids begin with the two words."""


class MixtureOptions(PluginOptions):
    """The tasks by the names of their domains."""

    tasks: dict[str, InnerTask] = Field(
        min_length=2, description="two or more tasks, by the names of their domains"
    )

    @field_validator("tasks")
    @classmethod
    def _can_be_mixed(cls, tasks: dict[str, InnerTask]) -> dict[str, InnerTask]:
        if wrong := [name for name in tasks if not _NAME.fullmatch(name)]:
            raise ValueError(
                f"found '{wrong[0]}', expected names of letters, digits, '.', '_' and '-', other "
                "than 'unlabelled' and 'copy1'"
            )
        (first, one), *others = tasks.items()
        for name, other in others:
            if one.has_candidates != other.has_candidates:
                with_them, without = (first, name) if one.has_candidates else (name, first)
                raise ValueError(
                    f"'{with_them}' has candidates, and '{without}' has none; mix tasks of one kind"
                )
        return tasks


class MixtureTask(Task[MixtureOptions]):
    """The questions of several tasks with candidates; the task is the question's group."""

    Options = MixtureOptions

    def __init__(self, options: MixtureOptions) -> None:
        super().__init__(options)
        (name, task) = next(iter(options.tasks.items()))
        if task.has_candidates != self.has_candidates:
            own, other, has = "mixture", "mixture-texts", "has no"
            if task.has_candidates:
                own, other, has = other, own, "has"
            raise UserError(f"task '{own}': '{name}' {has} candidates; use the task '{other}'")

    @property
    def has_teacher_prompts(self) -> bool:
        return any(task.build().has_teacher_prompts for task in self.options.tasks.values())

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that all tasks have."""
        first, *others = (task.build().splits for task in self.options.tasks.values())
        return tuple(split for split in first if all(split in other for other in others))

    def sources(self, split: str) -> Sequence[Path] | None:
        return sources_of(self.options.tasks.values(), split)

    def explanations(self) -> ExplanationForm | None:
        """Return the form that all tasks share.

        Raises:
            UserError: they differ.
        """
        forms = {name: task.build().explanations() for name, task in self.options.tasks.items()}
        (first, form), *others = forms.items()
        for name, other in others:
            if other != form:
                raise UserError(
                    f"tasks of a mixture: '{first}' and '{name}' write explanations and answers "
                    "differently; give both the same separator and answer format"
                )
        return form

    def usage(self) -> TaskUsage | None:
        """Return how new rows become prompts, if all tasks agree."""
        usages = [task.build().usage() for task in self.options.tasks.values()]
        return usages[0] if all(usage == usages[0] for usage in usages) else None

    def adapted(
        self, tokens: ResponseTokens, training: MixtureOptions | None
    ) -> Adaptation[MixtureOptions]:
        """Adapt each task; one that the training mixture has under the same name follows it."""
        tasks, notes = {}, []
        for name, task in self.options.tasks.items():
            built, known = task.build(), training.tasks.get(name) if training else None
            if built.adapts:
                same = known is not None and known.name == task.name
                found = built.adapted(tokens, known.options if known and same else None)
                task = task.with_options(found.options)
                notes += [f"{name}: {found.note}"] if found.note else []
            tasks[name] = task
        return Adaptation(self.options.model_copy(update={"tasks": tasks}), "; ".join(notes))

    def load(self, split: str) -> Split:
        """Return the samples of all tasks in turn: one of each, as long as it has some."""
        dropped: dict[str, int] = {}
        notes: list[str] = []
        return Split(self._samples(split, dropped, notes), dropped, notes)

    def _samples(self, split: str, dropped: dict[str, int], notes: list[str]) -> Iterator[Sample]:
        loaded = {name: task.build().load(split) for name, task in self.options.tasks.items()}
        remaining = {name: iter(each.samples) for name, each in loaded.items()}
        while remaining:
            for name in [*remaining]:
                sample = next(remaining[name], None)
                if sample is None:
                    del remaining[name]
                else:
                    yield _of_domain(name, sample)
        for name, each in loaded.items():
            dropped.update({f"{reason} ({name})": count for reason, count in each.dropped.items()})
            notes.extend(f"{name}: {note}" for note in each.notes)


class MixtureOfTexts(MixtureTask):
    """The samples of several tasks without candidates; the task is the sample's group."""

    has_candidates: ClassVar[bool] = False


def _of_domain(name: str, sample: Sample) -> Sample:
    if sample.messages:
        raise UserError(
            f"tasks of a mixture: '{name}' has conversations, which are not mixed; give prompts "
            "and responses"
        )
    return replace(sample, id=None if sample.id is None else f"{name}/{sample.id}", group=name)
