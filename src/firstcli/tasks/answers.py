"""Which choice an answer names.

Data sets write answers as an index from 0 or from 1, a letter, the choice's label or text, or true
and false. One answer often fits several readings: 1 is the second choice, the first, or the choice
`1`. So all answers of all splits are collected first (`Evidence`). A reading is used only if it
fits all of them, and only if no other reading that fits them all gives a different choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal, get_args

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.choices import Choices, from_notation
from firstcli.tasks.tables import describe

Reading = Literal["index-from-0", "index-from-1", "letter", "label", "text", "boolean"]
READINGS: tuple[Reading, ...] = get_args(Reading)

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def _number(value: object) -> Decimal | None:
    """Return the number that a value is or spells; true and false are none."""
    if isinstance(value, str):
        return Decimal(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    number = Decimal(repr(value) if isinstance(value, float) else value)
    return number if number.is_finite() else None


def _truth(value: object) -> bool | None:
    """Return the truth value that a boolean, a word, 0 or 1 stands for."""
    if isinstance(value, bool):
        return value
    number = _number(value)
    if number is not None:
        return bool(number) if number in (0, 1) else None
    return _TRUTH.get(value.casefold()) if isinstance(value, str) else None


def _spoken(texts: Sequence[str]) -> list[bool | None]:
    """Return what each choice says, if exactly one says yes and one says no; empty otherwise."""
    spoken = [_TRUTH.get(text.casefold()) for text in texts]
    return spoken if spoken.count(True) == spoken.count(False) == 1 else []


def _only(indices: Iterable[int]) -> int | None:
    """Return the index if there is exactly one."""
    found = list(indices)
    return found[0] if len(found) == 1 else None


def _named(value: object, names: Sequence[str]) -> int | None:
    """Return the index of the one name that is equal to a value, or is the same number."""
    if isinstance(value, str) and value in names:
        return _only(i for i, name in enumerate(names) if name == value)
    number = _number(value)
    if number is None:
        return None
    return _only(i for i, name in enumerate(names) if _number(name) == number)


def _as_0_or_1(value: object) -> Decimal | None:
    """Return 1 for true and 0 for false, or None for other values, `yes` and `no` included."""
    word = value.casefold() if isinstance(value, str) else ""
    truth = value if isinstance(value, bool) else {"true": True, "false": False}.get(word)
    return None if truth is None else Decimal(truth)


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """The answer to one question, as it is in the data."""

    place: str
    """Where it is, for messages: `data.jsonl:3: column 'answer'`."""
    value: Any
    choices: Choices

    def mistake(self, complaint: str) -> UserError:
        return UserError(f"{self.place}: found {describe(self.value)}, {complaint}")

    def meaning(self, reading: Reading) -> int | None:
        """Return the index of the choice that the answer names under a reading."""
        value, texts = self.value, self.choices.texts
        if reading in ("text", "label"):
            return _named(value, texts if reading == "text" else self.choices.labels)
        if reading == "boolean":
            truth = _truth(value)
            spoken = [] if truth is None else _spoken(texts)
            return spoken.index(truth) if spoken else None
        if reading == "letter":
            letter = isinstance(value, str) and len(value) == 1
            index = ascii_lowercase.find(value.lower()) if letter else -1
        else:
            number = _number(value)
            if number is None and reading == "index-from-0":
                number = _as_0_or_1(value)
            if number is None or number != number.to_integral_value():
                return None
            index = int(number) - (reading == "index-from-1")
        return index if 0 <= index < len(texts) else None

    def meanings(self, readings: Sequence[Reading]) -> dict[Reading, int]:
        """Return the index of the choice under each reading that names one.

        True and false count as 1 and 0 only if no other reading is in question.
        """
        indices = {reading: self.meaning(reading) for reading in readings}
        if len(readings) > 1 and _number(self.value) is None:
            indices.pop("index-from-0", None)
        return {reading: index for reading, index in indices.items() if index is not None}

    def correct(self, readings: Sequence[Reading]) -> int:
        """Return the index of the correct choice.

        Args:
            readings: what `Evidence.readings` returned, or the one reading that the user states.

        Raises:
            UserError: no reading names a choice.
        """
        for reading in readings:
            if (index := self.meaning(reading)) is not None:
                return index
        raise self.unreadable(readings)

    def unreadable(self, readings: Sequence[Reading]) -> UserError:
        """Return the error for an answer that names no choice under any of these readings."""
        texts, labels = self.choices.texts, self.choices.labels
        if (count := self._number_of_answers()) != 1:
            found = "is a list of" if isinstance(self.value, list) else "names"
            return self.mistake(
                f"which {found} {count}, but a question must have exactly one correct answer; "
                "remove this row"
            )
        if "text" in readings and self.value in texts:
            return self.mistake("which occurs more than once among the choices")
        if len(readings) > 1 and len(texts) == 2 and _as_0_or_1(self.value) is not None:
            return self.mistake(
                f"but the choices {shortened(texts)} are not yes and no, or true and false; set "
                f"answer_as to index-from-0 if false stands for '{texts[0]}' and true for "
                f"'{texts[1]}'"
            )
        expected: dict[Reading, str] = {
            "index-from-0": f"an index from 0 to {len(texts) - 1}",
            "index-from-1": f"an index from 1 to {len(texts)}",
            "letter": f"a letter from A to {ascii_uppercase[len(texts) - 1]}",
            "label": f"one of the labels {shortened(labels, 10)}",
            "text": f"one of the choices {shortened(texts, 10)}",
            "boolean": "true or false"
            + ("" if _spoken(texts) else " and choices that are yes and no, or true and false"),
        }
        if len(readings) > 1:
            expected.pop("boolean")
        if not labels:
            expected["label"] = "a label, but the choices have none"
            if len(readings) > 1:
                expected.pop("label")
        kinds = [expected[reading] for reading in readings if reading in expected]
        hint = did_you_mean(str(self.value), texts) if "text" in readings else ""
        return self.mistake(f"expected {' or '.join(kinds)}{hint}")

    def _number_of_answers(self) -> int:
        """Return how many choices a list such as `["A", "C"]`, or text such as `A, C`, names."""
        if isinstance(self.value, list):
            return len(self.value)
        if not isinstance(self.value, str):
            return 1
        joined = self.value.isalpha() and self.value.isupper()  # AC
        parts = list(self.value) if joined else _SEPARATED.split(self.value)
        answers = [GoldAnswer(self.place, part.strip(), self.choices) for part in parts]
        named = all(answer.meanings(READINGS) for answer in answers)
        return len(parts) if named and len({*parts}) == len(parts) else 1


def is_missing(value: object) -> bool:
    """Return whether a cell is empty, so that its question has no label; pandas writes NaN."""
    blank = isinstance(value, str) and not value.strip()
    return value is None or blank or (isinstance(value, float) and math.isnan(value))


def answer_of(place: str, value: object, choices: Choices) -> GoldAnswer:
    """Return the answer that a value holds: itself, or the only element of a list.

    A list may also be text in the notation of JSON or Python, as in cells of CSV files.

    Raises:
        UserError: there is no value.
    """
    if isinstance(value, str):
        value = value.strip()
        parsed = value if value in choices.texts else from_notation(value)
        value = parsed if isinstance(parsed, list) else value
    if isinstance(value, list) and len(value) == 1:
        return answer_of(place, value[0], choices)
    if value is None or value == "":
        raise UserError(f"{place} is empty")
    return GoldAnswer(place, value, choices)


_SEPARATED = re.compile(r"[,;/|&]|\band\b")


@dataclass(slots=True)
class Evidence:
    """What the answers of one or more splits say about how to read them."""

    answers: int = 0
    misfits: dict[Reading, tuple[int, GoldAnswer]] = field(default_factory=dict)
    """The first answer that names no choice under a reading, with its number."""
    conflicts: dict[tuple[Reading, Reading], tuple[int, GoldAnswer]] = field(default_factory=dict)
    """The first answer that names different choices under two readings, with its number."""

    def add(self, answer: GoldAnswer) -> None:
        """Take an answer into account.

        Raises:
            UserError: it names no choice under any reading.
        """
        meanings = answer.meanings(READINGS)
        if not meanings:
            raise answer.unreadable(READINGS)
        seen = self.answers, answer
        for reading in READINGS:
            if reading not in meanings:
                self.misfits.setdefault(reading, seen)
        if len(set(meanings.values())) > 1:
            for pair in combinations(meanings, 2):
                if meanings[pair[0]] != meanings[pair[1]]:
                    self.conflicts.setdefault(pair, seen)
        self.answers += 1

    def followed_by(self, other: Evidence) -> Evidence:
        """Return the evidence of these answers and of others after them."""

        def later(found: dict[Any, tuple[int, GoldAnswer]]) -> dict[Any, tuple[int, GoldAnswer]]:
            return {key: (number + self.answers, answer) for key, (number, answer) in found.items()}

        return Evidence(
            self.answers + other.answers,
            later(other.misfits) | self.misfits,
            later(other.conflicts) | self.conflicts,
        )

    def readings(self) -> list[Reading]:
        """Return the readings that fit all answers; they all give the same choices.

        Raises:
            UserError: none fits all answers, or two give different choices; shows both readings of
                the first such answer.
        """
        fitting = [reading for reading in READINGS if reading not in self.misfits]
        if not fitting:
            raise self._contradiction()
        found = [seen for pair, seen in self.conflicts.items() if {*pair} <= {*fitting}]
        if not found:
            return fitting
        _, answer = min(found, key=lambda seen: seen[0])
        meanings = answer.meanings(fitting)
        senses = [f"as {kind} means '{answer.choices.texts[i]}'" for kind, i in meanings.items()]
        raise answer.mistake(
            f"which {' but '.join(senses)}; no other answer in the data decides, so set answer_as "
            f"to {' or '.join(meanings)}"
        )

    def _contradiction(self) -> UserError:
        """Return the error for answers that are written in different ways."""
        _, last = max(self.misfits.values(), key=lambda seen: seen[0])
        here = last.meanings(READINGS)
        _, first = min((self.misfits[reading] for reading in here), key=lambda seen: seen[0])
        there = first.meanings(READINGS)
        return last.mistake(
            f"which can be read as {' or '.join(here)}, but {first.place} has "
            f"{describe(first.value)}, which can be read as {' or '.join(there)}; write all "
            "answers in the same way, or give each file its own `path` and `answer_as`"
        )
