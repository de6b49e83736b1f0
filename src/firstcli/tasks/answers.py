"""Which choice an answer means: its index, its letter or its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.tables import Row, describe

Reading = Literal["index", "letter", "text"]


def by_index(answer: str, choices: Sequence[str]) -> int | None:
    """Read an index that counts from 0."""
    found = re.fullmatch(r"[0-9]{1,2}", answer)
    return int(answer) if found and int(answer) < len(choices) else None


def by_letter(answer: str, choices: Sequence[str]) -> int | None:
    """Read a letter, large or small."""
    place = ascii_lowercase.find(answer.lower()) if len(answer) == 1 else -1
    return place if 0 <= place < len(choices) else None


def by_text(answer: str, choices: Sequence[str]) -> int | None:
    """Read the text of one of the choices, unless it stands there twice."""
    return choices.index(answer) if choices.count(answer) == 1 else None


READINGS: dict[Reading, Callable[[str, Sequence[str]], int | None]] = {
    "index": by_index,
    "letter": by_letter,
    "text": by_text,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A row with its choices and the answer as the data have it."""

    row: Row
    choices: Sequence[str]
    column: str

    @property
    def answer(self) -> str:
        return self.row.filled(self.column).strip()

    def mistake(self, complaint: str) -> UserError:
        found = describe(self.row.value(self.column))
        return self.row.mistake(f"column '{self.column}': found {found}, {complaint}")

    def read(self, readings: Iterable[Reading]) -> dict[Reading, int]:
        """Return what the answer means, for each reading under which it means something."""
        meanings = {kind: READINGS[kind](self.answer, self.choices) for kind in readings}
        return {kind: place for kind, place in meanings.items() if place is not None}

    def right(self, readings: Sequence[Reading]) -> int:
        """Return the index of the right choice, under `readings_of` all questions.

        Raises:
            UserError: the readings differ, so the user has to say which is meant.
        """
        found = self.read(readings)
        if not found:
            raise _no_choice(self, readings)
        if len(set(found.values())) > 1:
            raise _ambiguous(self, found)
        return next(iter(found.values()))


def readings_of(
    questions: Iterable[Question], answer_as: Reading | Literal["auto"]
) -> list[Reading]:
    """Return in which ways all answers can be read: as told, or with `auto` those that make sense.

    Raises:
        UserError: an answer is none of the choices, or no one way suits all.
    """
    readings = list(READINGS) if answer_as == "auto" else [answer_as]
    possible = set(readings)
    for question in questions:
        found = question.read(readings)
        if not found:
            raise _no_choice(question, readings)
        if not possible & found.keys():
            raise question.mistake(
                f"which is no {' or '.join(sorted(possible))} of a choice, as the answers before "
                "it are; write all answers alike"
            )
        possible &= found.keys()
    return [kind for kind in readings if kind in possible]


def _no_choice(question: Question, readings: Sequence[Reading]) -> UserError:
    choices = question.choices
    if "text" in readings and question.answer in choices:
        return question.mistake("which stands more than once among the choices")
    last = len(choices) - 1
    ways = {
        "index": f"an index from 0 to {last}",
        "letter": f"a letter from A to {ascii_uppercase[last]}",
        "text": f"one of the choices {shortened(choices, 10)}",
    }
    expected = " or ".join(ways[kind] for kind in readings)
    hint = did_you_mean(question.answer, choices) if "text" in readings else ""
    return question.mistake(f"expected {expected}{hint}")


def _ambiguous(question: Question, meanings: dict[Reading, int]) -> UserError:
    senses = " but ".join(
        f"as {kind} means '{question.choices[place]}'" for kind, place in meanings.items()
    )
    return question.mistake(f"which {senses}; set answer_as to {' or '.join(meanings)}")
