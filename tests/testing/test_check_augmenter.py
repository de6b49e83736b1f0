"""The conformance checks of augmenters name what is wrong."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from firstcli.api import (
    Augmenter,
    PluginOptions,
    Sample,
    TrainingPrompt,
    UserError,
    WritingSettings,
)
from firstcli.plugins import calls
from firstcli.plugins.registry import Plugin
from firstcli.testing import check_augmenter, simulated_prompts


class Louder(Augmenter[PluginOptions]):
    """A sound augmenter."""

    copies = 2

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        mark = "!" * (1 + random.randrange(3))
        return replace(prompt.sample, prompt=mark + prompt.sample.prompt)


class Global(Louder):
    def copy(self, prompt: TrainingPrompt, number: int, _: Random) -> Sample | None:
        return replace(prompt.sample, prompt=f"{random.random()} {prompt.sample.prompt}")


class Counting(Louder):
    made = 0

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        self.made += 1
        return replace(prompt.sample, prompt=f"{self.made} {prompt.sample.prompt}")


class Ordered(Louder):
    first = ""

    def read(self, prompts: Iterable[TrainingPrompt]) -> None:
        self.first = next(iter(prompts)).sample.prompt

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        return replace(prompt.sample, prompt=f"{self.first} {prompt.sample.prompt}")


class Empty(Louder):
    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        return replace(prompt.sample, prompt=" ")


class OtherCandidates(Louder):
    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        candidates = prompt.sample.candidates[::-1]
        if not candidates:
            return None
        sample = prompt.sample
        assert sample.answer is not None
        return replace(sample, candidates=candidates, response=candidates[sample.answer])


class OtherResponse(Louder):
    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        if prompt.sample.candidates:
            return None
        return replace(prompt.sample, response="something else")


class OtherAnswer(Louder):
    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        sample = prompt.sample
        if not sample.candidates or prompt.by_letter:
            return None
        return replace(sample, answer=0, response=sample.candidates[0])


class Writing(Louder):
    """A sound augmenter whose copies the teacher writes."""

    writing = WritingSettings()

    def request(self, prompt: TrainingPrompt, number: int) -> str | None:
        return f"Again: {prompt.sample.prompt}"

    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        return replace(prompt.sample, prompt=f"{text} {prompt.sample.prompt}")


class EmptyRequest(Writing):
    def request(self, prompt: TrainingPrompt, number: int) -> str | None:
        return " "


class OnlyText(Writing):
    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        return replace(prompt.sample, prompt=text)


class CountingWritten(Writing):
    made = 0

    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        self.made += 1
        return replace(prompt.sample, prompt=f"{self.made} {text}")


class NoCopies(Louder):
    copies = 0


@pytest.mark.parametrize(
    ("writing", "problem"),
    [
        (None, ""),
        (WritingSettings(0, 1, 1), ""),
        (WritingSettings(temperature=-1), "`writing` has temperature=-1, expected a number of"),
        (WritingSettings(float("nan")), "`writing` has temperature=nan"),
        (WritingSettings(top_p=0), "`writing` has top_p=0, expected"),
        (WritingSettings(top_p=1.5), "`writing` has top_p=1.5, expected"),
        (WritingSettings(max_new_tokens=0), "`writing` has max_new_tokens=0, expected a whole"),
        ({"temperature": 1}, "`writing` is a dict, expected a WritingSettings or None"),
    ],
)
def test_how_a_teacher_writes_is_checked(writing: object, problem: str) -> None:
    class Told(Writing):
        pass

    Told.writing = writing  # type: ignore[assignment]
    plugin = Plugin("augmenters", "told", "m:Told", "other", "1")
    augmenter = calls.CheckedAugmenter(plugin, Told(PluginOptions()))
    if not problem:
        assert augmenter.writing == writing
        return
    with pytest.raises(UserError) as caught:
        augmenter.writing  # noqa: B018
    assert problem in str(caught.value) and "told" in str(caught.value)


def test_a_sound_augmenter_passes() -> None:
    check_augmenter(Louder)
    check_augmenter(Writing)


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Global, "Global.copy gives different copies of the same sample"),
        (Counting, "Counting.copy depends on the copies that were made before"),
        (Ordered, "Ordered: the copies depend on the order in which `read` gets prompts"),
        (Empty, "Empty.copy: the copy of sample 'q0' is malformed: the prompt is empty"),
        (OtherCandidates, "has changed `candidates`"),
        (OtherResponse, "the copy of sample 'i0' has changed `response`"),
        (OtherAnswer, "the copy of sample 'q1' has changed `response`"),
        (EmptyRequest, "EmptyRequest.request returned ' ', expected text or None"),
        (OnlyText, "OnlyText.written: the copy of sample 'q0' is malformed: the prompt is empty"),
        (CountingWritten, "CountingWritten.written depends on the copies that were made before"),
        (NoCopies, "NoCopies.copies is 0, expected a whole number above 0"),
    ],
)
def test_what_is_wrong_is_named(cls: type[Augmenter[PluginOptions]], text: str) -> None:
    with pytest.raises(AssertionError, match=text.replace("(", r"\(")):
        check_augmenter(cls)


def test_a_run_refuses_a_wrong_copy() -> None:
    plugin = Plugin("augmenters", "mine", "mine:Mine", "first-mine", "1.2")
    (prompt, *_) = simulated_prompts()["questions"]
    wrong = calls.CheckedAugmenter(plugin, Empty(PluginOptions()))
    with pytest.raises(UserError) as caught:
        wrong.copy(prompt, 0, Random(0))
    assert str(caught.value) == (
        "augmenter 'mine' from first-mine 1.2: the copy of sample 'q0' is malformed: the prompt is "
        "empty; correct the plugin"
    )
    with pytest.raises(UserError, match="`copies` is 0, expected a whole number above 0"):
        _ = calls.CheckedAugmenter(plugin, NoCopies(PluginOptions())).copies
