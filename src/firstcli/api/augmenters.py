"""The part of the contract that concerns augmenters: other versions of the training prompts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from firstcli.api.contract import OptionsT, PluginBase, Sample


@dataclass(frozen=True, slots=True)
class PromptField:
    """A part of a prompt that is filled in, such as the question; the rest is the template."""

    name: str
    """The field's name in the task's template; empty if the whole prompt is one field."""
    start: int
    """Index of its first character in the prompt."""
    end: int
    """Index after its last character."""


@dataclass(frozen=True, slots=True)
class TrainingPrompt:
    """A training sample, and what of its prompt is free text."""

    sample: Sample
    fields: tuple[PromptField, ...]
    """The free text of the prompt, in order and without overlap. Neither the template nor the
    choices that the prompt lists belong to it."""
    choices: tuple[PromptField, ...] = ()
    """The texts of the choices that the prompt lists, in the order of the candidates."""
    listing: PromptField | None = None
    """The lines of these choices; None if the prompt lists none, or the same in every prompt."""
    by_letter: bool = False
    """Whether a candidate is the letter of its choice's line, not the choice's text."""
    ambiguous: bool = False
    """Whether the prompt can be cut into fields in several ways, because a text contains what
    separates it from the next one. Then `fields` is one of them, which may be wrong, and whole
    fields must not be moved or rewritten."""

    @property
    def texts(self) -> list[str]:
        """The free text, field by field."""
        return [self.sample.prompt[field.start : field.end] for field in self.fields]


@dataclass(frozen=True, slots=True)
class WritingSettings:
    """How the teacher writes text."""

    temperature: float = 1.0
    """Temperature of the next token's distribution; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens whose probabilities sum to at least this."""
    max_new_tokens: int = 64
    """Tokens after which the teacher is stopped."""


class Augmenter(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.augmenters`: makes copies of training samples.

    A copy has a different prompt. It asks for the same answer: its response, candidates, answer and
    group are those of the sample. Only where candidates are letters, choices may change places;
    then the right letter and the truth change with them. Students learn what the teacher says of
    a copy.
    """

    @property
    @abstractmethod
    def copies(self) -> int:
        """Number of copies of each sample, at least one."""

    @property
    def writing(self) -> WritingSettings | None:
        """How the teacher writes text for the copies, or None if they need none.

        Then `request` and `written` are called instead of `copy`.
        """
        return None

    def request(self, prompt: TrainingPrompt, number: int) -> str | None:
        """Return what the teacher continues for a copy, or None if there is no copy.

        Args:
            prompt: the sample, and what of its prompt is free text.
            number: which of `copies` this is, from 0. Equal requests of different numbers are
                answered differently.
        """
        raise NotImplementedError

    def written(
        self, prompt: TrainingPrompt, number: int, text: str, *, finished: bool
    ) -> Sample | None:
        """Return a copy, given what the teacher wrote, or None if it cannot be used.

        Args:
            prompt: the sample, and what of its prompt is free text.
            number: which of `copies` this is, from 0.
            text: what follows the request.
            finished: whether the teacher ended the text itself.
        """
        raise NotImplementedError

    def read(self, prompts: Iterable[TrainingPrompt]) -> None:
        """Read all training prompts once, before the first copy is made; their order is arbitrary.

        An augmenter that needs nothing but the sample itself leaves this method out.
        """
        return None

    def copy(self, prompt: TrainingPrompt, number: int, random: Random) -> Sample | None:
        """Return a copy of a sample, or None if there is none.

        The result depends on nothing but the arguments and the texts that `read` was given, so it
        is the same in every order of the samples and in every process.

        Args:
            prompt: the sample, and what of its prompt is free text.
            number: which of `copies` this is, from 0.
            random: draws all that is random. It is seeded by the recipe's seed, the sample's id and
                the number.
        """
        raise NotImplementedError
