"""The columns of questions with choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from string import ascii_lowercase

from firstcli.errors import UserError, shortened
from firstcli.tasks import choices
from firstcli.tasks.answers import READINGS, Evidence, GoldAnswer, Reading, answer_of
from firstcli.tasks.choices import Choices
from firstcli.tasks.tables import TableRow
from firstcli.wizard.columns import TableColumns, is_conversation
from firstcli.wizard.look import TEXT, TRUTH
from firstcli.wizard.roles import ChoiceQuestions, Overrides

EVIDENCE_ROWS = 20_000  # whose answers decide how answers are read
LONGEST_CHOICES = 20_000  # characters of a cell that may spell a list of choices

_QUESTIONS = ("question", "question.stem", "stem", "query", "problem", "goal", "prompt", "text")
_CONTEXTS = ("passage", "context", "article", "support")
_ANSWERS = (
    *("answer", "answerkey", "answer_key", "label", "correct_answer", "correct", "correct_option"),
    *("answer_index", "answer_idx", "gold", "target", "solution", "cop", "key"),
)
_GROUPS = ("subject", "category", "topic", "domain")
_CHOICE_COLUMN = re.compile(
    r"((?:(?:option|opt|op|choice|ending|sol|answer|ans|candidate|alternative)s?[ _.-]?)?)"
    r"([a-z]|[0-9]{1,2})"
)


class ChoiceColumns(TableColumns):
    """The columns of a table that may contain questions with choices."""

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
            if isinstance(value, list) and is_conversation(value):
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


def is_named_choices(found: str | tuple[str, ...]) -> bool:
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
