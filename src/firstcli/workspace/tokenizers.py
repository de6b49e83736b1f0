"""The tokenizers with which the models of a run start; training does not change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.api import ModelRef, Sample
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from firstcli.data.chat import ChatFormat
    from firstcli.recipe.references import ModelSection, TaskRef
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
        self._own = cache(self._loaded)
        """Returns it with no other template than that of its checkpoint or of the recipe."""
        self._formats: dict[tuple[Role, str | None], ChatFormat] = {}

    @property
    def _roles(self) -> tuple[Role, ...]:
        return ("teacher", "student") if self._recipe.teacher else ("student",)

    @cached_property
    def _are_chats(self) -> bool:
        """Whether samples are rendered with a chat template."""
        training = self._recipe.train.task
        if any(task.chat for task in (training, *(each.task for each in self._recipe.evaluate))):
            return True
        if training.plugin.has_candidates:
            return False
        first = next(iter(self._samples()), None)
        return first is not None and bool(first.messages)

    def section(self, role: Role) -> ModelSection:
        """Return the recipe's section of a role's model."""
        if role == "student":
            return self._recipe.student.model
        if self._recipe.teacher is None:
            raise UserError("teacher: missing; only arms with 'learn: labels' work without one")
        return self._recipe.teacher.model

    def _load(self, role: Role) -> PreTrainedTokenizerBase:
        own = self._own(role)
        if getattr(own, "chat_template", None) or not self._are_chats:
            return own
        for other in self._roles:  # its model is saved with the template, so that others can use it
            if template := getattr(self._own(other), "chat_template", None):
                own.chat_template = template
        return own

    def _loaded(self, role: Role) -> PreTrainedTokenizerBase:
        section = self.section(role)
        family = section.build()
        if role == "student" and family.uses_teacher_tokenizer:
            if self._recipe.teacher is None:
                raise UserError(
                    f"student.model: family '{section.family}' uses the teacher's tokenizer, but "
                    "the recipe has no teacher; add one"
                )
            return self._own("teacher")
        text = _texts(self._samples()) if family.needs_text else ()
        with self._console.status(f"loading the {role}'s tokenizer"):
            own = family.tokenizer(ModelRef(section.checkpoint, section.revision), text)
        if section.chat_template is not None:
            own.chat_template = _template(section.chat_template, role)
        if role == "student" and self._recipe.student.eos == "teacher":
            _use_eos(own, self._own("teacher"))
        return own

    def chat_format(self, role: Role, task: TaskRef, where: str) -> ChatFormat | None:
        """Return how a task's samples are rendered for a role; None if they are no chat.

        Args:
            role: the role.
            task: the task.
            where: the task's key in the recipe, for messages.

        Raises:
            UserError: no tokenizer has a template, or the role's template does not suit.
        """
        from firstcli.data.chat import ChatFormat, has_template

        if task.chat is False:
            return None
        tokenizer = self.of(role)  # which has a template if any has
        if not has_template(tokenizer):
            if task.chat == "auto":
                return None
            raise UserError(
                f"{where}.chat: no model of this recipe has a chat template; give an instruct "
                "model, or a template of your own with `chat_template: FILE` beside the model's "
                "`family`, or set `chat: false`"
            )
        key = role, task.system
        if key not in self._formats:
            try:
                self._formats[key] = ChatFormat(tokenizer, task.system)
            except UserError as error:
                raise UserError(f"{where} ({role}'s tokenizer): {error}") from error
        return self._formats[key]

    def continuations(
        self, task: TaskRef, where: str, prompt: str, responses: Sequence[str]
    ) -> list[list[tuple[int, ...] | None]]:
        """Return each response's tokens after a prompt, as `firstcli.api.ResponseTokens` does.

        Args:
            task: the task, which determines whether the texts are rendered as a chat.
            where: the task's key in the recipe, for messages.
            prompt: the prompt.
            responses: the responses.
        """
        from firstcli.data.joint import JointEncoder, identity

        encoders: dict[tuple[str, str], JointEncoder] = {}
        for role in self._roles:
            tokenizer, chat = self.of(role), self.chat_format(role, task, where)
            key = identity(tokenizer), chat.identity if chat else ""
            encoders[key] = JointEncoder(tokenizer, chat=chat)
        return [encoder.continuations(prompt, responses) for encoder in encoders.values()]


def _template(path: Path, role: Role) -> str:
    """Read a chat template.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{role}.model.chat_template: {path}: cannot be read: {error}") from error


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
