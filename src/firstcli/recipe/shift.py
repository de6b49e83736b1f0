"""The section `shift` of an evaluation: its questions again, with other prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from firstcli.api import TaskUsage
from firstcli.recipe.references import AugmenterRef, RecipeSection, mistake
from firstcli.tasks.templates import Template, misfit

ShiftKind = Literal["typos", "case", "dropout", "wording"]
_CHANGES: dict[ShiftKind, str] = {"typos": "typo", "case": "case", "dropout": "drop"}
"""The change that `perturb` makes to a word, by the kind of a shift."""
_MARK = "~"
"""What precedes a shift in the name of an evaluation; names in recipes do not contain it."""
Strength = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Shift:
    """One way to change the prompts of an evaluation."""

    kind: ShiftKind
    strength: float
    """The probability that a word changes; of another wording, its number from 1."""
    augmenter: AugmenterRef
    """What makes one copy of each sample: the changed one."""

    @property
    def label(self) -> str:
        """The shift's name in keys and paths, such as `typos-0.1`."""
        return f"{self.kind}-{self.strength:g}"

    @property
    def key(self) -> str:
        """The recipe's key within the evaluation, such as `shift.typos (0.1)`."""
        return f"shift.{self.kind} ({self.strength:g})"

    @property
    def least_changed(self) -> float:
        """The share of prompts below which the shift does far less than its strength says.

        A text of one word changes with the probability `strength`, and a longer one more often.
        """
        return 0.5 * (1.0 if self.kind == "wording" else self.strength)

    def name_of(self, evaluation: str) -> str:
        """Return the name of an evaluation with this shift, such as `trec~typos-0.1`."""
        return f"{evaluation}{_MARK}{self.label}"


def unshifted(name: str) -> str:
    """Return the name of the evaluation that a recipe states, given that of a shifted one."""
    return name.partition(_MARK)[0]


class Shifts(RecipeSection):
    """The shifts of an evaluation. Each is evaluated by itself; the evaluation stays as it is.

    Only the free text of a prompt changes. The word that ends a prompt, the candidates and the
    right answer stay.
    """

    typos: Annotated[tuple[Strength, ...], Field(strict=False)] = ()
    """Strengths: with this probability, a word is misspelt in one place."""
    case: Annotated[tuple[Strength, ...], Field(strict=False)] = ()
    """Strengths: with this probability, a word is written in small letters, in capital letters, or
    with one capital letter at its beginning, whichever differs from the word."""
    dropout: Annotated[tuple[Strength, ...], Field(strict=False)] = ()
    """Strengths: with this probability, a word is left out. Each text keeps at least one."""
    wording: Annotated[tuple[Template, ...], Field(strict=False)] = ()
    """Other templates for the prompt, with the names of the task's template, such as `{question}`
    and `{choices}`; `{prompt}` stands for the whole prompt of a task without a template. Each ends
    like the task's own, because the same responses follow it."""

    @field_validator("typos", "case", "dropout", "wording")
    @classmethod
    def _differ(cls, values: tuple[float | str, ...]) -> tuple[float | str, ...]:
        shown = [value if isinstance(value, str) else f"{value:g}" for value in values]
        if repeated := [text for number, text in enumerate(shown) if text in shown[:number]]:
            raise mistake(f"found {repeated[0]!r} more than once; leave the repetition out")
        return values

    @model_validator(mode="after")
    def _is_not_empty(self) -> Shifts:
        if not any((self.typos, self.case, self.dropout, self.wording)):
            raise mistake(
                "it names no shift; give one, for example `typos: [0.1]`, or leave it out"
            )
        return self

    def each(self) -> Iterator[Shift]:
        """Yield the shifts, weak ones of a kind before strong ones."""
        for kind, change in _CHANGES.items():
            for strength in sorted(getattr(self, kind)):
                options: dict[str, Any] = {"levels": [strength], "kinds": [change]}
                yield Shift(kind, strength, _augmenter("perturb", options))
        for number, template in enumerate(self.wording, 1):
            options = {"templates": [template], "shuffle": False}
            yield Shift("wording", number, _augmenter("template", options))

    def misfits(self, usage: TaskUsage | None) -> Iterator[tuple[int, str]]:
        """Yield the place in `wording` of each template that does not suit a task, and why.

        Args:
            usage: how the task builds prompts; None: it has no template.
        """
        return misfits(self.wording, usage)


def misfits(templates: Sequence[str], usage: TaskUsage | None) -> Iterator[tuple[int, str]]:
    """Yield the place of each template that does not suit a task, and why.

    Args:
        templates: other wordings of the prompt.
        usage: how the task builds prompts; None: it has no template.
    """
    own = usage.prompt if usage is not None and usage.kind != "prompt" else ""
    for place, template in enumerate(templates):
        if problem := misfit(template, own):
            yield place, problem


def _augmenter(name: str, options: dict[str, Any]) -> AugmenterRef:
    return AugmenterRef.model_validate({"name": name, "options": options})
