"""Which columns are text, label, choices, or prompt and response; names and values decide.

Where several columns are equally good, the caller is asked through `Choose`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from string import ascii_lowercase
from typing import Any

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks import choices
from firstcli.tasks.answers import READINGS, Evidence, GoldAnswer, Reading, answer_of
from firstcli.tasks.choices import Choices
from firstcli.tasks.tables import TableRow
from firstcli.wizard.look import (
    DECIMAL,
    LIST,
    MAX_VALUES,
    OBJECT,
    OTHER,
    TEXT,
    TRUTH,
    WHOLE,
    Column,
    Contents,
)
from firstcli.wizard.source import DataSource

TASKS = ("classification", "multiple-choice", "instruction")
SAMPLE_ROWS = 200  # whose choices are parsed
EVIDENCE_ROWS = 20_000  # whose answers decide how answers are read
LONGEST_LABEL = 80  # characters, at the median
LONGEST_CHOICES = 20_000  # characters of a cell that may spell a list of choices
WORDY = 20  # characters: a column with longer texts, at the median, may be a text without a name

Choose = Callable[[str, Sequence[str], str], str]
"""Decides between candidates: what is asked, the candidates, and the option that answers it."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user states about the columns."""

    text: tuple[str, ...] = ()
    label: str | None = None
    task: str | None = None
    answer_as: str | None = None


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """The columns of the task `classification`."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True, slots=True)
class ChoiceQuestions:
    """The columns of the task `multiple-choice`."""

    question: str
    choices: str | tuple[str, ...]
    answer: str
    reading: Reading | None = None
    """How answers are read, if the answers alone do not decide it."""
    context: str | None = None
    """A passage that precedes the question."""
    group: str | None = None
    """A column with the question's subject."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.question,) if self.context is None else (self.context, self.question)

    @property
    def label(self) -> str:
        return self.answer


@dataclass(frozen=True, slots=True)
class Responses:
    """The columns of the task `instruction`."""

    texts: tuple[str, ...]
    """The columns of the prompt."""
    label: str
    """The column of the response."""


@dataclass(frozen=True, slots=True)
class Conversations(Responses):
    """The column of the task `instruction` that holds conversations: both text and response."""


@dataclass(frozen=True, slots=True)
class Prompts(Responses):
    """The columns of the task `instruction` whose rows have no response: a teacher writes them."""


Guess = LabelledTexts | ChoiceQuestions | Responses

_LABELS = (
    *("label", "labels", "category", "class", "target", "intent", "sentiment", "topic", "tag"),
    *("label_text", "label_name", "queue", "department", "emotion", "y", "gold", "output_label"),
)
_TEXTS = (
    *("text", "sentence", "body", "message", "content", "review", "utterance", "tweet", "comment"),
    *("question", "query", "document", "ticket", "description", "input", "prompt", "title"),
)
_PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2")),
    *(("text1", "text2"), ("text_a", "text_b"), ("question", "passage"), ("question", "sentence")),
    *(("subject", "body"), ("title", "body"), ("title", "text"), ("title", "description")),
    *(("subject", "message"), ("subject", "description"), ("title", "content")),
)
"""Columns that together are one text, if the second alone is not called `text`."""
_QUESTIONS = ("question", "question.stem", "stem", "query", "problem", "goal", "prompt", "text")
_CONTEXTS = ("passage", "context", "article", "support")
_ANSWERS = (
    *("answer", "answerkey", "answer_key", "label", "correct_answer", "correct", "correct_option"),
    *("answer_index", "answer_idx", "gold", "target", "solution", "cop", "key"),
)
_GROUPS = ("subject", "category", "topic", "domain")
_PROMPTS = (
    *(("instruction", "input"), ("instruction", "context"), ("instruction",), ("prompt",)),
    *(("question", "input"), ("input",), ("query",), ("question",)),
)
_PROMPT_NAMES = ("prompt", "prompts", "instruction", "question", "query")
"""Names of the column of a table with prompts alone."""
_RESPONSES = ("output", "response", "completion", "answer", "target", "chosen")
_CHOICE_COLUMN = re.compile(
    r"((?:(?:option|opt|op|choice|ending|sol|answer|ans|candidate|alternative)s?[ _.-]?)?)"
    r"([a-z]|[0-9]{1,2})"
)
_IDS = re.compile(
    r"|unnamed: 0|(?:.*[_ .-])?(?:id|ids|uuid|guid|idx|index|key|nr|no|number)", re.IGNORECASE
)
_TIMES = re.compile(r".*(?:date|time|timestamp|created|updated|_at)", re.IGNORECASE)


