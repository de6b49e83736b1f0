"""What a student wrote of a question, taken apart: its steps, their tokens, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from firstcli.api import ExplanationForm, split_steps
from firstcli.data.reasoning import step_spans
from firstcli.data.token_texts import token_spans, tokens_of
from firstcli.models.generation import text_places, written_text


@dataclass(frozen=True, slots=True)
class ReadThought:
    """A text that a student wrote."""

    text: str
    prefixes: tuple[str, ...]
    """The text up to the sentence with the answer after its first j steps, for j = 0..S."""
    tokens: tuple[tuple[int, int], ...]
    """The tokens of each step."""
    answer: str | None


@dataclass(frozen=True, slots=True)
class ThoughtReader:
    """Takes texts apart."""

    tokenizer: PreTrainedTokenizerBase
    form: ExplanationForm | None
    """How responses are made of steps and answer; None if they are an answer alone."""
    ends: Sequence[int]
    """The tokens that end a text."""

    def __call__(self, prompt: Sequence[int], ids: Sequence[int], with_places: bool) -> ReadThought:
        """Take a text apart.

        Args:
            prompt: the tokens of the question.
            ids: the tokens that the student wrote.
            with_places: whether the tokens of the steps are needed.
        """
        text, form = written_text(self.tokenizer, prompt, ids, self.ends), self.form
        if form is None:
            return ReadThought(text, ("",), (), None)
        found = form.read(text)
        spans = step_spans(text, split_steps(found.explanation, form.step_rule))
        # The student's own text, which need not have the form of the task between two steps.
        prefixes = (form.opening, *(text[:end] + form.separator for _, end in spans))
        tokens = self._tokens(text, spans, ids) if with_places else ()
        return ReadThought(text, prefixes, tokens, found.answer)

    def _tokens(
        self, text: str, steps: Sequence[tuple[int, int]], ids: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        """Return the tokens of each step, half-open ranges.

        Args:
            text: the written text.
            steps: the characters of each step.
            ids: the tokens that the student wrote.
        """
        places = text_places(self.tokenizer, ids, self.ends)
        alone, spans = token_spans(self.tokenizer, [ids[place] for place in places])
        dropped = len(text) - len(alone)  # decoders drop the space before the first token
        found = tokens_of([(start - dropped, end - dropped) for start, end in steps], spans)
        after = [*places, len(ids)]
        return tuple(
            (after[start], after[end - 1] + 1 if end > start else after[start])
            for start, end in found
        )
