"""Copies with dropped, swapped and damaged words: questions that nobody has asked so far."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Annotated, Literal

from pydantic import Field, field_validator

from firstcli.api import Augmenter, PluginOptions, Sample, TrainingPrompt

Change = Literal["drop", "swap", "invent", "typo", "case"]
Level = Annotated[float, Field(gt=0, le=1)]

_WORD = re.compile(r"\S+")


class PerturbOptions(PluginOptions):
    """How many copies there are, and how much and in which ways their words change."""

    levels: list[Level] = Field(
        [0.15, 0.15, 0.3, 0.3],
        min_length=1,
        max_length=64,
        description="one copy per level: the probability that a word changes",
    )
    kinds: list[Change] = Field(
        ["drop", "swap", "invent"],
        min_length=1,
        description="what happens to a word that changes, each kind with the same probability: it "
        "is left out (`drop`), replaced by a word of the training prompts (`swap`) or by one that "
        "does not exist (`invent`), misspelt in one place (`typo`), or written in a different case "
        "(`case`)",
    )

    @field_validator("kinds")
    @classmethod
    def _differ(cls, kinds: list[Change]) -> list[Change]:
        if len({*kinds}) < len(kinds):
            raise ValueError(f"found {kinds}, expected each kind once")
        return kinds


class WordBank:
    """The words of the training prompts, which are drawn as often as they occur there."""

    def __init__(self, words: Iterable[str]) -> None:
        """Count words; their order does not matter."""
        counts = sorted(Counter(words).items())
        self._words = [word for word, _ in counts]
        self._bounds = list(accumulate(count for _, count in counts))

    def draw(self, random: Random) -> str:
        """Return a word; there must be one."""
        return self._words[bisect(self._bounds, random.randrange(self._bounds[-1]))]


class Perturb(Augmenter[PerturbOptions]):
    """Changes single words of the free text: every word but the prompt's last may change.

    The teacher's answers to such copies show a student where its knowledge ends. Each copy keeps
    at least one word of every text.
    """

    Options = PerturbOptions

    def __init__(self, options: PerturbOptions) -> None:
        super().__init__(options)
        self._bank = WordBank(())

    @property
    def copies(self) -> int:
        return len(self.options.levels)

    def read(self, prompts: Iterable[TrainingPrompt]) -> None:
        self._bank = WordBank(
            word for prompt in prompts for text in prompt.texts for word in text.split()
        )

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        if not prompt.fields:
            return None  # without free text, all copies would be equal to the sample
        level, text = self.options.levels[number], prompt.sample.prompt
        last = len(text.rstrip())  # where the prompt's last word ends
        parts, end = [], 0
        for field in prompt.fields:
            words = list(_words_of(text[field.start : field.end]))
            fixed = [field.start + word.end == last for word in words]
            new = [
                word.text if kept or random.random() >= level else self._changed(word.text, random)
                for word, kept in zip(words, fixed, strict=True)
            ]
            if words and not any(new):
                spared = random.randrange(len(words))
                new[spared] = words[spared].text
            tail = text[field.start + words[-1].end : field.end] if words else ""
            parts += [text[end : field.start], _joined(words, new), tail]
            end = field.end
        return replace(prompt.sample, prompt="".join([*parts, text[end:]]))

    def _changed(self, word: str, random: Random) -> str:
        """Return what stands for a word; empty if it is left out."""
        match random.choice(self.options.kinds):
            case "drop":
                return ""
            case "swap":
                return self._bank.draw(random)
            case "invent":
                return _invented(word, self._bank.draw(random), random)
            case "typo":
                return _misspelt(word, random)
            case "case":
                return _in_other_case(word, random)


@dataclass(frozen=True, slots=True)
class _Word:
    gap: str
    """The white space before the word."""
    text: str
    end: int
    """Where the word ends in its field."""


def _words_of(text: str) -> Iterator[_Word]:
    end = 0
    for match in _WORD.finditer(text):
        yield _Word(text[end : match.start()], match[0], match.end())
        end = match.end()


def _joined(words: Sequence[_Word], new: Sequence[str]) -> str:
    """Return the text in which words are replaced.

    A word that is left out takes the white space before it along, but no line break.
    """
    parts: list[str] = []
    gap = words[0].gap if words else ""  # the text begins as before
    for place, (word, text) in enumerate(zip(words, new, strict=True)):
        if place and ("\n" in word.gap or "\n" not in gap) and parts:
            gap = word.gap
        if text:
            parts += [gap, text]
            gap = ""
    return "".join(parts)


def _invented(word: str, other: str, random: Random) -> str:
    """Shuffle a word's letters, or join its first half and the second half of another word."""
    if random.random() < 0.5:
        return "".join(random.sample(word, len(word)))
    return word[: (len(word) + 1) // 2] + other[len(other) // 2 :]


def _misspelt(word: str, random: Random) -> str:
    """Double or leave out one letter, or exchange it with the next one, which differs."""
    at = random.randrange(len(word))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    if len(word) == 1 or (kind := random.randrange(3)) == 0:
        return before + letter + letter + after
    if kind == 1:
        return before + after
    if not after:  # the last letter has no next one
        before, letter, after = word[: at - 1], word[at - 1], word[at:]
    if after[0] == letter:  # exchanged, they would leave the word as it is
        return before + letter + letter + after
    return before + after[0] + letter + after[1:]


def _in_other_case(word: str, random: Random) -> str:
    """Write a word in small or in capital letters, or with one capital letter at its beginning."""
    others = [form for form in (word.lower(), word.upper(), word.capitalize()) if form != word]
    return random.choice(others) if others else word
