"""Multiple-choice questions, or texts to classify, from a user's file.

Rows that contain their choices, `{"question": "2 + 2?", "choices": ["3", "4"], "answer": "B"}`,
need only the option `path`. Texts with a label, `{"sentence": "what a film", "label": 1}`, need:

    path: sst2                        # a folder with train.jsonl and test.jsonl
    question_column: sentence
    answer_column: label
    choices: [negative, positive]
    prompt: "{question} It was"
    respond_with: text
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from firstcli.api import DataPath, PluginOptions, Sample, Split, Task
from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks import tables
from firstcli.tasks.tables import TableRow, describe
from firstcli.tasks.templates import Template, columns_of, fill, of_names

MAX_CHOICES = 26  # the number of letters

Reading = Literal["index", "letter", "text"]


def _chosen(answer: str, choices: Sequence[str], reading: Reading) -> int | None:
    """Return the index of the choice that an answer names under a reading."""
    if reading == "text":  # only if no other choice has that text
        return choices.index(answer) if choices.count(answer) == 1 else None
    if reading == "letter":
        index = ascii_lowercase.find(answer.lower()) if len(answer) == 1 else -1
    else:
        index = int(answer) if re.fullmatch(r"[0-9]{1,2}", answer) else -1
    return index if 0 <= index < len(choices) else None


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A row with its choices, and the answer as it is in the data."""

    row: TableRow
    choices: Sequence[str]
    column: str
    """The column of the answer."""

    @property
    def answer(self) -> str:
        return self.row.filled(self.column).strip()

    def mistake(self, complaint: str) -> UserError:
        value = describe(self.row.value(self.column))
        return self.row.mistake(f"column '{self.column}': found {value}, {complaint}")

    def meanings(self, readings: Sequence[Reading]) -> dict[Reading, int]:
        """Return the index of the choice under each reading that names one.

        Raises:
            UserError: no reading names a choice.
        """
        indices = {kind: _chosen(self.answer, self.choices, kind) for kind in readings}
        if meanings := {kind: index for kind, index in indices.items() if index is not None}:
            return meanings
        if "text" in readings and self.answer in self.choices:
            raise self.mistake("which occurs more than once among the choices")
        last = len(self.choices) - 1
        expected = {
            "index": f"an index from 0 to {last}",
            "letter": f"a letter from A to {ascii_uppercase[last]}",
            "text": f"one of the choices {shortened(self.choices, 10)}",
        }
        hint = did_you_mean(self.answer, self.choices) if "text" in readings else ""
        raise self.mistake(f"expected {' or '.join(expected[kind] for kind in readings)}{hint}")

    def correct(self, readings: Sequence[Reading]) -> int:
        """Return the index of the correct choice, given the `readings_of` all rows.

        Raises:
            UserError: no reading names a choice, or the readings name different ones.
        """
        meanings = self.meanings(readings)
        if len(set(meanings.values())) > 1:
            senses = [f"as {kind} means '{self.choices[i]}'" for kind, i in meanings.items()]
            raise self.mistake(
                f"which {' but '.join(senses)}; set answer_as to {' or '.join(meanings)}"
            )
        return next(iter(meanings.values()))


def readings_of(rows: Iterable[AnsweredRow], answer_as: Reading | Literal["auto"]) -> list[Reading]:
    """Return the readings under which all answers name a choice; `auto` tries all three.

    Raises:
        UserError: an answer names no choice, or no reading fits all answers.
    """
    readings: list[Reading] = list(get_args(Reading)) if answer_as == "auto" else [answer_as]
    possible = set(readings)
    for row in rows:
        meanings = row.meanings(readings)
        if not possible & meanings.keys():
            raise row.mistake(
                f"which is not the {' or '.join(sorted(possible))} of a choice, as the previous "
                "answers are; write all answers in the same way"
            )
        possible &= meanings.keys()
    return [kind for kind in readings if kind in possible]


