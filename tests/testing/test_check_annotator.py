"""The conformance checks of annotators name what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

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
from firstcli.testing import check_annotator


class Terse(Annotator[PluginOptions]):
    """A sound annotator: the teacher writes the answer, and nothing else."""

    generates: ClassVar[bool] = True

    def prompt(self, item: ToAnnotate) -> str:
        return f"{item.sample.prompt}\nIn a word:"

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        word = text.strip()
        if not word or len(text.split()) > 1 or (item.choices and word not in item.choices):
            raise Unparsable("it is no single word")
        return Explained((), word)


class Random(Terse):
    asked = 0

    def prompt(self, item: ToAnnotate) -> str:
        Random.asked += 1
        return f"{item.sample.prompt} {self.asked}"


class WithoutQuestion(Terse):
    def prompt(self, item: ToAnnotate) -> str:
        return "Explain!"


class Peeking(Terse):
    def prompt(self, item: ToAnnotate) -> str:
        return f"{item.sample.prompt} {item.right_answer}"


class Listening(Terse):
    def prompt(self, item: ToAnnotate) -> str:
        return f"{item.sample.prompt} {item.answer}"


class Crashing(Terse):
    def parse(self, item: ToAnnotate, text: str) -> Explained:
        return Explained((), text.split()[0])


class Credulous(Terse):
    def parse(self, item: ToAnnotate, text: str) -> Explained:
        return Explained((), text or "nothing")


class Deaf(Terse):
    def parse(self, item: ToAnnotate, text: str) -> Explained:
        raise Unparsable("it is a text")


class Forgetful(Terse):
    reads_explanation: ClassVar[bool] = True

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        if len(item.explanation) < 2 or item.choices:
            raise Unparsable("there is nothing to keep")
        return Explained(("something else",), "4", 1)


class Asking(Terse):
    def parse(self, item: ToAnnotate, text: str) -> Explained:
        return replace(super().parse(item, text), question="What is 1 + 1?")


class Unset(Terse):
    @property
    def writing(self) -> WritingSettings:
        return None  # type: ignore[return-value]


class Empty(Annotator[PluginOptions]):
    def annotate(self, item: ToAnnotate) -> Explained:
        raise Unparsable("there is nothing")


class Blank(Annotator[PluginOptions]):
    def annotate(self, item: ToAnnotate) -> Explained:
        return Explained((" ",), "4")


class Prepared(Annotator[PluginOptions]):
    def prepare(self, task: Task[Any]) -> None:
        self.known = True

    def annotate(self, item: ToAnnotate) -> Explained:
        return Explained((), item.choices[0] if item.choices else "4")


def one_word(item: ToAnnotate) -> str:
    return (item.choices or ("4",))[0]


def test_a_sound_annotator_passes() -> None:
    check_annotator(Terse)
    check_annotator(Terse, {}, text=one_word)


@pytest.mark.parametrize(
    ("cls", "text", "problem"),
    [
        (Random, None, "Random.prompt is not deterministic"),
        (WithoutQuestion, None, "WithoutQuestion.prompt of 'q2' does not contain the question"),
        (Peeking, None, "Peeking.prompt depends on the label, but Peeking does not declare"),
        (Listening, None, "Listening.prompt depends on the student's text, but Listening does not"),
        (Crashing, None, "Crashing.parse raised IndexError for the text '', expected Unparsable"),
        (Credulous, None, "Credulous.parse returned the answer ' \\n\\t ', expected text"),
        (Deaf, one_word, "Deaf.parse cannot read the text '4', which it should"),
        (Forgetful, None, "Forgetful.parse has changed a step before the first flaw"),
        (Asking, one_word, "Asking.parse returned a question, but the annotator does not declare"),
        (Unset, None, "Unset.writing is no WritingSettings"),
        (Empty, None, "Empty.annotate annotates none of the questions"),
        (Blank, None, "Blank.annotate returned an empty step, for sample 'q2'"),
    ],
)
def test_what_is_wrong_is_named(
    cls: type[Annotator[Any]], text: Callable[[ToAnnotate], str] | None, problem: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(problem)):
        check_annotator(cls, text=text)


def test_an_annotator_that_needs_a_task() -> None:
    with pytest.raises(UserError, match="Prepared has `prepare`; give `task`"):
        check_annotator(Prepared)
