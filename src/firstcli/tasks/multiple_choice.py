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

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from firstcli.api import ChoiceForm, InputField, Label, Sample, Split, Task, TaskUsage
from firstcli.errors import UserError
from firstcli.tasks import choices, layout, tables
from firstcli.tasks.answers import Evidence, GoldAnswer, Reading, answer_of, is_missing
from firstcli.tasks.choices import MAX_CHOICES, Choices
from firstcli.tasks.table_splits import GroupedTableOptions, TableSplits, over_files
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import Template, columns_of, fill, of_names, with_filled

_LINE = "line"
"""Column of the answer in a row that `_with_lines` made."""
_ADVICE = (
    "; if the choices are separated within a text, set `separator`; if each is in its own column, "
    "list the columns in `choices_column`"
)
_EVIDENCE: dict[object, tuple[Evidence, UserError | None]] = {}
"""What the answers of a split show, by options and state of the files."""


class MultipleChoiceOptions(GroupedTableOptions):
    """The location of the data, the meaning of their columns, and the format of the prompt."""

    question_column: str = Field(
        "question", description="column of the question; question.stem is a field within a column"
    )
    choices: list[str] | None = Field(
        None,
        min_length=2,
        max_length=MAX_CHOICES,
        description="the choices, if they are the same for all questions",
    )
    choices_column: str | list[str] = Field(
        "choices",
        description="column of the choices (a list of texts, or texts with labels, as lists and "
        "objects or in JSON), or several columns with one choice each, the last of which may be "
        "empty; white space around a choice is removed",
    )
    separator: str | None = Field(
        None, min_length=1, description="the text between the choices, if the column contains text"
    )
    answer_column: str = Field(
        "answer",
        description="column of the correct choice; a row in which it is empty has no label",
    )
    answer_file: str | None = Field(
        None,
        min_length=1,
        description="name of a file beside the data file that contains one answer per line instead "
        "of a column; {name} stands for the data file's name without its ending, as in "
        "{name}-labels.lst",
    )
    answer_as: Literal["auto"] | Reading = Field(
        "auto",
        description="how the answer names a choice: by its index, its letter from A, its label in "
        "the data (or the name of its column), its text, or as true or false where the choices are "
        "yes and no; `auto` finds the reading that fits the answers of all splits, and is refused "
        "if two fit",
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
        "letter",
        validate_default=True,
        description="whether the model answers with a choice's letter or its text",
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

    @field_validator("answer_file")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name and ({*columns_of(name)} - {"name"} or Path(name).name != name):
            raise ValueError("expected the name of a file, in which only {name} has a meaning")
        return name

    @model_validator(mode="after")
    def _answer_lines_are_whole(self) -> MultipleChoiceOptions:
        if self.answer_file and self.split_column:
            raise ValueError("`split_column` cannot be used with `answer_file`; remove one")
        return self

    @model_validator(mode="after")
    def _one_source_of_answers(self) -> MultipleChoiceOptions:
        if self.answer_file and "answer_column" in self.model_fields_set:
            raise ValueError(
                "answer_column has no effect, since `answer_file` contains the answers; remove one"
            )
        return self

    @field_validator("answer_as", mode="before")
    @classmethod
    def _earlier_name(cls, reading: object) -> object:
        return "index-from-0" if reading == "index" else reading

    @field_validator("respond_with")
    @classmethod
    def _letters_are_shown(cls, respond_with: str, info: ValidationInfo) -> str:
        shown = columns_of(info.data.get("prompt", "{choices}"))
        columns = info.data.get("choices_column")
        in_columns = isinstance(columns, list) and {*columns} <= {*shown}
        if respond_with == "text" or in_columns:
            return respond_with
        if "choices" not in shown:
            raise ValueError(
                "the model cannot know which letter stands for which choice, because the prompt "
                "does not show them; add {choices} to `prompt`, or set respond_with to text"
            )
        if {"letter", "text"} - {*columns_of(info.data.get("choice", "{letter}{text}"))}:
            raise ValueError(
                "the model cannot know which letter stands for which choice; let `choice` contain "
                "{letter} and {text}, or set respond_with to text"
            )
        return respond_with


class MultipleChoice(Task[MultipleChoiceOptions]):
    """Questions with 2 to 26 choices each, from the user's files."""

    Options: ClassVar[type[MultipleChoiceOptions]] = MultipleChoiceOptions
    _has_answers = True

    def __init__(self, options: MultipleChoiceOptions) -> None:
        super().__init__(options)
        self._table = TableSplits(options)

    @property
    def splits(self) -> tuple[str, ...]:
        return self._table.names

    def sources(self, split: str) -> Sequence[Path]:
        """The split's files; with `auto`, those of all splits, which decide on the reading."""
        if self.options.answer_as != "auto" or not self._has_answers:
            return self._sources(split)
        others = [name for name in self.splits if name != split]
        known = [file for name in others for file in self._sources(name) if file.is_file()]
        return tuple(dict.fromkeys((*self._sources(split), *known)))

    def usage(self) -> TaskUsage:
        options = self.options
        names = [name for name in columns_of(options.prompt) if name != "choices"]
        inputs = {
            name: InputField(columns=(options.question_column,))
            if name == "question"
            else InputField(columns=(name,), required="column")
            for name in names
        }
        if options.choices is None:
            columns = options.choices_column
            form = ChoiceForm(
                columns=(columns,) if isinstance(columns, str) else tuple(columns),
                separate=not isinstance(columns, str),
                separator=options.separator,
                line=options.choice,
                letters=options.letters,
                respond_with=options.respond_with,
                response=options.response,
            )
            return TaskUsage(
                kind="multiple-choice", prompt=options.prompt, inputs=inputs, choices=form
            )
        pairs = zip(options.choices, self._candidates(options.choices), strict=True)
        return TaskUsage(
            kind="classification",
            prompt=with_filled(options.prompt, {"choices": self._lines(options.choices)}),
            inputs=inputs,
            labels=tuple(Label(name=name, response=response) for name, response in pairs),
        )

    def load(self, split: str) -> Split:
        """Return the questions in the order of the file; an empty answer is no label."""
        notes: list[str] = []
        return Split(self._samples(split, notes), notes=notes)

    def unlabelled(self, path: Path | Sequence[Path]) -> MultipleChoice:
        """Return the task over other files, whose answers are not read."""
        task = MultipleChoice(over_files(self.options, path))
        task._has_answers = False
        return task

    def _samples(self, split: str, notes: list[str]) -> Iterator[Sample]:
        readings = self._readings(split) if self._has_answers else ()
        for row, label in self._rows(split, notes):
            choices, answer = self._question(row, label)
            correct = answer.correct(readings) if answer else None
            sample = self._sample(row, choices.texts, correct)
            if self._table.has_prompt(split, sample.prompt, labelled=answer is not None):
                yield sample

    def _readings(self, split: str) -> Sequence[Reading]:
        """Return the readings of the answers: the same for all splits.

        Only all answers together show how to interpret them, so every file is read once for that.
        Empty answers show nothing.
        In the other splits, rows without a readable answer are ignored: published test sets often
        have no answers.
        """
        if self.options.answer_as != "auto":
            return [self.options.answer_as]
        if (error := self._evidence(split)[1]) is not None:
            raise error
        evidence = Evidence()
        # A single file serves as every split, but counts once; a column divides its rows.
        divided = self.options.split_column is not None
        for name in {(self._sources(n), n if divided else ""): n for n in self.splits}.values():
            evidence = evidence.followed_by(self._evidence(name)[0])
        return evidence.readings()

    def _evidence(self, split: str) -> tuple[Evidence, UserError | None]:
        """Return what a split's answers show, and the split's first mistake; remembered."""
        part = split if self.options.split_column else ""
        key = (self.options.model_dump_json(), part, *map(_stamp, self._sources(split)))
        if key not in _EVIDENCE:
            evidence, first = Evidence(), None
            try:
                for row, label in self._rows(split, []):
                    try:
                        _, answer = self._question(row, label)
                        if answer:
                            evidence.add(answer)
                    except UserError as error:
                        first = first or error
            except UserError as error:  # the file cannot be read any further
                first = first or error
            _EVIDENCE[key] = evidence, first
        return _EVIDENCE[key]

    def _sources(self, split: str) -> tuple[Path, ...]:
        files = self._table.files(split)
        if not self._answer_name:
            return files
        return tuple(path for file in files for path in (file, self._answer_file(file)))

    @property
    def _answer_name(self) -> str | None:
        """The option `answer_file`, unless answers are not read."""
        return self.options.answer_file if self._has_answers else None

    def _answer_file(self, file: Path) -> Path:
        return file.with_name(fill(self._answer_name or "", lambda _: layout.name_of(file)))

    def _rows(self, split: str, notes: list[str]) -> Iterator[tuple[TableRow, TableRow]]:
        """Yield each row, and the row that contains its answer: itself, or a line beside it."""
        files = self._table.files(split)
        if not self._answer_name:
            rows = self._table.rows(split, tables.read_rows(files, notes))
            yield from ((row, row) for row in rows)
            return
        for file in files:
            yield from _with_lines(file, tables.read_rows(file, notes), self._answer_file(file))

    @cached_property
    def _columns(self) -> dict[str, str]:
        """The option that names each column that a row must have."""
        options = self.options
        columns = [] if options.choices else options.choices_column
        named = {name: "prompt" for name in columns_of(options.prompt)}
        if named.pop("question", None):
            named[options.question_column] = "question_column"
        named.pop("choices", None)
        for column in [columns] if isinstance(columns, str) else columns:
            named[column] = "choices_column (or `choices`, if all questions have the same)"
        in_column = self._has_answers and not options.answer_file
        return named | ({options.answer_column: "answer_column"} if in_column else {})

    def _question(self, row: TableRow, label: TableRow) -> tuple[Choices, GoldAnswer | None]:
        """Return the choices of a row and the answer, or None if the row has no label."""
        row.require(self._columns)
        choices, column = self._choices(row), self.options.answer_column
        if self._answer_name:
            return choices, answer_of(label.where, label.value(_LINE), choices)
        if not self._has_answers or is_missing(value := row.value(column)):
            return choices, None
        return choices, answer_of(f"{row.where}: column '{column}'", value, choices)

    def _choices(self, row: TableRow) -> Choices:
        column = self.options.choices_column
        if self.options.choices:
            return Choices(self.options.choices)
        if isinstance(column, str):
            found = choices.in_cell(row, column, self.options.separator, _ADVICE).stripped()
        else:
            found = choices.in_columns(row, column).stripped()
        if self.options.respond_with == "text" and len({*found.texts}) < len(found.texts):
            repeated = next(text for text in found.texts if found.texts.count(text) > 1)
            name = column if isinstance(column, str) else ", ".join(column)
            raise row.mistake(
                f"column '{name}': '{repeated}' occurs more than once among the choices"
            )
        return found

    def _sample(self, row: TableRow, texts: Sequence[str], answer: int | None) -> Sample:
        options = self.options

        def text_of(name: str) -> str:
            if name == "choices":
                return self._lines(texts)
            return row.filled(options.question_column) if name == "question" else row.text(name)

        columns = [name for name in columns_of(options.prompt) if name != "choices"]
        if columns and "question" not in columns:
            row.require_any(columns)
        prompt = fill(options.prompt, text_of)
        id, group = row.id(options.id_column), options.group_of(row)
        return Sample.question(prompt, self._candidates(texts), answer, id=id, group=group)

    @property
    def _letters(self) -> str:
        return ascii_uppercase if self.options.letters == "upper" else ascii_lowercase

    def _lines(self, texts: Sequence[str]) -> str:
        """Return the lines of the choices in the prompt."""
        lettered = zip(self._letters, texts, strict=False)
        line = self.options.choice.format
        return "\n".join(line(letter=letter, text=text) for letter, text in lettered)

    def _candidates(self, texts: Sequence[str]) -> list[str]:
        """Return the complete responses."""
        letters = self._letters[: len(texts)]
        answers = texts if self.options.respond_with == "text" else letters
        return [self.options.response.format(answer=answer) for answer in answers]


def _with_lines(
    file: Path, rows: Iterable[TableRow], answers: Path
) -> Iterator[tuple[TableRow, TableRow]]:
    """Pair each row of a file with a line of the file of its answers."""
    pairs = zip_longest(rows, _lines(answers))
    for number, (row, line) in enumerate(pairs, 1):
        if row is None or line is None:
            longer, shorter = (file, answers) if line is None else (answers, file)
            raise UserError(
                f"{answers}: expected one line per row of {file.name}, but {shorter.name} ends "
                f"after {number - 1} and {longer.name} does not"
            )
        yield row, line


def _lines(path: Path) -> Iterator[TableRow]:
    """Yield each line; blank lines at the end do not count."""
    blank = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    blank += 1
                    continue
                for skipped in range(number - blank, number):
                    yield TableRow(f"{path}:{skipped}", {_LINE: ""})
                blank = 0
                yield TableRow(f"{path}:{number}", {_LINE: line})
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; answer_file names it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error


def _stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file is written again."""
    try:
        state = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), state.st_size, state.st_mtime_ns
