"""Responses that explain their answer: how they are made, and how generated ones are read.

An explanation is a list of steps. A response is its steps, one after the other, and a sentence with
the answer:

    Tom has 3 bags of 4 apples.
    3 times 4 is 12.
    The answer is 12.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args

StepRule = Literal["lines", "sentences"]
"""How the text of an explanation is divided into steps."""
STEP_RULES: tuple[StepRule, ...] = get_args(StepRule)

ANSWER_FORMAT = "The answer is {answer}."
_FIELD = "{answer}"

# A sentence ends with punctuation, which may be followed by quotes and brackets, before white space
# and what can begin a sentence. A single letter before a full stop is an initial.
_SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])([.!?][\"')\]]*)\s+(?=[\"'(\[]*[A-Z0-9])")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)[$€£]?(?P<digits>[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?|[0-9]+(\.[0-9]*)?|\.[0-9]+)"
)


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """A generated response, taken apart."""

    explanation: str
    """The text before the sentence with the answer, or the whole text without one; stripped."""
    answer: str | None
    """The answer; None if there is none to read."""


@dataclass(frozen=True, slots=True)
class ExplanationForm:
    """How the responses of a task are made of steps and answer.

    Raises:
        ValueError: `answer_format` does not contain `{answer}` exactly once, or `pattern` is not a
            regular expression with one group.
    """

    answer_format: str = ANSWER_FORMAT
    """The sentence with the answer, which `{answer}` stands for."""
    separator: str = "\n"
    """The text between two steps, and between the last step and the answer."""
    opening: str = " "
    """The text between the prompt and the response's first word; it belongs to the response."""
    step_rule: StepRule = "lines"
    """How generated text is divided into steps."""
    pattern: str | None = None
    """A regular expression that finds the answer in generated text: its only group. The default is
    made of `answer_format`: what stands in its place, up to the end of the line."""

    def __post_init__(self) -> None:
        if self.answer_format.count(_FIELD) != 1:
            raise ValueError(f"expected a sentence that contains {_FIELD} once")
        try:
            groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if groups != 1:
            raise ValueError(f"found {groups} groups in the pattern, expected one: the answer")

    @property
    def answer_pattern(self) -> str:
        """The pattern that is used."""
        if self.pattern is not None:
            return self.pattern
        before, after = (part.strip() for part in self.answer_format.split(_FIELD))
        words = r"\s+".join(map(re.escape, before.split()))
        space = r"[^\S\n]*"
        end = f"(?:{re.escape(after)})?" if after else ""
        return rf"{words}{space}(\S(?:[^\n]*?\S)??){space}{end}{space}(?:\n|$)"

    def prefix(self, steps: Sequence[str]) -> str:
        """Return the response up to the sentence with the answer."""
        return self.opening + "".join(step + self.separator for step in steps)

    def sentence(self, answer: str) -> str:
        """Return the sentence with an answer; braces in the answer have no meaning."""
        return self.answer_format.replace(_FIELD, answer)

    def stated(self, sentence: str) -> str | None:
        """Return the answer in the sentence with the answer; None if there is none to read."""
        before, after = self.answer_format.split(_FIELD)
        end = len(sentence) - len(after)
        if sentence.startswith(before) and sentence.endswith(after) and len(before) <= end:
            return sentence[len(before) : end]
        return read_answer(sentence, self.answer_pattern)

    def reads(self, response: str, answer: str) -> bool:
        """Return whether a response is read as a given answer, not as one in its explanation."""
        found = self.read(response).answer
        return found is not None and same_answer(found, answer)

    def read(self, text: str) -> ExplainedText:
        """Take a generated response apart, at the first answer in it.

        A model that has answered may go on with another question, so later answers do not count.
        """
        found = re.search(self.answer_pattern, text)
        if found is None or not (answer := (found[1] or "").strip()):
            return ExplainedText(text.strip(), None)
        return ExplainedText(text[: found.start()].strip(), answer)


def render(steps: Sequence[str], answer: str, form: ExplanationForm) -> str:
    """Return the response with these steps and this answer."""
    return form.prefix(steps) + form.sentence(answer)


def split_steps(text: str, rule: StepRule) -> tuple[str, ...]:
    """Divide the text of an explanation into steps, none of which is blank.

    `lines` makes a step of every line that is not blank. `sentences` also divides lines, after a
    full stop, an exclamation mark or a question mark that is followed by white space and a capital
    or a digit; initials such as `J. Smith` are kept together.
    """
    lines = [line.strip() for line in text.splitlines()]
    if rule == "sentences":
        lines = [part for line in lines for part in _SENTENCE_END.sub(r"\1\n", line).splitlines()]
    return tuple(line.strip() for line in lines if line.strip())


def read_answer(text: str, pattern: str) -> str | None:
    """Return what the pattern's group matches first in a text, stripped; None if nothing does."""
    found = re.search(pattern, text)
    return ((found[1] or "").strip() or None) if found else None


def same_answer(first: str, second: str) -> bool:
    """Return whether two answers are the same.

    Numbers are compared as numbers: `1,200`, `$1200` and `1200.0` are the same. Other answers are
    the same text, apart from upper and lower case, white space and a full stop at the end.
    """
    return canonical_answer(first) == canonical_answer(second)


def canonical_answer(answer: str) -> str:
    """Return a text that is equal for answers that are the same; see `same_answer`."""
    text = " ".join(answer.split()).removesuffix(".").rstrip().casefold()
    found = _NUMBER.fullmatch(text.replace("\N{MINUS SIGN}", "-").replace("- ", "-", 1))
    if found is None:
        return text
    try:
        number = Decimal(found["sign"] + found["digits"].replace(",", ""))
    except InvalidOperation:
        return text
    return f"{number.normalize():f}" if number else "0"