class MultipleChoiceOptions(PluginOptions):
    """The location of the data, the meaning of their columns, and the format of the prompt."""

    path: DataPath = Field(
        description="a .jsonl, .json, .csv or .parquet file, used for every split, or a folder "
        "with one file per split, such as train.csv, dev.csv and test.csv; a .json array is read "
        "into memory whole, so use .jsonl for large data"
    )
    question_column: str = Field("question", description="column of the question")
    choices: list[str] | None = Field(
        None,
        min_length=2,
        max_length=MAX_CHOICES,
        description="the choices, if they are the same for all questions, without the white space "
        "around them",
    )
    choices_column: str | list[str] = Field(
        "choices",
        description="column of a list of choices, or several columns with one choice each, the "
        "last of which may be empty; white space around a choice is removed",
    )
    separator: str | None = Field(
        None, min_length=1, description="the text between the choices, if the column contains text"
    )
    answer_column: str = Field("answer", description="column of the correct choice")
    answer_as: Literal["auto", "index", "letter", "text"] = Field(
        "auto",
        description="how the answer names a choice: by its index from 0, by its letter from A or "
        "by its text; `auto` detects it, and is refused if an answer is ambiguous",
    )
    id_column: str | None = Field(
        None, description="column with an id for each row (default: `id`, if it exists)"
    )
    prompt: Template = Field(
        "{question}\n{choices}\nAnswer:",
        description="template of the prompt: {question} stands for the question, {choices} for "
        "the choices, one per line, and any other {name} for the column of that name",
    )
    choice: Annotated[Template, of_names("letter", "text")] = Field(
        "{letter}. {text}", description="template of a choice's line: its {letter} and its {text}"
    )
    letters: Literal["upper", "lower"] = Field("upper", description="A, B, C or a, b, c")
    respond_with: Literal["letter", "text"] = Field(
        "letter", description="whether the model answers with a choice's letter or its text"
    )
    response: Annotated[Template, of_names("answer")] = Field(
        " {answer}",
        description="template of the response: {answer} stands for the letter or the text; a space "
        "between prompt and response belongs here",
    )

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, choices: list[str] | None) -> list[str] | None:
        texts = [text.strip() for text in choices or ()]
        if not all(texts):
            raise ValueError("one of the choices is empty")
        if len(set(texts)) < len(texts):
            raise ValueError("one of the choices is listed twice")
        return texts or None

    @field_validator("choices_column", "separator")
    @classmethod
    def _refuse_besides_choices(
        cls, value: str | list[str], info: ValidationInfo
    ) -> str | list[str]:
        if info.data.get("choices"):
            raise ValueError("has no effect, since `choices` holds for all questions; remove one")
        return value


class MultipleChoice(Task[MultipleChoiceOptions]):
    """Questions with 2 to 26 choices each, from JSONL, CSV or Parquet."""

    Options = MultipleChoiceOptions

    @property
    def splits(self) -> tuple[str, ...]:
        """One split per file of the folder, or train, validation and test for a single file."""
        return tables.splits_at(self.options.path)

    def sources(self, split: str) -> Sequence[Path]:
        return (tables.split_file(self.options.path, split),)

    def load(self, split: str) -> Split:
        """Return the questions in the order of the file."""
        return Split(self._samples(split))

    def _samples(self, split: str) -> Iterator[Sample]:
        # The file is read twice, because only all answers together show how to interpret them.
        readings = readings_of(self._rows(split), self.options.answer_as)
        for row in self._rows(split):
            yield self._sample(row.row, row.choices, row.correct(readings))

    def _rows(self, split: str) -> Iterator[AnsweredRow]:
        for row in tables.read_rows(tables.split_file(self.options.path, split)):
            yield AnsweredRow(row, self._choices(row), self.options.answer_column)

    def _choices(self, row: TableRow) -> list[str]:
        if self.options.choices:
            return self.options.choices
        column = self.options.choices_column
        if isinstance(column, str):
            name, texts = column, self._listed(row, column)
        else:
            name, texts = ", ".join(column), [row.text(name).strip() for name in column]
            while texts and not texts[-1]:  # the row has fewer choices than there are columns
                texts.pop()
        problem = None
        if not 2 <= len(texts) <= MAX_CHOICES:
            problem = f"found {len(texts)} choices, expected 2 to {MAX_CHOICES}"
        elif not all(texts):
            problem = f"choice {texts.index('') + 1} of {len(texts)} is empty"
        elif self.options.respond_with == "text" and len(set(texts)) < len(texts):
            repeated = next(text for text in texts if texts.count(text) > 1)
            problem = f"'{repeated}' occurs more than once among the choices"
        if problem:
            raise row.mistake(f"column '{name}': {problem}")
        return texts

    def _listed(self, row: TableRow, column: str) -> list[str]:
        value = row.value(column)
        if isinstance(value, str) and self.options.separator:
            value = value.split(self.options.separator)
        if not isinstance(value, list):
            raise row.mistake(
                f"column '{column}': found {describe(value)}, expected a list of choices; "
                "if the choices are separated within a text, set `separator`; if each is in its "
                "own column, list the columns in `choices_column`"
            )
        return [row.as_text(text, column).strip() for text in value]

    def _sample(self, row: TableRow, choices: Sequence[str], answer: int) -> Sample:
        options = self.options
        letters = ascii_uppercase if options.letters == "upper" else ascii_lowercase
        lettered = zip(letters, choices, strict=False)
        lines = [options.choice.format(letter=letter, text=text) for letter, text in lettered]
        texts = choices if options.respond_with == "text" else letters[: len(choices)]
        candidates = [options.response.format(answer=text) for text in texts]

        def text_of(name: str) -> str:
            if name == "choices":
                return "\n".join(lines)
            return row.filled(options.question_column) if name == "question" else row.text(name)

        columns = [name for name in columns_of(options.prompt) if name != "choices"]
        if columns and "question" not in columns:
            row.require_any(columns)
        prompt = fill(options.prompt, text_of)
        return Sample.question(prompt, candidates, answer, id=row.id(options.id_column))
