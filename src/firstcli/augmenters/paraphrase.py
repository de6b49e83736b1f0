"""Copies in which a text of the prompt is written in other words by the teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from firstcli.api import (
    Augmenter,
    PluginOptions,
    PromptField,
    Sample,
    TrainingPrompt,
    WritingSettings,
)
from firstcli.api.sampling import Temperature, TopP
from firstcli.tasks.templates import Template, fill, of_names

_REQUEST = "Write this in other words, with the same meaning.\nText: {text}\nIn other words:"


class ParaphraseOptions(PluginOptions):
    """What the teacher is asked to write, and how it writes."""

    copies: int = Field(2, ge=1, le=64, description="copies of each sample")
    request: Annotated[Template, of_names("text")] = Field(
        _REQUEST,
        description="template of what the teacher continues; {text} stands for the text",
    )
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    max_new_tokens: int = Field(
        128, ge=1, description="tokens after which a text is given up: it gives no copy"
    )


class Paraphrase(Augmenter[ParaphraseOptions]):
    """Lets the teacher write the longest text of each prompt in other words.

    It suits teachers that follow instructions. The first line of what the teacher writes counts. A
    sample has no copy if its text reaches the end of the prompt, where the answer begins.
    """

    Options = ParaphraseOptions

    @property
    def copies(self) -> int:
        return self.options.copies

    @property
    def writing(self) -> WritingSettings:
        options = self.options
        return WritingSettings(options.temperature, options.top_p, options.max_new_tokens)

    def request(self, prompt: TrainingPrompt, number: int) -> str | None:
        field = _longest(prompt)
        if field is None:
            return None
        text = " ".join(prompt.sample.prompt[field.start : field.end].split())
        return fill(self.options.request, lambda _: text) if text else None

    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        field, (line, broken, _) = _longest(prompt), text.strip().partition("\n")
        if field is None or not line.strip() or not (finished or broken):
            return None
        whole = prompt.sample.prompt
        changed = f"{whole[: field.start]}{line.strip()}{whole[field.end :]}"
        return replace(prompt.sample, prompt=changed)


def _longest(prompt: TrainingPrompt) -> PromptField | None:
    """Return the longest text, the first of several.

    None if it is the end of the prompt, or where it ends is unclear.
    """
    if not prompt.fields or prompt.ambiguous:
        return None
    field = max(prompt.fields, key=lambda field: field.end - field.start)
    return None if field.end >= len(prompt.sample.prompt.rstrip()) else field
