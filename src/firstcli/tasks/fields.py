"""Find the free text in the prompts that a task has built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import Formatter, ascii_lowercase, ascii_uppercase

from firstcli.api import ChoiceForm, PromptField, Sample, TaskUsage, TrainingPrompt

_CHOICES = "choices"
_Piece = tuple[str, str]
"""A part of a template that never changes, and the name of the field after it, which may be
empty: there is none."""


def training_prompt(sample: Sample, usage: TaskUsage | None) -> TrainingPrompt:
    """Return a sample with the fields of its prompt.

    Args:
        sample: a sample of a task.
        usage: how the task builds prompts; None, or a usage without a template: the whole prompt is
            one field.
    """
    whole = PromptField("", 0, len(sample.prompt))
    if usage is None or usage.kind == "prompt":
        return TrainingPrompt(sample, (whole,))
    for template in (usage.prompt, *usage.if_blank.values()):
        pieces = list(_pieces(template, usage.choices, len(sample.candidates)))
        if (found := _found(sample.prompt, pieces)) is not None:
            choices = tuple(field for field in found if field.name == _CHOICES)
            free = tuple(field for field in found if field.name != _CHOICES)
            unclear = _is_ambiguous(sample.prompt, pieces)
            if usage.choices is None or len(choices) < len(sample.candidates):
                return TrainingPrompt(sample, free, ambiguous=unclear)
            by_letter = usage.choices.respond_with == "letter"
            listing = _listing(usage.choices, choices)
            return TrainingPrompt(sample, free, choices, listing, by_letter, unclear)
    return TrainingPrompt(sample, ())  # nothing is known to be free


def _pieces(template: str, form: ChoiceForm | None, count: int) -> Iterator[_Piece]:
    """Yield the pieces of a template, in which the lines of the choices are spelt out.

    Args:
        template: the template of a prompt.
        form: how choices are shown, if a sample has its own.
        count: the number of choices.
    """
    text = ""
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name == _CHOICES and form is not None:
            letters = (ascii_uppercase if form.letters == "upper" else ascii_lowercase)[:count]
            for number, letter in enumerate(letters):
                text += "\n" if number else ""
                for before, inner, _, _ in Formatter().parse(form.line):
                    text += before + (letter if inner == "letter" else "")
                    if inner == "text":
                        yield text, _CHOICES
                        text = ""
        elif name is not None:
            yield text, name
            text = ""
    yield text, ""


def _listing(form: ChoiceForm, choices: Sequence[PromptField]) -> PromptField:
    """Return the lines of the choices, given the places of their texts."""
    parts = [part for part in form.line.format(letter="X", text="\0").split("\0")]
    start, end = choices[0].start - len(parts[0]), choices[-1].end + len(parts[-1])
    return PromptField(_CHOICES, start, end)


def _found(prompt: str, pieces: list[_Piece]) -> tuple[PromptField, ...] | None:
    """Return the fields of a prompt that was made of these pieces; None if it was not.

    Where a field's text contains what follows it in the template, the field ends there: its rest
    then counts as part of the next field, see `_is_ambiguous`.
    """
    fields: list[PromptField] = []
    name, start = "", 0
    *before, (last, _) = pieces
    if not prompt.endswith(last):
        return None
    limit = len(prompt) - len(last)
    for number, (literal, next_name) in enumerate(before):
        at = prompt.find(literal, start, limit)
        if at < 0 or (number == 0 and at > 0):
            return None
        if name and at > start:
            fields.append(PromptField(name, start, at))
        name, start = next_name, at + len(literal)
    if start > limit:
        return None
    if name and limit > start:
        fields.append(PromptField(name, start, limit))
    return tuple(fields)


def _is_ambiguous(prompt: str, pieces: list[_Piece]) -> bool:
    """Return whether a prompt that was made of these pieces can be cut in another way, too.

    It can if the first places where the pieces fit differ from the last ones.
    """
    *before, (last, _) = pieces
    literals = [literal for literal, _ in before[1:]]
    start = len(before[0][0]) if before else 0
    end = len(prompt) - len(last)
    first, at = [], start
    for literal in literals:
        first.append(prompt.find(literal, at, end))
        at = first[-1] + len(literal)
    latest, limit = [], end
    for literal in reversed(literals):
        latest.append(prompt.rfind(literal, start, limit))
        limit = latest[-1]
    return first != latest[::-1]
