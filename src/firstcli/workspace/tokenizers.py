"""The tokenizers with which the models of a run start; training does not change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

from firstcli.api import ModelRef, Sample
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from firstcli.recipe.references import ModelSection
    from firstcli.recipe.schema import Recipe
    from firstcli.runtime.console import Console
    from firstcli.workspace.units import Role

MOST_TEXTS = 26
"""Candidates of a sample that are all read when a tokenizer is trained; of more, only the right
one is."""


class Tokenizers:
    """The tokenizers of teacher and student, each loaded once."""

    def __init__(
        self, recipe: Recipe, console: Console, samples: Callable[[], Iterable[Sample]]
    ) -> None:
        """Load nothing yet.

        Args:
            recipe: the recipe.
            console: shows what is loaded.
            samples: reads the samples on whose text a tokenizer may be trained.
        """
        self._recipe, self._console, self._samples = recipe, console, samples
        self.of = cache(self._load)
        """Returns the tokenizer of a role; raises UserError if it does not fit the recipe."""

    def section(self, role: Role) -> ModelSection:
        """Return the recipe's section of a role's model."""
        if role == "student":
            return self._recipe.student.model
        if self._recipe.teacher is None:
            raise UserError("teacher: missing; only arms with 'learn: labels' work without one")
        return self._recipe.teacher.model

    def _load(self, role: Role) -> PreTrainedTokenizerBase:
        section = self.section(role)
        family = section.build()
        if role == "student" and family.uses_teacher_tokenizer:
            if self._recipe.teacher is None:
                raise UserError(
                    f"student.model: family '{section.family}' uses the teacher's tokenizer, but "
                    "the recipe has no teacher; add one"
                )
            return self.of("teacher")
        text = _texts(self._samples()) if family.needs_text else ()
        with self._console.status(f"loading the {role}'s tokenizer"):
            own = family.tokenizer(ModelRef(section.checkpoint, section.revision), text)
        if role == "student" and self._recipe.student.eos == "teacher":
            _use_eos(own, self.of("teacher"))
        return own

    def continuations(
        self, prompt: str, responses: Sequence[str]
    ) -> list[list[tuple[int, ...] | None]]:
        """Return each response's tokens after a prompt, as `firstcli.api.ResponseTokens` does."""
        from firstcli.data.joint import JointEncoder, identity

        roles: tuple[Role, ...] = ("teacher", "student") if self._recipe.teacher else ("student",)
        different = {identity(tokenizer): tokenizer for tokenizer in map(self.of, roles)}
        return [
            JointEncoder(tokenizer).continuations(prompt, responses)
            for tokenizer in different.values()
        ]


def _texts(samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        responses = sample.candidates if len(sample.candidates) <= MOST_TEXTS else ()
        for response in responses or (sample.response,):
            yield sample.prompt + response


def _use_eos(own: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Let the student's tokenizer end texts like the teacher's.

    Raises:
        UserError: it does not have the teacher's token.
    """
    eos = teacher.eos_token
    if eos is None or own.get_vocab().get(str(eos)) != teacher.eos_token_id:
        found = "has none" if eos is None else f"is '{eos}' ({teacher.eos_token_id})"
        raise UserError(
            f"student.eos: the teacher's end-of-sequence token {found}, which the student's "
            "tokenizer does not have; set student.eos: student, or choose other models"
        )
    own.eos_token = eos
