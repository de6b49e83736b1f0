"""The right choices of a log's questions: how `target` names them is inferred, never guessed.

A target may be an index from 0 (as in lm-evaluation-harness itself) or from 1, a letter or a text.
One reading must fit all questions and the logged accuracy. If several do, and give different
answers, the user decides.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase
from typing import Any, Literal, get_args

import numpy as np

from firstcli.errors import UserError

Gold = Literal["index-from-0", "index-from-1", "letter", "text"]
GOLD: tuple[Gold, ...] = get_args(Gold)


@dataclass(frozen=True)
class LoggedQuestion:
    """One logged question."""

    place: str
    id: str
    log_likelihoods: tuple[float, ...]
    choices: tuple[str, ...]
    """The texts of the choices; empty if the log has none."""
    target: str
    acc: float | None
    """The logged accuracy: 1 if the most likely choice is right, else 0; None if not logged."""

    @cached_property
    def readings(self) -> dict[Gold, int]:
        """The index of the right choice under each reading of `target` that names a choice."""
        found = re.fullmatch(r"([0-9]{1,9})(?:\.0+)?", self.target)
        index = int(found[1]) if found else {"False": 0, "True": 1}.get(self.target, -1)
        letter = re.fullmatch(r"\(?([A-Za-z])[).]?", self.target)
        indices: dict[Gold, int] = {
            "index-from-0": index,
            "index-from-1": index - 1 if found else -1,
            "letter": ascii_lowercase.index(letter[1].lower()) if letter else -1,
            # of equal texts the first, as in the harness
            "text": self.choices.index(self.target) if self.target in self.choices else -1,
        }
        count = len(self.log_likelihoods)
        return {kind: index for kind, index in indices.items() if 0 <= index < count}

    def agrees(self, answer: int | None) -> bool:
        """Return whether an answer is valid and consistent with the logged accuracy."""
        right = int(np.argmax(self.log_likelihoods)) == answer
        return answer is not None and (self.acc is None or right == (self.acc > 0))

    def choice(self, index: int) -> str:
        """Describe a choice for a message."""
        text = f" ('{self.choices[index]}')" if self.choices else ""
        return f"choice {index + 1} of {len(self.log_likelihoods)}{text}"


def target_text(place: str, target: Any, choices: Sequence[str]) -> str:
    """Return the one right answer that `target` states; lists have it as their only element.

    Raises:
        UserError: there is not exactly one.
    """
    text = str(target).strip()
    listed = target if isinstance(target, list) else None
    if listed is None and text.startswith("[") and text not in choices:
        try:  # newer versions write lists as strings
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
    if not isinstance(listed, list):
        return text
    if len(listed) != 1:
        raise UserError(
            f"{place}: the target {text} names {len(listed)} right answers; only questions with "
            "exactly one right answer can be evaluated"
        )
    return str(listed[0]).strip()


def answers(questions: Sequence[LoggedQuestion], gold: Gold | None) -> list[int]:
    """Return the right choice of every question, under the reading `gold` or the one that fits.

    Raises:
        UserError: no reading fits all questions, or several do and give different answers.
    """
    fitting: dict[Gold, list[int]] = {}
    kinds = GOLD if gold is None else (gold,)
    for kind in kinds:
        found = [question.readings.get(kind) for question in questions]
        if all(one.agrees(index) for one, index in zip(questions, found, strict=True)):
            fitting[kind] = [index for index in found if index is not None]
    if not fitting:
        raise _nothing_fits(questions, kinds)
    for number, question in enumerate(questions):
        if len({found[number] for found in fitting.values()}) > 1:
            raise _ambiguous(question, {kind: found[number] for kind, found in fitting.items()})
    return next(iter(fitting.values()))


def _ambiguous(question: LoggedQuestion, readings: Mapping[Gold, int]) -> UserError:
    senses = [f"{question.choice(index)} as {kind}" for kind, index in readings.items()]
    return UserError(
        f"{question.place}: the target '{question.target}' means {', '.join(senses)}, and "
        f"these readings fit all lines; decide with --gold {' or --gold '.join(readings)}"
    )


def _nothing_fits(questions: Sequence[LoggedQuestion], kinds: Sequence[Gold]) -> UserError:
    """Explain the first question that none of the readings of all previous ones fits."""
    possible = list(kinds)
    for question in questions:
        named = {kind: i for kind, i in question.readings.items() if kind in kinds}
        what = f"{question.place}: the target '{question.target}'"
        if not named:
            return UserError(
                f"{what} is not the {' or the '.join(kinds)} of one of the "
                f"{len(question.log_likelihoods)} choices"
            )
        if not any(map(question.agrees, named.values())):
            return UserError(
                f"{question.place}: the logged acc = {question.acc:g} contradicts the target "
                f"'{question.target}' and the log-likelihoods"
            )
        fitting = [kind for kind in possible if question.agrees(named.get(kind))]
        if not fitting:
            break
        possible = fitting
    return UserError(
        f"{what} is not the {' or the '.join(possible)} of a choice that the logged acc allows, as "
        "all previous targets are; write all targets in the same way"
    )
