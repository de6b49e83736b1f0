"""The teacher's answer alone."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from firstcli.annotators.lines import StepForms, answer_among, lines_of, prompt_with, shown
from firstcli.annotators.options import WritingOptions
from firstcli.api import Annotator, Explained, ToAnnotate, Unparsable, WritingSettings
from firstcli.tasks.templates import fill

_PROMPT = """\
Answer the question below. Write nothing but one line of this form:
Answer: <the answer alone>

Question:
{question}

"""


class AnswerOptions(WritingOptions):
    """The prompt for questions without candidates, and the form of what the teacher writes."""

    template: Annotated[str, prompt_with(["question"])] = Field(
        _PROMPT,
        description="what the teacher continues if the question has no candidates; {question} "
        "stands for the sample's prompt",
    )


class AnswerAnnotator(Annotator[AnswerOptions]):
    """The teacher answers without an explanation.

    Of questions with candidates, the student learns the teacher's probabilities of these, and the
    answer is the most likely one. To other questions the teacher writes an answer.
    """

    Options = AnswerOptions
    generates: ClassVar[bool] = True
    scores_candidates: ClassVar[bool] = True

    @property
    def writing(self) -> WritingSettings:
        return self.options.writing

    def prompt(self, item: ToAnnotate) -> str:
        return fill(self.options.template, lambda _: item.sample.prompt)

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        others, answer = StepForms("{step}", self.options.answer).read(lines_of(text))
        if others:
            raise Unparsable(f"more than the answer is written: {shown(others[0])}")
        return Explained((), answer_among(item.choices, answer))
