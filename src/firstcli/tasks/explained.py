"""Options of tasks whose rows contain an explanation, and the steps of a row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import Field, field_validator, model_validator

from firstcli.api import ExplanationForm, PluginOptions, Sample, StepRule, split_steps
from firstcli.api.explanations import ANSWER_FORMAT
from firstcli.tasks.tables import TableRow, describe

MISREAD = "explanation that already states an answer"
"""Why samples are dropped whose generated copies would be read wrongly."""


class ExplanationOptions(PluginOptions):
    """Where a row's explanation is, and how the response is made of its steps and the answer."""

    steps_column: str | list[str] | None = Field(
        "steps",
        description="column of the explanation: a list of steps, or text that is divided into "
        "steps; or several columns, whose steps follow one another; null for data without "
        "explanations. A row in which it is empty has only an answer",
    )
    step_rule: StepRule = Field(
        "lines",
        description="how text is divided into steps: at the ends of lines, or also at the ends of "
        "sentences",
    )
    remove: str | None = Field(
        None,
        description="regular expression of what is removed from explanations, such as the "
        "calculator's notes of GSM8K: `<<[^>]*>>`",
    )
    answer_format: str = Field(
        ANSWER_FORMAT, description="the sentence that ends the response, with {answer} once"
    )
    join: str = Field("\n", min_length=1, description="the text between two steps")
    opening: str = Field(
        " ", description="the text between the prompt and the first word of the response"
    )
    pattern: str | None = Field(
        None,
        description="regular expression, with one group, that finds the answer in generated text "
        "(default: what stands in the place of {answer} in `answer_format`)",
    )

    @field_validator("remove")
    @classmethod
    def _is_an_expression(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @field_validator("join", "opening")
    @classmethod
    def _is_blank(cls, text: str) -> str:
        if text.strip():
            raise ValueError("expected white space, such as a line end")
        return text

    @model_validator(mode="after")
    def _steps_can_be_told_apart(self) -> ExplanationOptions:
        if self.step_rule == "lines" and "\n" not in self.join:
            raise ValueError(
                "`join` has no line end, at which `step_rule: lines` divides generated text into "
                'steps; add one ("\\n"), or set `step_rule` to sentences'
            )
        return self

    @model_validator(mode="after")
    def _makes_a_form(self) -> ExplanationOptions:
        self.form()
        return self

    def form(self) -> ExplanationForm:
        """Return how responses are made and read.

        Raises:
            ValueError: the options make none.
        """
        return ExplanationForm(
            answer_format=self.answer_format,
            separator=self.join,
            opening=self.opening,
            step_rule=self.step_rule,
            pattern=self.pattern,
        )

    @property
    def steps_columns(self) -> Sequence[str]:
        """The columns of the explanation."""
        columns = self.steps_column
        return () if columns is None else [columns] if isinstance(columns, str) else columns

    def steps(self, row: TableRow, taken: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return the steps of a row's explanation.

        Args:
            row: the row, which must have the columns.
            taken: regular expressions by column; what they match there is removed, too.

        Raises:
            UserError: a column contains neither text nor a list of texts.
        """
        found: list[str] = []
        for column in self.steps_columns:
            value, pattern = row.value(column), (taken or {}).get(column)
            for text in value if isinstance(value, list) else [value]:
                found += self._divided(row, column, text, pattern, whole=isinstance(value, list))
        return tuple(found)

    def _divided(
        self, row: TableRow, column: str, value: object, taken: str | None, *, whole: bool
    ) -> Sequence[str]:
        if value is None:
            return ()
        if not isinstance(value, str):
            raise row.mistake(
                f"column '{column}': found {describe(value)}, expected text or a list of steps"
            )
        text = row.as_text(value, column)
        for pattern in (self.remove, taken):
            text = re.sub(pattern, "", text) if pattern else text
        if not whole:
            return split_steps(text, self.step_rule)
        step = " ".join(text.split())  # generated text is divided at line ends
        return (step,) if step else ()


def checked(row: TableRow, sample: Sample, form: ExplanationForm) -> Sample:
    """Return a row's sample if the answer can be read off the sentence with the answer.

    Raises:
        UserError: it cannot.
    """
    if sample.response:
        sentence = sample.response[len(form.prefix(sample.steps)) :]
        stated = form.stated(sentence)
        if stated is None or not form.reads(sentence, stated):
            raise row.mistake(
                f"the answer cannot be read off {describe(sentence)}; correct `answer_format` or "
                "`pattern`, or the row"
            )
    return sample


def kept(
    samples: Iterable[Sample], form: ExplanationForm, dropped: dict[str, int]
) -> Iterator[Sample]:
    """Yield the samples off whose response their own answer is read, not one of the explanation.

    Args:
        samples: samples of rows that were `checked`.
        form: how their responses are made.
        dropped: counts the others.
    """
    for sample in samples:
        stated = form.stated(sample.response[len(form.prefix(sample.steps)) :])
        if not sample.response or (stated is not None and form.reads(sample.response, stated)):
            yield sample
        else:
            dropped[MISREAD] = dropped.get(MISREAD, 0) + 1
