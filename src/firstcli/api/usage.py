"""How a trained student is used: what it reads, and how prompt and candidates are made from it.

A task describes its use as data (`Task.usage`), which is stored in the student's folder. A prompt
can then be built from a row of a user's data without the task's code.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["classification", "multiple-choice", "prompt", "instruction"]
"""What a student answers: the label of a text, one of a row's own choices, one of some candidates
after a complete prompt, or a text of any length."""


class UsageForm(BaseModel):
    """A part of the description of a student's use: immutable JSON data."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class InputField(UsageForm):
    """Where the text for one `{name}` of a prompt template comes from."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of a row, of which the first that the row has is read; `question.stem` is a field
    within a column. With `join`, all of them are read."""
    required: Literal["text", "column", "no"] = "text"
    """Whether the row needs text here (`text`), a column that may be blank (`column`), or none of
    both (`no`)."""
    join: str | None = None
    """The text between several columns, blank ones left out; None reads a single column."""
    named: bool = False
    """Whether each of several columns is preceded by its name, as in `subject: text`."""
    strip: bool = False
    """Whether white space around the text of a column is removed."""
    without_suffix: str = ""
    """A suffix that is removed from the text, because the template contains it."""


class Label(UsageForm):
    """One of the answers that are the same for all rows."""

    name: str
    """The answer as it is shown: the label, or the text of a choice."""
    response: str
    """The complete response of the model that stands for it, with a leading space if any."""
    token: int | None = None
    """Id of the response's token at the answer position; firstcli fills it in."""


class ChoiceForm(UsageForm):
    """How the choices of a row are read, shown in the prompt and answered."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Columns of which the first that the row has contains all choices; see `separate`."""
    separate: bool = False
    """Whether each column contains one choice instead; the last ones may be empty."""
    separator: str | None = None
    """The text between the choices, if the column contains text."""
    strip: bool = True
    """Whether white space around a choice is removed."""
    line: str = "{letter}. {text}"
    """Template of a choice's line; the lines are joined and replace `{choices}` in the prompt."""
    letters: Literal["upper", "lower"] = "upper"
    """A, B, C or a, b, c."""
    respond_with: Literal["letter", "text"] = "letter"
    """Whether the response contains a choice's letter or its text."""
    response: str = " {answer}"
    """Template of the response: `{answer}` is the letter or the text."""


class TaskUsage(UsageForm):
    """How prompt and candidates are made from a row.

    Literal braces are doubled in all templates. Answers are given by `labels`, the same for all
    rows, or by the row's `choices`; an instruction has neither.
    """

    kind: Kind
    prompt: str
    """Template of the prompt: `{choices}` stands for the lines of the row's choices, every other
    `{name}` for the text of that field of `inputs`."""
    if_blank: dict[str, str] = Field(default_factory=dict)
    """Templates that replace `prompt` where a field is blank, by the field's name."""
    inputs: dict[str, InputField]
    """The fields of the templates, by name. At least one of them must have text in every row."""
    labels: tuple[Label, ...] = ()
    """The answers, if they are the same for all rows: at least two, with different responses."""
    choices: ChoiceForm | None = None
    """How a row's own choices are read, if it has any."""

    @model_validator(mode="after")
    def _has_one_source_of_answers(self) -> TaskUsage:
        if self.kind == "instruction" and (self.labels or self.choices):
            raise ValueError("an instruction has neither labels nor choices")
        if self.kind != "instruction" and bool(self.labels) == (self.choices is not None):
            raise ValueError("expected either labels or choices")
        for what in ("name", "response"):
            if len({getattr(label, what) for label in self.labels}) < len(self.labels):
                raise ValueError(f"two labels have the same {what}")
        if len(self.labels) == 1:
            raise ValueError("expected at least two labels")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that may be read from a row, in the order of the inputs."""
        named = [column for field in self.inputs.values() for column in field.columns]
        return tuple(dict.fromkeys((*named, *(self.choices.columns if self.choices else ()))))

    @property
    def text_column(self) -> str | None:
        """The column to which a bare text belongs; None if a row needs more than one text."""
        if self.choices is not None or not self.inputs:
            return None
        first, *others = self.inputs.values()
        alone = all(field.required == "no" for field in others)
        return (
            first.columns[0] if alone and (first.join is None or len(first.columns) == 1) else None
        )


def prompt_usage(responses: tuple[str, ...] | None) -> TaskUsage:
    """Return the usage of a task that does not describe its own: the user gives whole prompts.

    Args:
        responses: the candidates that all samples share; None if each row must give its own, as
            complete responses in the column `choices`.
    """
    inputs = {"prompt": InputField(columns=("prompt", "text"))}
    if responses is None:
        whole = ChoiceForm(
            columns=("choices",), strip=False, respond_with="text", response="{answer}"
        )
        return TaskUsage(kind="prompt", prompt="{prompt}", inputs=inputs, choices=whole)
    stripped = [text.strip() for text in responses]
    names = stripped if len({*stripped}) == len(stripped) and all(stripped) else responses
    labels = tuple(
        Label(name=name, response=text) for name, text in zip(names, responses, strict=True)
    )
    return TaskUsage(kind="prompt", prompt="{prompt}", inputs=inputs, labels=labels)
