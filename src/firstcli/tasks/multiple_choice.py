"""Multiple-choice questions, or texts to classify, from a user's own file.

A row with its own choices, `{"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}`, needs
no option but `path`. Texts with a label, `{"sentence": "what a film", "label": 1}`:

    path: sst2                        # a folder with train.jsonl and test.jsonl
    question_column: sentence
    answer_column: label
    choices: [negative, positive]
    prompt: "{question} It was"
    respond_with: text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from firstcli.api import DataPath, PluginOptions, Sample, Split, Task
from firstcli.tasks import answers, tables
from firstcli.tasks.tables import Row
from firstcli.tasks.templates import Template, columns_of, fill, of_names

MAX_CHOICES = 26  # as many as there are letters


class MultipleChoiceOptions(PluginOptions):
    """Where the questions are, how a row reads, and how a question is put to the model."""

    path: DataPath = Field(
        description="a .jsonl, .json, .csv or .parquet file, taken for whichever split is asked "
        "for, or a folder with a file for each split, such as train.csv, dev.csv and test.csv"
    )
    question_column: str = Field("question", description="column that holds the question")
    choices: list[str] | None = Field(
        None,
        min_length=2,
        max_length=MAX_CHOICES,
        description="the choices, where they are the same for all questions",
    )
    choices_column: str | list[str] = Field(
        "choices",
        description="column that holds a list of choices, or several columns with one choice each, "
        "the last of which may be empty",
    )
    separator: str | None = Field(
        None, min_length=1, description="what stands between choices in a column that holds text"
    )
    answer_column: str = Field("answer", description="column that holds the right choice")
    answer_as: Literal["auto", "index", "letter", "text"] = Field(
        "auto",
        description="how the answer names a choice: by its index from 0, by its letter from A or "
        "by its text; `auto` finds out, and asks where answers can be read in two ways",
    )
    id_column: str | None = Field(
        None, description="column with an id for each row (default: `id`, if there is one)"
    )
    prompt: Template = Field(
        "{question}\n{choices}\nAnswer:",
        description="the prompt, in which {question} is the question, {choices} the choices, a "
        "line each, and any other {name} the column of that name",
    )
    choice: Annotated[Template, of_names("letter", "text")] = Field(
        "{letter}. {text}", description="a choice's line within {choices}, of {letter} and {text}"
    )
    letters: Literal["upper", "lower"] = Field("upper", description="A, B, C or a, b, c")
    respond_with: Literal["letter", "text"] = Field(
        "letter", description="whether the model answers with a choice's letter or its text"
    )
    response: Annotated[Template, of_names("answer")] = Field(
        " {answer}",
        description="the response, in which {answer} is the letter or the text; a space between "
        "prompt and response belongs here",
    )

    @field_validator("choices")
    @classmethod
    def _sound_choices(cls, choices: list[str] | None) -> list[str] | None:
        texts = [text.strip() for text in choices or ()]
        if not all(texts):
            raise ValueError("one of the choices is empty")
        if len(set(texts)) < len(texts):
            raise ValueError("one of the choices is listed twice")
        return texts or None

    @field_validator("choices_column", "separator")
    @classmethod
    def _choices_of_rows(cls, given: str | list[str], info: ValidationInfo) -> str | list[str]:
        if info.data.get("choices"):
            raise ValueError("has no effect, since `choices` holds for all questions; remove one")
        return given


class MultipleChoice(Task[MultipleChoiceOptions]):
    """Questions with 2 to 26 choices each, from JSONL, CSV or Parquet."""

    Options = MultipleChoiceOptions

    @property
    def splits(self) -> tuple[str, ...]:
        """The folder's files, or the usual three."""
        return tables.splits_at(self.options.path)

    def load(self, split: str) -> Split:
        """Return the questions in the order of the file."""
        return Split(self._samples(split))

    def _samples(self, split: str) -> Iterator[Sample]:
        # The file is read twice, for how its answers are to be read shows in all of them.
        readings = answers.readings_of(self._questions(split), self.options.answer_as)
        for question in self._questions(split):
            yield self._sample(question.row, question.choices, question.right(readings))

    def _questions(self, split: str) -> Iterator[answers.Question]:
        for row in tables.read_split(self.options.path, split):
            yield answers.Question(row, self._choices(row), self.options.answer_column)

    def _choices(self, row: Row) -> list[str]:
        if self.options.choices:
            return self.options.choices
        column = self.options.choices_column
        texts = self._listed(row, column) if isinstance(column, str) else _spread(row, column)
        name = column if isinstance(column, str) else ", ".join(column)
        problem = None
        if not 2 <= len(texts) <= MAX_CHOICES:
            problem = f"found {len(texts)} choices, expected 2 to {MAX_CHOICES}"
        elif not all(texts):
            problem = f"choice {texts.index('') + 1} of {len(texts)} is empty"
        elif self.options.respond_with == "text" and len(set(texts)) < len(texts):
            repeated = next(text for text in texts if texts.count(text) > 1)
            problem = f"'{repeated}' stands more than once among the choices"
        if problem:
            raise row.mistake(f"column '{name}': {problem}")
        return texts

    def _listed(self, row: Row, column: str) -> list[str]:
        value = row.value(column)
        if isinstance(value, str) and self.options.separator:
            value = value.split(self.options.separator)
        if not isinstance(value, list):
            raise row.mistake(
                f"column '{column}': found {tables.describe(value)}, expected a list of choices; "
                "for choices within a text set `separator`, for choices in columns of their own "
                "list these in `choices_column`"
            )
        return [row.as_text(text, column).strip() for text in value]

    def _sample(self, row: Row, choices: Sequence[str], answer: int) -> Sample:
        options = self.options
        letters = ascii_uppercase if options.letters == "upper" else ascii_lowercase
        named = list(zip(letters, choices, strict=False))
        spoken = [letter if options.respond_with == "letter" else text for letter, text in named]
        return Sample.question(
            self._prompt(row, named),
            [fill(options.response, {"answer": one}.__getitem__) for one in spoken],
            answer,
            id=row.id(options.id_column),
        )

    def _prompt(self, row: Row, named: Sequence[tuple[str, str]]) -> str:
        options = self.options

        def text_of(name: str) -> str:
            if name == "question":
                return row.filled(options.question_column)
            if name == "choices":
                return "\n".join(
                    fill(options.choice, {"letter": letter, "text": text}.__getitem__)
                    for letter, text in named
                )
            return row.text(name)

        columns = [name for name in columns_of(options.prompt) if name != "choices"]
        if columns and "question" not in columns:
            row.require_any(columns)
        return fill(options.prompt, text_of)


def _spread(row: Row, columns: Sequence[str]) -> list[str]:
    """Return one choice a column; empty cells at the end are choices that the row does not have."""
    texts = [row.text(column).strip() for column in columns]
    while texts and not texts[-1]:
        texts.pop()
    return texts
