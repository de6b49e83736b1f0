"""The exact repair of the student's explanation, where the task knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

from firstcli.api import (
    Annotator,
    Explained,
    PluginOptions,
    Sample,
    Task,
    ToAnnotate,
    UserError,
)


class KnowsSteps(Protocol):
    """A task that can check explanations, such as `known-steps`."""

    def repair(self, sample: Sample, steps: Sequence[str], /) -> tuple[str, ...]:
        """Return the shortest right explanation that begins with the right steps."""


class Oracle(Annotator[PluginOptions]):
    """The task corrects the student's explanation exactly; the task must know all steps.

    Only `known-steps` does. The teacher is not asked, and the label is read. This is the best that
    any revision could be.
    """

    reads_explanation: ClassVar[bool] = True
    buys_label: ClassVar[bool] = True

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._task: KnowsSteps | None = None

    def prepare(self, task: Task[Any]) -> None:
        if not callable(getattr(task, "repair", None)):
            raise UserError(
                "annotator 'oracle': the task of the pool cannot correct explanations; use the "
                "task 'known-steps', or the annotator 'revise'"
            )
        self._task = cast(KnowsSteps, task)

    def annotate(self, item: ToAnnotate) -> Explained:
        assert self._task, "prepare was not called"
        assert item.right_answer is not None, "the label was not bought"
        own, repaired = item.explanation, tuple(self._task.repair(item.sample, item.explanation))
        shared = next(
            (
                index
                for index, pair in enumerate(zip(own, repaired, strict=False))
                if len({*pair}) > 1
            ),
            min(len(own), len(repaired)),
        )
        flaw = None if own == repaired else shared
        return Explained(repaired, item.right_answer, flaw)
