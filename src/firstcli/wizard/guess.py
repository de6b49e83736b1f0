"""Which columns are text, label, choices, or prompt and response; names and values decide.

Where several columns are equally good, the caller is asked through `Choose`.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.answers import READINGS
from firstcli.wizard.choice_columns import ChoiceColumns, is_named_choices
from firstcli.wizard.columns import LABELS, is_conversation
from firstcli.wizard.look import LIST, MAX_VALUES, OBJECT, OTHER, TEXT, Contents
from firstcli.wizard.roles import (
    Choose,
    Conversations,
    Guess,
    LabelledTexts,
    Overrides,
    Prompts,
    Responses,
)
from firstcli.wizard.source import DataSource

TASKS = ("classification", "multiple-choice", "instruction")
WORDY = 20  # characters: a column with longer texts, at the median, may be a text without a name

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
_PROMPTS = (
    *(("instruction", "input"), ("instruction", "context"), ("instruction",), ("prompt",)),
    *(("question", "input"), ("input",), ("query",), ("question",)),
)
_PROMPT_NAMES = ("prompt", "prompts", "instruction", "question", "query")
"""Names of the column of a table with prompts alone."""
_RESPONSES = ("output", "response", "completion", "answer", "target", "chosen")


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
    if found and not overrides.label and is_named_choices(found):
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


class _Columns(ChoiceColumns):
    """The roles that the columns of one table can have."""

    def conversations(self, overrides: Overrides) -> Conversations | None:
        """Return the column that holds conversations, unless the user states other columns."""
        for name, column in self._table.columns.items():
            values = [row.values.get(name) for row in self._rows]
            lists = [value for value in values if isinstance(value, list) and value]
            is_wanted = {name} >= {*overrides.text, overrides.label or name}
            if column.kind == LIST and lists and all(map(is_conversation, lists)) and is_wanted:
                return Conversations((name,), name)
        return None

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
        named = [name for name in self.named(LABELS) if name in candidates]
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
        texts, empty = (
            self.texts(),
            [n for n in self.named(_RESPONSES) if n.casefold() not in LABELS and self._is_empty(n)],
        )
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
