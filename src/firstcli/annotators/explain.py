"""The teacher's own explanation and answer."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from firstcli.annotators.lines import StepForm, StepForms, answer_among, lines_of, prompt_with
from firstcli.annotators.options import WritingOptions
from firstcli.api import Annotator, Explained, ToAnnotate, Unparsable, WritingSettings
from firstcli.tasks.templates import fill

_PROMPT = """\
Answer the question below. First explain the answer in short steps: one step per line, and one \
fact or one calculation per step. Then state the answer. Write nothing but lines of this form:
Step 1: <the first step>
Step 2: <the next step, and so on>
Answer: <the answer alone>

Question:
{question}

"""


class ExplainOptions(WritingOptions):
    """The prompt, and the form of what the teacher writes."""

    template: Annotated[str, prompt_with(["question"])] = Field(
        _PROMPT, description="what the teacher continues; {question} stands for the sample's prompt"
    )
    step: StepForm = Field(
        "Step {number}: {step}",
        description="form of the line with a step; without {number}, lines are not numbered",
    )


class Explain(Annotator[ExplainOptions]):
    """The teacher explains its answer to the question step by step; the student learns both.

    The teacher does not see what the student wrote. Its text is read strictly: numbered steps of
    one line each, at least one, then one line with the answer, and nothing else. A teacher that was
    fine-tuned on explanations is asked with the task's own prompt: `template: "{question}"`,
    `step: "{step}"` and the task's own sentence as `answer`.
    """

    Options = ExplainOptions
    generates: ClassVar[bool] = True

    @property
    def writing(self) -> WritingSettings:
        return self.options.writing

    def prompt(self, item: ToAnnotate) -> str:
        return fill(self.options.template, lambda _: item.sample.prompt)

    def parse(self, item: ToAnnotate, text: str) -> Explained:
        forms = StepForms(self.options.step, self.options.answer)
        steps, answer = forms.read(lines_of(text))
        if not steps:
            raise Unparsable("it has an answer, but no step")
        return Explained(steps, answer_among(item.choices, answer))
