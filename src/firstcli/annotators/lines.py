"""Texts of one fact per line, as teachers write them and as they are read back, strictly.

form = LineForm("Step {number}: {step}")
form.written(number="2", step="3 + 4 = 7")    # 'Step 2: 3 + 4 = 7'
form.read("step 2:  3 + 4 = 7")               # {'number': '2', 'step': '3 + 4 = 7'}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator

from firstcli.api import ToAnnotate, Unparsable, same_answer
from firstcli.tasks.templates import columns_of, fill

_PLACEHOLDER = re.compile(r"<[^<>]*>")
"""What stands in a prompt for a text, which a teacher may repeat instead of writing one."""
_EDGES = re.compile(r"^[^\w+\-−$.]+|[^\w%]+$")
"""Punctuation around an answer, other than what belongs to a number."""
_NUMBER = "[0-9]{1,6}"
NOTHING = "(none)"
"""What stands in a prompt for steps or an answer that the student did not write."""
_SHOWN = 60  # characters of a line in messages


def one_line(text: str) -> str:
    """Return text with every stretch of white space as one space."""
    return " ".join(text.split())


class LineForm:
    """The form of a line: literal text around names in braces."""

    def __init__(self, form: str) -> None:
        """Take a form such as `Step {number}: {step}`; the names differ."""
        self._form = form
        pattern = ""
        for literal, name, _, _ in Formatter().parse(form):
            pattern += r"\s*".join(map(re.escape, re.split(r"\s+", literal)))
            if name is not None:
                pattern += rf"\s*(?P<{name}>{_NUMBER if name == 'number' else '.*?'})\s*"
        self._pattern = re.compile(pattern, re.IGNORECASE | re.DOTALL)

    def written(self, **texts: str) -> str:
        """Return a line; white space in the texts is made one space each."""
        return self._form.format_map({name: one_line(text) for name, text in texts.items()})

    def read(self, line: str) -> dict[str, str] | None:
        """Return the texts of a line, or None if it does not have the form.

        Neither case nor the amount of white space matters.
        """
        found = self._pattern.fullmatch(one_line(line))
        return None if found is None else found.groupdict()


@dataclass(frozen=True)
class StepForms:
    """The forms of an explanation's lines."""

    step: str
    """Form of a step's line, with {step} and possibly {number}."""
    answer: str
    """Form of the answer's line, the last one, with {answer}."""

    def written(self, steps: Sequence[str], answer: str, first: int = 1) -> str:
        """Return the lines of steps, numbered from `first`, and of an answer."""
        return "\n".join(
            [*self.numbered(steps, first), LineForm(self.answer).written(answer=answer)]
        )

    def numbered(self, steps: Iterable[str], first: int = 1) -> list[str]:
        """Return the lines of steps, numbered from `first`."""
        form = LineForm(self.step)
        return [
            form.written(number=str(number), step=step) for number, step in enumerate(steps, first)
        ]

    def prompt(self, template: str, item: ToAnnotate) -> str:
        """Return the prompt about a question and what the student says of it.

        Args:
            template: with {question}, {steps} and {answer}.
            item: the question, the student's steps and its answer.
        """
        texts = {
            "question": item.sample.prompt,
            "steps": "\n".join(self.numbered(item.explanation)) or NOTHING,
            "answer": one_line(item.answer) or NOTHING,
        }
        return fill(template, texts.__getitem__)

    def read(self, lines: Sequence[str], first: int = 1) -> tuple[tuple[str, ...], str]:
        """Return the steps and the answer of lines.

        Args:
            lines: what was written, without empty lines.
            first: number of the first step.

        Raises:
            Unparsable: a line is neither the next step nor, at the end, the answer.
        """
        if not lines:
            raise Unparsable("the text is empty")
        answer_form = LineForm(self.answer)
        answer = answer_form.read(lines[-1])
        if answer is None:
            raise Unparsable(
                f"it does not end with a line of the form '{self.answer}': {shown(lines[-1])}"
            )
        steps = tuple(self._step(line, number) for number, line in enumerate(lines[:-1], first))
        return steps, substance(answer["answer"], lines[-1])

    def _step(self, line: str, number: int) -> str:
        if LineForm(self.answer).read(line) is not None:
            raise Unparsable(f"more lines follow an answer: {shown(line)}")
        found = LineForm(self.step).read(line)
        if found is None:
            raise Unparsable(f"a line does not have the form '{self.step}': {shown(line)}")
        if int(found.get("number") or number) != number:
            raise Unparsable(f"a line is not step {number}: {shown(line)}")
        return substance(found["step"], line)