def guess(source: DataSource, table: Contents, overrides: Overrides, choose: Choose) -> Guess:
    """Say which task suits a table and which columns it uses.

    Args:
        source: the files; their first rows are read again.
        table: what the columns contain.
        overrides: what the user states.
        choose: decides between equally good candidates.

    Raises:
        UserError: a stated column or task does not exist or does not fit, no task fits, or
            `choose` refuses to decide.
    """
    _check(source, table, overrides)
    columns = _Columns(source, table, choose)
    task = overrides.task or _task(columns, overrides)
    if task == "multiple-choice":
        return columns.choice_questions(overrides)
    if task == "instruction":
        return columns.responses(overrides)
    return columns.labelled_texts(overrides)


def _check(source: DataSource, table: Contents, overrides: Overrides) -> None:
    if overrides.task is not None and overrides.task not in TASKS:
        raise UserError(
            f"--task {overrides.task}: unknown task{did_you_mean(overrides.task, TASKS)}; "
            f"expected {', '.join(TASKS)}"
        )
    if overrides.answer_as is not None and overrides.answer_as not in READINGS:
        raise UserError(
            f"--answer-as {overrides.answer_as}: unknown"
            f"{did_you_mean(overrides.answer_as, READINGS)}; expected {', '.join(READINGS)}"
        )
    label = () if overrides.label is None else (("--label", overrides.label),)
    for option, name in (*(("--text", text) for text in overrides.text), *label):
        if name not in table.columns:
            raise UserError(
                f"{option} {name}: {source.given} has no column '{name}'"
                f"{did_you_mean(name, table.columns)}; its columns: "
                f"{shortened(list(table.columns), 20)}"
            )
    if overrides.label in overrides.text:
        raise UserError(f"--label {overrides.label}: this column is also given by --text")


def _task(columns: _Columns, overrides: Overrides) -> str:
    if columns.conversations(overrides):
        return "instruction"
    columns.refuse_missing_header(overrides)
    found = columns.choice_columns()
    if found and columns.answer_columns(overrides):
        return "multiple-choice"
    if found and not overrides.label and _is_named_choices(found):
        return "multiple-choice"  # which then says that the answers name no choice
    responses = columns.prompt_and_response(overrides)
    if not overrides.label and not columns.labels():
        alone = columns.prompts_alone(overrides)
        if alone and (alone.label or alone.texts[0].casefold() in _PROMPT_NAMES):
            return "instruction"
    if responses is None or columns.is_label(responses.label):
        return "classification"
    named = responses.texts[0].casefold() in ("instruction", "prompt")
    return "instruction" if named or not columns.labels() else "classification"


