"""The student's own explanation, kept up to its first flaw and corrected from there (ELAD)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from firstcli.annotators.lines import (
    FlawForm,
    LineForm,
    StepForm,
    StepForms,
    answer_among,
    lines_of,
    one_line,
    prompt_with,
    shown,
)
from firstcli.annotators.options import WritingOptions
from firstcli.api import Annotator, Explained, ToAnnotate, Unparsable, WritingSettings

_PROMPT = """\
A student has answered the question below step by step. Check the steps in their order and find \
the first one that is wrong. The steps before it are kept, so do not repeat them. Write that step \
again, corrected and under its number, and go on from there with one fact or one calculation per \
step, until the answer follows. Then state the answer. Write nothing but lines of this form:
First wrong step: <its number>
Step <its number>: <the corrected step>
Step <the next number>: <the next step, and so on>
Answer: <the answer alone>

If all steps are right, but more are needed, give the number after the last one and write those \
that are missing. If all steps are right and none is missing, write only:
First wrong step: none
Answer: <the answer alone>

Question:
{question}

The student's steps:
{steps}

The student's answer: {answer}

"""


class ReviseOptions(WritingOptions):
    """The prompt, and the form of what the teacher writes."""

    template: Annotated[str, prompt_with(["question", "steps"], ["answer"])] = Field(
        _PROMPT,
        description="what the teacher continues; {question} stands for the sample's prompt, "
        "{steps} for the lines of the student's steps, and {answer} for the student's answer",
    )
    flaw: FlawForm = Field(
        "First wrong step: {number}",
        description="form of the first line; `none` stands in place of the number",
    )
    step: StepForm = Field(
        "Step {number}: {step}",
        description="form of the line with a step, also of the student's; without {number}, lines "
        "are not numbered",
    )


class Revise(Annotator[ReviseOptions]):
    """The teacher finds the first wrong step of the student's explanation and goes on from there.

    The student learns its own steps before that flaw, unchanged, and after them the teacher's. The
    idea is customised explanation revision of ELAD (arXiv 2402.13098); its prompt could not be
    obtained, and this one is firstcli's. The teacher writes only what is new. Its text is read
    strictly: the number of the first wrong step or `none`, the steps from this number on, and the
    answer. A first step that repeats the student's wrong one is refused.
    """

    Options = ReviseOptions
    generates: ClassVar[bool] = True
    reads_explanation: ClassVar[bool] = True

    @property
    def writing(self) -> WritingSettings:
        return self.options.writing

    @property
    def _forms(self) -> StepForms:
        return StepForms(self.options.step, self.options.answer)

    def prompt(self, item: ToAnnotate) -> str:
        return self._forms.prompt(self.options.template, item)

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        lines, own = lines_of(text), item.explanation
        flaw = self._flaw(lines[0], len(own))
        steps, answer = self._forms.read(lines[1:], len(own) + 1 if flaw is None else flaw + 1)
        if flaw is None and steps:
            raise Unparsable("no step is wrong, but steps follow")
        if flaw is not None and not steps:
            raise Unparsable(f"step {flaw + 1} is wrong, but no step follows")
        if steps and flaw is not None and flaw < len(own) and steps[0] == one_line(own[flaw]):
            raise Unparsable(f"step {flaw + 1} is wrong, but repeated without a change")
        kept = own if flaw is None else own[:flaw]
        return Explained((*kept, *steps), answer_among(item.choices, answer), flaw)

    def _flaw(self, line: str, count: int) -> int | None:
        """Return the index of the first wrong step; None if there is none."""
        form = self.options.flaw
        if LineForm(form.replace("{number}", "none")).read(line) is not None:
            if not count:
                raise Unparsable("no step is wrong, but the student wrote none")
            return None
        found = LineForm(form).read(line)
        if found is None:
            raise Unparsable(f"the first line does not have the form '{form}': {shown(line)}")
        number = int(found["number"])
        if not 1 <= number <= count + 1:
            raise Unparsable(f"the first wrong step is {number} of {count} steps")
        return number - 1