def lines_of(text: str) -> list[str]:
    """Return the lines that are not empty, at least one, without white space around them.

    Raises:
        Unparsable: there is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise Unparsable("the text is empty")
    return lines


def shown(line: str) -> str:
    """Return the beginning of a line in quotes, for messages."""
    return f"'{line[:_SHOWN]}{'...' if len(line) > _SHOWN else ''}'"


def substance(text: str, line: str) -> str:
    """Return the text of a line.

    Raises:
        Unparsable: it is empty, or a placeholder of the prompt.
    """
    if not text or _PLACEHOLDER.fullmatch(text):
        raise Unparsable(f"a line says nothing: {shown(line)}")
    return text


def answer_among(choices: Sequence[str], text: str) -> str:
    """Return the answer that a text states: one of the choices, if there are any.

    Numbers are compared as numbers, other texts without regard to case and to punctuation around
    them. Without choices, only a full stop at the end of the text is left out.

    Raises:
        Unparsable: there are choices, and the text names none of them, or several.
    """
    if not choices:
        return re.sub(r"(?<=\w)\.$", "", text)
    same = [each for each in choices if one_line(each) == text]
    if not same and (bare := _bare(text)):
        same = [each for each in choices if same_answer(_bare(each), bare)]
    if len(same) != 1:
        problem = "is none of" if not same else f"fits {len(same)} of"
        raise Unparsable(f"the answer {shown(text)} {problem} the {len(choices)} choices")
    return same[0]


def _bare(text: str) -> str:
    """Return text without the punctuation around it: '(b).' becomes 'b'."""
    return _EDGES.sub("", one_line(text))


def _form_with(*names: str) -> AfterValidator:
    """Return a validator of forms: the first name is required, and no others are allowed."""

    def check(form: str) -> str:
        found = columns_of(form)
        for name in found:
            if name not in names or found.count(name) > 1:
                expected = " and ".join(f"{{{each}}}" for each in names)
                raise ValueError(f"found {{{name}}}, expected {expected}, each once at most")
        if names[0] not in found:
            raise ValueError(f"expected {{{names[0]}}} in it")
        if len(form.splitlines()) != 1 or form != form.strip():
            raise ValueError("expected one line without white space around it")
        return form

    return AfterValidator(check)


StepForm = Annotated[str, _form_with("step", "number")]
"""An option: the form of a step's line."""
AnswerForm = Annotated[str, _form_with("answer")]
"""An option: the form of the answer's line."""
QuestionForm = Annotated[str, _form_with("question")]
"""An option: the form of the line with a new question."""
FlawForm = Annotated[str, _form_with("number")]
"""An option: the form of the line that names the first wrong step."""


def prompt_with(required: Sequence[str], allowed: Sequence[str] = ()) -> AfterValidator:
    """Return a validator of the templates of prompts.

    Args:
        required: names that a template must have.
        allowed: further names that it may have.
    """

    def check(template: str) -> str:
        found = columns_of(template)
        for name in found:
            if name not in (*required, *allowed):
                expected = " or ".join(f"{{{each}}}" for each in (*required, *allowed))
                raise ValueError(f"unknown {{{name}}}, expected {expected}")
        for name in required:
            if name not in found:
                raise ValueError(f"expected {{{name}}} in it; write a literal brace twice")
        return template

    return AfterValidator(check)
