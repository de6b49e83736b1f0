"""Interpret the answers of a data set: an index, a letter or the text of a choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Literal

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.tables import TableRow, describe

Reading = Literal["index", "letter", "text"]
READINGS: tuple[Reading, ...] = ("index", "letter", "text")


def _chosen(answer: str, choices: Sequence[str], reading: Reading) -> int | None:
    """Return the index of the choice that an answer names under a reading."""
    if reading == "text":  # only if no other choice has that text
        return choices.index(answer) if choices.count(answer) == 1 else None
    if reading == "letter":
        index = ascii_lowercase.find(answer.lower()) if len(answer) == 1 else -1
    else:
        index = int(answer) if re.fullmatch(r"[0-9]{1,2}", answer) else -1
    return index if 0 <= index < len(choices) else None


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its choices, and the answer as it is in the data."""

    row: TableRow
    choices: Sequence[str]
    column: str
    """The column of the answer."""

    @property
    def answer(self) -> str:
        return self.row.filled(self.column).strip()

    def mistake(self, complaint: str) -> UserError:
        value = describe(self.row.value(self.column))
        return self.row.mistake(f"column '{self.column}': found {value}, {complaint}")

    def meanings(self, readings: Sequence[Reading]) -> dict[Reading, int]:
        """Return the index of the choice under each reading that names one.

        Raises:
            UserError: no reading names a choice.
        """
        indices = {kind: _chosen(self.answer, self.choices, kind) for kind in readings}
        if meanings := {kind: index for kind, index in indices.items() if index is not None}:
            return meanings
        if "text" in readings and self.answer in self.choices:
            raise self.mistake("which occurs more than once among the choices")
        last = len(self.choices) - 1
        expected = {
            "index": f"an index from 0 to {last}",
            "letter": f"a letter from A to {ascii_uppercase[last]}",
            "text": f"one of the choices {shortened(self.choices, 10)}",
        }
        hint = did_you_mean(self.answer, self.choices) if "text" in readings else ""
        raise self.mistake(f"expected {' or '.join(expected[kind] for kind in readings)}{hint}")

    def correct(self, readings: Sequence[Reading]) -> int:
        """Return the index of the correct choice, given the `readings_of` all rows.

        Raises:
            UserError: no reading names a choice, or the readings name different ones.
        """
        meanings = self.meanings(readings)
        if len(set(meanings.values())) > 1:
            senses = [f"as {kind} means '{self.choices[i]}'" for kind, i in meanings.items()]
            raise self.mistake(
                f"which {' but '.join(senses)}; set answer_as to {' or '.join(meanings)}"
            )
        return next(iter(meanings.values()))


def readings_of(rows: Iterable[AnsweredRow], answer_as: Reading | Literal["auto"]) -> list[Reading]:
    """Return the readings under which all answers name a choice; `auto` tries all three.

    Raises:
        UserError: an answer names no choice, or no reading fits all answers.
    """
    readings = list(READINGS) if answer_as == "auto" else [answer_as]
    possible = set(readings)
    for row in rows:
        meanings = row.meanings(readings)
        if not possible & meanings.keys():
            raise row.mistake(
                f"which is not the {' or '.join(sorted(possible))} of a choice, as the previous "
                "answers are; write all answers in the same way"
            )
        possible &= meanings.keys()
    return [kind for kind in readings if kind in possible]