class _Columns:
    """The roles that the columns of one table can have."""

    def __init__(self, source: DataSource, table: Contents, choose: Choose) -> None:
        self._source, self._table, self._choose = source, table, choose
        self._rows = list(islice(source.rows(), SAMPLE_ROWS))
        self._folded = {name.casefold(): name for name in reversed(list(table.columns))}

    def named(self, names: Sequence[str]) -> list[str]:
        """Return the columns of these names, in the order of the names, whatever their case."""
        return [self._folded[name] for name in names if name in self._folded]

    def conversations(self, overrides: Overrides) -> Conversations | None:
        """Return the column that holds conversations, unless the user states other columns."""
        for name, column in self._table.columns.items():
            values = [row.values.get(name) for row in self._rows]
            lists = [value for value in values if isinstance(value, list) and value]
            is_wanted = {name} >= {*overrides.text, overrides.label or name}
            if column.kind == LIST and lists and all(map(_is_conversation, lists)) and is_wanted:
                return Conversations((name,), name)
        return None

    def refuse_missing_header(self, overrides: Overrides) -> None:
        """Refuse a table whose first row was taken as the names of its columns.

        Raises:
            UserError: a name is a value of its own column, or reads like one.
        """
        if overrides.text or overrides.label:
            return
        for name, column in self._table.columns.items():
            if len(name) > LONGEST_LABEL or (column.values is not None and column.values[name] > 0):
                raise UserError(
                    f"{self._source.given}: the first line should name the columns, but "
                    f"'{name[:60]}' reads like a value; add a first line such as text,label, or, "
                    "if it is a name, state --text and --label"
                )

    def labels(self) -> list[str]:
        """Return the columns that can be labels: few values, each in several rows on average."""
        return [name for name in self._table.columns if self.is_label(name)]

    def is_label(self, name: str) -> bool:
        """Whether a column can be a label."""
        column = self._table.columns[name]
        different = column.different
        if different is None or not 2 <= different <= MAX_VALUES or not column.filled:
            return False
        kind = column.kind
        hinted = name.casefold() in _LABELS
        kinds = (TEXT, WHOLE, TRUTH, *((DECIMAL,) if hinted else ()))
        if _IDS.fullmatch(name) or _TIMES.fullmatch(name) or kind not in kinds:
            return False
        short = column.lengths.quantile(0.5) <= LONGEST_LABEL
        return short and different <= column.filled * (0.8 if hinted and different < 20 else 0.5)

    def texts(self) -> list[str]:
        """Return the columns that can be texts, those with more characters first."""
        found = {
            name: column.lengths.quantile(0.5)
            for name, column in self._table.columns.items()
            if column.kind == TEXT and not _IDS.fullmatch(name) and not _TIMES.fullmatch(name)
        }
        return sorted(found, key=lambda name: -found[name])

    def labelled_texts(self, overrides: Overrides) -> LabelledTexts:
        """Return text and label columns.

        Raises:
            UserError: a stated column cannot be one, or none can.
        """
        label = overrides.label or self._label(overrides.text)
        self._check_label(label)
        text = overrides.text or self._text(label)
        for name in text:
            self._check_text(name, "--text")
        return LabelledTexts(text, label)

    def _label(self, text: Sequence[str]) -> str:
        candidates = [name for name in self.labels() if name not in text]
        if not candidates:
            raise UserError(self._no_label())
        named = [name for name in self.named(_LABELS) if name in candidates]
        if len(named) > 1 and self._same(named):
            named = sorted(named, key=lambda name: self._table.columns[name].kind != TEXT)[:1]
        likely = named or candidates
        return likely[0] if len(likely) == 1 else self._ask("the label", likely, "--label")

    def _no_label(self) -> str:
        start = f"{self._source.given}: no column looks like a label (2 to {MAX_VALUES:,} values"
        return (
            f"{start} that repeat); its columns: {self._described(list(self._table.columns))}; "
            "name it with --label, or state --task"
        )

    def _same(self, names: Sequence[str]) -> bool:
        """Whether the columns name the same labels, as `label` and `label_text` do."""
        columns = [self._table.columns[name] for name in names]
        counts = [sorted((column.values or {}).values()) for column in columns]
        return all(count == counts[0] for count in counts)

    def _check_label(self, name: str) -> None:
        column = self._table.columns[name]
        place = f"{self._source.given}: column '{name}'"
        if not column.filled:
            raise UserError(f"{place} is empty, so it cannot be the label")
        if column.kind in (LIST, OBJECT, OTHER, "mixed"):
            raise UserError(f"{place} contains {column.kind}, expected a label as text or number")
        if column.values is None:
            raise UserError(
                f"{place} has more than {MAX_VALUES:,} different or long values, so it cannot be "
                "the label; if it is a response of any length, state --task instruction"
            )
        if len(column.values) < 2:
            raise UserError(f"{place} has the same value in all rows, so there is nothing to learn")
        if len(column.values) == column.filled:
            raise UserError(
                f"{place} has a different value in each of {column.filled:,} rows, so it cannot be "
                "the label"
            )

    def _text(self, label: str) -> tuple[str, ...]:
        candidates = [name for name in self.texts() if name != label]
        if not candidates:
            others = [name for name in self._table.columns if name != label]
            problem = f"its other columns: {self._described(others)}" if others else "it is alone"
            raise UserError(
                f"{self._source.given}: no column besides '{label}' contains text ({problem})"
            )
        for pair in _PAIRS:
            if (found := tuple(self.named(pair))) and len(found) == 2 and {*found} <= {*candidates}:
                return found
        named = [name for name in self.named(_TEXTS) if name in candidates]
        if named:
            return (named[0],)
        wordy = [name for name in candidates if self._median(name) > WORDY] or candidates
        if len(wordy) == 1 or self._median(wordy[0]) > 4 * self._median(wordy[1]):
            return (wordy[0],)
        return (self._ask("the text", wordy, "--text"),)

    def _median(self, name: str) -> int:
        return self._table.columns[name].lengths.quantile(0.5)

    def _check_text(self, name: str, option: str) -> None:
        column = self._table.columns[name]
        if not column.filled or not set(column.native) <= {TEXT, WHOLE}:
            found = column.kind if column.filled else "nothing"
            raise UserError(
                f"{option} {name}: this column contains {found}, expected text or whole numbers"
            )

    def choice_columns(self) -> str | tuple[str, ...] | None:
        """Return the column with all choices of a question, or the columns with one each."""
        for name in self._table.columns:
            if all(self._holds_choices(row, name) for row in self._rows):
                return name
        return _lettered(list(self._table.columns))

    def _holds_choices(self, row: TableRow, name: str) -> bool:
        try:
            value = row.value(name)
            if isinstance(value, str) and len(value) > LONGEST_CHOICES:
                return False
            value = choices.from_notation(value) if isinstance(value, str) else value
            if isinstance(value, list) and _is_conversation(value):
                return False
            labels = [key for key in value if key not in ("text", "label", "key", "value")]
            if isinstance(value, dict) and any(len(str(key)) > 2 for key in labels):
                return False  # an object with other fields
            return len(choices.in_cell(row, name).texts) > 1
        except (UserError, TypeError):
            return False

    def answer_columns(self, overrides: Overrides) -> list[str]:
        """Return the columns whose values name a choice in each of the first rows."""
        found = self.choice_columns()
        if found is None:
            return []
        used = {found} if isinstance(found, str) else {*found}
        others = [name for name in self._table.columns if name not in {*used, *overrides.text}]
        names = [name for name in others if overrides.label in (None, name)]
        return [name for name in names if self._names_choices(name, found)]

    def _names_choices(self, name: str, found: str | tuple[str, ...]) -> bool:
        try:
            answers = [_answer_in(row, name, found) for row in self._rows]
        except UserError:
            return False
        return any(all(a.meaning(reading) is not None for a in answers) for reading in READINGS)

    def choice_questions(self, overrides: Overrides) -> ChoiceQuestions:
        """Return the columns of questions, choices and answers.

        Raises:
            UserError: there are no choices, or no answers that name them.
        """
        found = self.choice_columns()
        if found is None:
            raise UserError(
                f"{self._source.given}: no column contains the choices of each question (a list, "
                "or columns such as A, B, C, D); its columns: "
                f"{self._described(list(self._table.columns))}; if all rows have the same "
                "choices, state --task classification"
            )
        answers = self.answer_columns(overrides)
        if not answers:
            culprit = f"column '{overrides.label}' does not" if overrides.label else "no column"
            verb = "name" if overrides.label else "names"
            shown = f"'{found}'" if isinstance(found, str) else shortened(found, 10)
            raise UserError(
                f"{self._source.given}: {culprit} {verb} one of the choices in {shown} in each of "
                f"the first {len(self._rows)} rows; name the column of the answer with --label"
            )
        named = [name for name in self.named(_ANSWERS) if name in answers]
        answer = (named or answers)[0]
        if not named and len(answers) > 1:
            answer = self._ask("the answer", answers, "--label")
        if len(overrides.text) > 1:
            raise UserError(
                "--text: multiple-choice has one column for the question, but "
                f"{shortened(overrides.text)} are given; name one of them"
            )
        used = {answer, *((found,) if isinstance(found, str) else found)}
        question = overrides.text[0] if overrides.text else self._question(used)
        self._check_text(question, "--text")
        taken = {*used, question}
        free = [name for name in self.named(_CONTEXTS) if name not in taken]
        groups = [
            name for name in self.named(_GROUPS) if name not in taken and name in self.labels()
        ]
        context = next((name for name in free if self._table.columns[name].kind == TEXT), None)
        stated = (reading for reading in READINGS if reading == overrides.answer_as)
        reading = next(stated, None) or self._reading(answer, found)
        group = groups[0] if groups else None
        return ChoiceQuestions(question, found, answer, reading, context, group)

    def _question(self, used: set[str]) -> str:
        inside = {
            name for name in self._table.columns for outer in used if name.startswith(f"{outer}.")
        }
        candidates = [name for name in self.texts() if name not in used | inside]
        named = [name for name in self.named(_QUESTIONS) if name in candidates]
        if named:
            return named[0]
        if not candidates:
            raise UserError(f"{self._source.given}: no column contains the text of a question")
        return self._ask("the question", candidates, "--text")

    def _reading(self, answer: str, found: str | tuple[str, ...]) -> Reading | None:
        """Return how answers are read if that must be stated.

        Mistakes in later rows are left to the task, which names them.
        """
        evidence = Evidence()
        try:
            for row in islice(self._source.rows(), EVIDENCE_ROWS):
                evidence.add(_answer_in(row, answer, found))
        except UserError:  # true and false are read as 1 and 0 only if that is stated
            truths = set(self._table.columns[answer].kinds) == {TRUTH}
            return "index-from-0" if truths else None
        try:
            evidence.readings()
        except UserError:
            fitting = [name for name in READINGS if name not in evidence.misfits]
            if len(fitting) > 1:
                chosen = self._choose(
                    f"{self._source.given}: how do the answers in column '{answer}' name choices?",
                    fitting,
                    "--answer-as",
                )
                return next(name for name in fitting if name == chosen)
        return None

    def prompt_and_response(self, overrides: Overrides) -> Responses | None:
        """Return the stated columns, or those that are named like a prompt and its response."""
        responses = [overrides.label] if overrides.label else self.named(_RESPONSES)
        texts = self.texts()
        for response in responses:
            for names in _PROMPTS:
                prompt = overrides.text or tuple(self.named(names))
                complete = overrides.text or len(prompt) == len(names)
                if complete and response not in prompt and {response, *prompt} <= {*texts}:
                    return Responses(prompt, response)
        return None

    def prompts_alone(self, overrides: Overrides) -> Prompts | None:
        """Return the only text column, or a prompt beside a response that is always empty."""
        texts, empty = self.texts(), [n for n in self.named(_RESPONSES) if self._is_empty(n)]
        prompt = overrides.text or tuple(self.named(("prompt",)) or texts)
        if overrides.label not in (None, *empty) or len(prompt) != 1 or not {*prompt} <= {*texts}:
            return None
        if self.is_label(prompt[0]) or (len(texts) > 1 and not empty):
            return None
        return Prompts(prompt, empty[0] if empty else "")

    def _is_empty(self, name: str) -> bool:
        return not self._table.columns[name].filled

    def responses(self, overrides: Overrides) -> Responses:
        """Return the columns of prompts and responses.

        Raises:
            UserError: there are none.
        """
        if found := self.conversations(overrides) or self.prompt_and_response(overrides):
            return found
        candidates = self.texts()
        if (alone := self.prompts_alone(overrides)) is not None:
            return alone
        if len(candidates) < 2:
            raise UserError(
                f"{self._source.given}: instruction needs a column of prompts and a column of "
                f"responses, or prompts alone; its columns: "
                f"{self._described(list(self._table.columns))}"
            )
        response = overrides.label or self._ask(
            "the response", [name for name in candidates if name not in overrides.text], "--label"
        )
        others = [name for name in candidates if name != response]
        prompt = overrides.text or (self._ask("the prompt", others, "--text"),)
        for name, option in ((response, "--label"), *((name, "--text") for name in prompt)):
            self._check_text(name, option)
        return Responses(prompt, response)

    def _ask(self, what: str, candidates: Sequence[str], option: str) -> str:
        if len(candidates) == 1:
            return candidates[0]
        return self._choose(f"{self._source.given}: which column is {what}?", candidates, option)

    def _described(self, names: Sequence[str]) -> str:
        shown = [f"'{name}' ({described(self._table.columns[name])})" for name in names[:10]]
        more = [f"{len(names) - 10} more"] if len(names) > 10 else []
        return ", ".join([*shown, *more])


