"""Copies with other wordings of a task's prompt template, and with choices in another order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Annotated

from pydantic import AfterValidator, Field

from firstcli.api import Augmenter, PluginOptions, Sample, TrainingPrompt, UserError
from firstcli.tasks.templates import Template, columns_of, fill

_WHOLE = "prompt"
"""The name of a prompt that is one text without a template."""
_CHOICES = "choices"
_REFERENCE = re.compile(
    r"\b(all|none|both|neither|either|any|two|three) (of|the)\b|\babove\b|\bbelow\b"
    r"|\b[A-Z] (and|or|nor) [A-Z]\b|\([A-Za-z]\)",
    re.IGNORECASE,
)
"""What a choice says of other choices or of their places."""


def _different(templates: list[str]) -> list[str]:
    if len({*templates}) < len(templates):
        raise ValueError("a template is listed twice")
    return templates


class RewordedOptions(PluginOptions):
    """The other wordings."""

    templates: Annotated[list[Template], AfterValidator(_different)] = Field(
        min_length=1,
        max_length=64,
        description="one copy per template: a prompt in other words, with the names of the task's "
        "template, such as {question} and {choices}; {prompt} stands for the whole prompt of a "
        "task without a template",
        examples=[["Here is a question: {question}\n{choices}\nThe right letter is"]],
    )
    shuffle: bool = Field(
        True,
        description="whether the choices of a row are listed in random order, unless one of them "
        "refers to others, as `none of the above` does",
    )


class Reworded(Augmenter[RewordedOptions]):
    """Fills the texts of each prompt into other templates.

    Each template ends like that of the task, so that the same responses can follow it. A prompt is
    left out if a text contains what separates it from the next one, so that it may end elsewhere.
    """

    Options = RewordedOptions

    def __init__(self, options: RewordedOptions) -> None:
        super().__init__(options)
        self._known: set[str] = set()

    @property
    def copies(self) -> int:
        return len(self.options.templates)

    def read(self, prompts: Iterable[TrainingPrompt]) -> None:
        """Collect the names of the texts, and require those of the templates.

        Raises:
            UserError: a template contains a name that no prompt has.
        """
        for prompt in prompts:
            self._known |= {field.name or _WHOLE for field in prompt.fields}
            if prompt.listing:
                self._known.add(_CHOICES)
        for template in self.options.templates:
            for name in columns_of(template):
                if name not in self._known:
                    known = ", ".join(f"{{{each}}}" for each in sorted(self._known))
                    raise UserError(
                        f"template: unknown {{{name}}}; the prompts of the training task have "
                        f"{known or 'no texts'}"
                    )

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        if not prompt.fields or prompt.ambiguous:
            return None
        texts = {
            field.name or _WHOLE: text
            for field, text in zip(prompt.fields, prompt.texts, strict=True)
        }
        sample = prompt.sample
        if prompt.listing:
            order = list(range(len(prompt.choices)))
            if self.options.shuffle and not _refer_to_each_other(prompt):
                random.shuffle(order)
            texts[_CHOICES] = _lines(prompt, order)
            if prompt.by_letter:
                sample = _in_order(sample, order)
        filled = fill(self.options.templates[number], lambda name: texts.get(name, ""))
        return replace(sample, prompt=filled)


def _refer_to_each_other(prompt: TrainingPrompt) -> bool:
    text = prompt.sample.prompt
    return any(_REFERENCE.search(text[choice.start : choice.end]) for choice in prompt.choices)


def _lines(prompt: TrainingPrompt, order: list[int]) -> str:
    """Return the lines of the choices; line i holds the text of choice `order[i]`."""
    text, listing = prompt.sample.prompt, prompt.listing
    assert listing
    parts, end = [], listing.start
    for choice, index in zip(prompt.choices, order, strict=True):
        other = prompt.choices[index]
        parts += [text[end : choice.start], text[other.start : other.end]]
        end = choice.end
    return "".join([*parts, text[end : listing.end]])


def _in_order(sample: Sample, order: list[int]) -> Sample:
    """Return a sample whose letter i stands for what was choice `order[i]`."""
    if sample.answer is None:
        return sample
    answer = order.index(sample.answer)
    truth = None if sample.truth is None else tuple(sample.truth[index] for index in order)
    return replace(sample, answer=answer, response=sample.candidates[answer], truth=truth)
