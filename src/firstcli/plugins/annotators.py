"""Every use of an annotator, checked; and what an annotation must be."""

from __future__ import annotations

from typing import Any

from firstcli import plugins
from firstcli.api import (
    Annotator,
    Explained,
    PluginOptions,
    Task,
    ToAnnotate,
    Unparsable,
    UserError,
    WritingSettings,
)
from firstcli.plugins.calls import built, explained
from firstcli.plugins.registry import Plugin


def annotation_problem(
    found: object, item: ToAnnotate, *, revises: bool, writes_questions: bool
) -> str | None:
    """Say what is wrong with an annotator's result, in words that follow its method's name.

    Args:
        found: what the annotator returned.
        item: what it annotated.
        revises: whether the annotator reads the student's explanation.
        writes_questions: whether the annotator declares that it writes new questions.
    """
    if not isinstance(found, Explained):
        return f"returned a {type(found).__name__}, expected a firstcli.api.Explained"
    steps, own = found.steps, item.explanation
    if not isinstance(steps, tuple) or not all(isinstance(step, str) for step in steps):
        return "returned steps that are not a tuple of texts"
    if not all(step.strip() for step in steps):
        return "returned an empty step"
    if not isinstance(found.answer, str) or not found.answer.strip():
        return f"returned the answer {found.answer!r}, expected text"
    if item.choices and found.answer not in item.choices:
        return f"returned the answer {found.answer!r}, which is none of the choices"
    if not (found.question is None or (isinstance(found.question, str) and found.question.strip())):
        return f"returned the question {found.question!r}, expected text or None"
    if found.question is not None and not writes_questions:
        return "returned a question, but the annotator does not declare `writes_questions`"
    flaw = found.first_flaw
    if flaw is None:
        return None
    if not revises:
        return "returned a first flaw, although the annotator does not read the explanation"
    if type(flaw) is not int or not 0 <= flaw <= len(own):
        return f"returned the first flaw {flaw!r}, expected a number from 0 to {len(own)}"
    if steps[:flaw] != own[:flaw]:
        return "has changed a step before the first flaw"
    return None


class CheckedAnnotator:
    """An annotator whose every result is checked."""

    def __init__(self, plugin: Plugin, annotator: Annotator[Any]) -> None:
        self.plugin, self._annotator = plugin, annotator

    @property
    def generates(self) -> bool:
        """Whether the teacher writes text."""
        return self._annotator.generates

    @property
    def scores_candidates(self) -> bool:
        """Whether questions with candidates are answered by the teacher's probabilities."""
        return self._annotator.scores_candidates

    @property
    def reads_explanation(self) -> bool:
        """Whether the student's explanation is read."""
        return self._annotator.reads_explanation

    @property
    def buys_label(self) -> bool:
        """Whether samples must have their labels."""
        return self._annotator.buys_label

    @property
    def writes_questions(self) -> bool:
        """Whether annotations may have questions of their own."""
        return self._annotator.writes_questions

    @property
    def writing(self) -> WritingSettings:
        """How the teacher writes."""
        with explained(self.plugin, "`writing`"):
            settings = self._annotator.writing
        if not isinstance(settings, WritingSettings):
            raise self._mistake(f"`writing` is a {type(settings).__name__}, not WritingSettings")
        return settings

    def prepare(self, task: Task[Any]) -> None:
        """Take what is needed of the task of the questions."""
        with explained(self.plugin, "`prepare`"):
            self._annotator.prepare(task)

    def prompt(self, item: ToAnnotate) -> str:
        """Return the text that the teacher continues."""
        with explained(self.plugin, "`prompt`"):
            prompt = self._annotator.prompt(item)
        if not isinstance(prompt, str) or not prompt.strip():
            raise self._mistake(f"`prompt` returned {prompt!r}, expected text")
        return prompt

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        """Read what the teacher wrote.

        Raises:
            Unparsable: the text does not have the expected form.
        """
        with explained(self.plugin, "`parse`", passing=Unparsable):
            found = self._annotator.parse(item, text)
        return self._checked("parse", found, item)

    def annotate(self, item: ToAnnotate) -> Explained:
        """Annotate a question without a text by the teacher.

        Raises:
            Unparsable: there is nothing to learn.
        """
        with explained(self.plugin, "`annotate`", passing=Unparsable):
            found = self._annotator.annotate(item)
        return self._checked("annotate", found, item)

    def _checked(self, method: str, found: Explained, item: ToAnnotate) -> Explained:
        problem = annotation_problem(
            *(found, item),
            revises=self.reads_explanation,
            writes_questions=self.writes_questions,
        )
        if problem:
            raise self._mistake(f"`{method}` {problem} (sample '{item.sample.id}')")
        return found

    def _mistake(self, text: str) -> UserError:
        return UserError(f"{self.plugin.title}: {text}; correct the plugin")


def annotator(name: str, options: PluginOptions) -> CheckedAnnotator:
    """Return a new annotator with its options."""
    plugin = plugins.find("annotators", name)
    return CheckedAnnotator(plugin, built(plugin, options))
