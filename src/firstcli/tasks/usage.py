"""Make the prompt and the candidates of a row from the description of a task's use."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

from firstcli.api import ChoiceForm, InputField, TaskUsage
from firstcli.tasks import choices
from firstcli.tasks.choices import Choices
from firstcli.tasks.tables import TableRow
from firstcli.tasks.templates import columns_of, fill

_CHOICES = "choices"
"""The name that stands for the lines of the choices in a prompt."""


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """What a student reads and chooses from for one row."""

    prompt: str
    candidates: tuple[str, ...]
    """The complete responses; none for an instruction."""
    names: tuple[str, ...]
    """What each candidate is called in the output."""


def built_prompt(usage: TaskUsage, row: TableRow) -> BuiltPrompt:
    """Return the prompt of a row, its candidates and their names.

    Raises:
        UserError: a column is missing, blank or of the wrong type; names the row's place.
    """
    texts = {name: _text(field, row) for name, field in usage.inputs.items()}
    template = next(
        (other for name, other in usage.if_blank.items() if not texts[name].strip()), usage.prompt
    )
    named = [name for name in columns_of(template) if name in texts]
    if named and not any(texts[name].strip() for name in named):
        columns = dict.fromkeys(usage.inputs[name].columns[0] for name in named)
        raise row.mistake(f"the row has no text ({', '.join(columns)})")
    if usage.choices is None:
        candidates = tuple(label.response for label in usage.labels)
        names = tuple(label.name for label in usage.labels)
    else:
        lines, candidates, names = _of_choices(usage.choices, row)
        texts[_CHOICES] = lines
    return BuiltPrompt(fill(template, texts.__getitem__), candidates, names)


def _text(field: InputField, row: TableRow) -> str:
    present = [column for column in field.columns if row.has(column)]
    if field.join is None:
        present = present[:1]
    if not present and field.required != "no":
        row.value(field.columns[0])  # raises the error of a missing column
    texts = {column: row.text(column) for column in present}
    if field.strip:
        texts = {column: text.strip() for column, text in texts.items()}
    if field.join is not None:
        texts = {column: text for column, text in texts.items() if text.strip()}
    parts = [f"{column}: {text}" if field.named else text for column, text in texts.items()]
    text = (field.join or "").join(parts)
    if field.required == "text" and not text.strip():
        raise row.mistake(f"the text is empty (column '{field.columns[0]}')")
    return text.removesuffix(field.without_suffix)


def _of_choices(form: ChoiceForm, row: TableRow) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the lines of the choices in the prompt, the responses, and the choices' texts."""
    found = _choices(form, row)
    alphabet = ascii_uppercase if form.letters == "upper" else ascii_lowercase
    letters = alphabet[: len(found.texts)]
    pairs = list(zip(letters, found.texts, strict=True))
    lines = [form.line.format(letter=letter, text=text) for letter, text in pairs]
    answers = found.texts if form.respond_with == "text" else letters
    responses = tuple(form.response.format(answer=answer) for answer in answers)
    return "\n".join(lines), responses, tuple(found.texts)


def _choices(form: ChoiceForm, row: TableRow) -> Choices:
    if form.separate:
        found = choices.in_columns(row, form.columns)
    else:
        column = next((name for name in form.columns if row.has(name)), form.columns[-1])
        if "." in column and column not in row.values:
            outer, _, inner = column.partition(".")
            row = TableRow(f"{row.where}: column '{outer}'", row.value(outer))
            column = inner
        found = choices.in_cell(row, column, form.separator)
    found = found.stripped() if form.strip else found
    if form.respond_with == "text" and len({*found.texts}) < len(found.texts):
        repeated = next(text for text in found.texts if found.texts.count(text) > 1)
        raise row.mistake(f"'{repeated}' occurs more than once among the choices")
    return found
