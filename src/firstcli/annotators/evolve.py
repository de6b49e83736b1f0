"""New questions like those that the student fails (EvoKD)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from firstcli.annotators.lines import (
    LineForm,
    QuestionForm,
    StepForm,
    StepForms,
    answer_among,
    lines_of,
    prompt_with,
    shown,
    substance,
)
from firstcli.annotators.options import WritingOptions
from firstcli.api import Annotator, Explained, ToAnnotate, Unparsable, WritingSettings

_PROMPT = """\
A student is unsure about the question below. Find out what makes it hard for the student. Then \
write one new question that is hard for the same reason, about other things and other numbers. \
Explain its answer in short steps: one step per line, and one fact or one calculation per step. \
Then state the answer. Write nothing but lines of this form:
Question: <the new question in one line>
Step 1: <the first step>
Step 2: <the next step, and so on>
Answer: <the answer alone>

The student's question:
{question}

The student's steps:
{steps}

The student's answer: {answer}

"""


class EvolveOptions(WritingOptions):
    """The prompt, and the form of what the teacher writes."""

    template: Annotated[str, prompt_with(["question"], ["steps", "answer"])] = Field(
        _PROMPT,
        description="what the teacher continues; {question} stands for the sample's prompt, "
        "{steps} for the lines of the student's steps, and {answer} for the student's answer",
    )
    question: QuestionForm = Field(
        "Question: {question}", description="form of the first line, with the new question"
    )
    step: StepForm = Field(
        "Step {number}: {step}",
        description="form of the line with a step, also of the student's; without {number}, lines "
        "are not numbered",
    )


class Evolve(Annotator[EvolveOptions]):
    """The teacher writes a new question like one that the student fails, and explains its answer.

    The idea is that of EvoKD (arXiv 2403.06414). What was simplified: there is one new question per
    chosen one, it is always as hard, and earlier ones are not shown again. The new question becomes
    a prompt as it is, so this suits tasks whose prompts are questions of one line, without choices
    in them. A question that repeats one of the pool, of the labelled data, of an evaluation or of
    an earlier round is refused. Nothing checks the new answer: it is the teacher's word.
    """

    Options = EvolveOptions
    generates: ClassVar[bool] = True
    reads_explanation: ClassVar[bool] = True
    writes_questions: ClassVar[bool] = True

    @property
    def writing(self) -> WritingSettings:
        return self.options.writing

    @property
    def _forms(self) -> StepForms:
        return StepForms(self.options.step, self.options.answer)

    def prompt(self, item: ToAnnotate) -> str:
        return self._forms.prompt(self.options.template, item)

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        lines = lines_of(text)
        found = LineForm(self.options.question).read(lines[0])
        if found is None or not found["question"]:
            form = self.options.question
            raise Unparsable(f"the first line does not have the form '{form}': {shown(lines[0])}")
        steps, answer = self._forms.read(lines[1:])
        if not steps:
            raise Unparsable("it has an answer, but no step")
        question = substance(found["question"], lines[0])
        return Explained(steps, answer_among(item.choices, answer), question=question)