def described(column: Column) -> str:
    """Describe a column's values in a few words: `text`, `whole numbers, 12 values`."""
    if not column.filled:
        return "empty"
    different = column.different
    return column.kind if different is None else f"{column.kind}, {different:,} values"


def _is_named_choices(found: str | tuple[str, ...]) -> bool:
    """Whether the columns cannot be anything but choices; A, B, C may be."""
    if isinstance(found, tuple):
        return len(found[0]) > 1
    return found.rpartition(".")[2].casefold() in ("choices", "options", "candidates", "endings")


def _answer_in(row: TableRow, name: str, found: str | tuple[str, ...]) -> GoldAnswer:
    return answer_of(row.where, row.value(name), _choices_of(row, found))


def _choices_of(row: TableRow, found: str | tuple[str, ...]) -> Choices:
    single = isinstance(found, str)
    return (choices.in_cell(row, found) if single else choices.in_columns(row, found)).stripped()  # type: ignore[arg-type]


def _lettered(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return columns such as A, B, C or option_1, option_2: at least two, without a gap."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if match := _CHOICE_COLUMN.fullmatch(name.casefold()):
            groups.setdefault(match[1], []).append((match[2], name))
    for prefix, group in groups.items():
        labels = [label for label, _ in group]
        numbers = (list(map(str, range(start, start + len(group)))) for start in (0, 1))
        series = [list(ascii_lowercase[: len(group)]), *(numbers if prefix else ())]
        if len(group) > (1 if prefix else 2) and labels in series:
            return tuple(name for _, name in group)
    return None


def _is_conversation(value: list[Any]) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return bool(value) and all(
        isinstance(each, dict) and any(pair <= each.keys() for pair in keys) for each in value
    )
