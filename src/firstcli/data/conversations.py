"""Encode conversations through a chat template, and find the tokens of the supervised turns.

Where the template marks what the assistant generates with `{% generation %}`, these marks decide.
Otherwise the conversation is rendered up to a turn with the generation prompt, and up to its end:
the first text must be the beginning of the second, and the second that of the whole conversation.
The turn is what lies between. If later turns change earlier ones, nothing says which text a model
should learn, so such a conversation is refused.

A turn ends with what the template writes after it, such as `<|im_end|>`, because a model must learn
to stop; white space at its end, which separates it from the next turn, is not supervised. After the
last turn some templates write EOS, too, which is then supervised with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from firstcli.api import Sample
from firstcli.data.chat import on_a_fixed_day
from firstcli.data.findings import Findings
from firstcli.data.joint import Ids, JointEncoder, Offsets
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 512  # conversations encoded at a time, because offsets are large
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = list[dict[str, str]]
Span = tuple[int, int]
"""The first item of a turn and the one after its last: of its characters, or of its tokens."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """A conversation as tokens."""

    sample: Sample
    input_ids: npt.NDArray[np.int32]  # (L,)
    positions: npt.NDArray[np.int64]  # (N,), indices of the supervised tokens, ascending


class _AmbiguousTurnError(Exception):
    """A conversation whose turns cannot be found; the message says why, and what to do."""


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what determines how a tokenizer writes conversations."""
    content = [getattr(tokenizer, "chat_template", None), tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


class ConversationEncoder:
    """Encodes conversations with one tokenizer and its chat template."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mistakes: Findings, notes: Findings
    ) -> None:
        """Look at the template; nothing is encoded yet.

        Args:
            tokenizer: a fast tokenizer.
            mistakes: takes the samples that cannot be encoded.
            notes: takes what the user should know.

        Raises:
            UserError: the tokenizer has no chat template or no character offsets.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"{mistakes.where}: the samples are conversations, but the tokenizer has no chat "
                "template; choose an instruct model, or state `chat_template: FILE` beside the "
                "model's `family`"
            )
        self._tokenizer: Any = tokenizer
        self._mistakes, self._notes = mistakes, notes
        self._is_marked = bool(_MARKS.search(self._tokenizer.get_chat_template()))
        special = tokenizer.convert_ids_to_tokens(sorted(JointEncoder(tokenizer).special_ids))
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")

    def __call__(self, samples: Iterable[Sample]) -> Iterator[EncodedConversation]:
        """Encode conversations in order, except those with mistakes."""
        remaining = iter(samples)
        while chunk := list(islice(remaining, _CHUNK)):
            for sample in chunk:
                self._look(sample)
            encode = self._marked if self._is_marked else self._by_prefix
            for sample, ids, spans in encode(chunk):
                positions = np.concatenate([np.arange(*span) for span in spans])
                yield EncodedConversation(sample, np.asarray(ids, np.int32), positions)

    def _look(self, sample: Sample) -> None:
        """Note special tokens in messages: a model reads a border between turns there."""
        for number, message in enumerate(sample.messages, 1):
            if found := self._special.search(message.content):
                text = f"message {number} contains {found[0]!r}, encoded as a special token"
                self._notes.add("special", sample.id, partial(str, text))

    def _applied(self, messages: Messages, **settings: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                chat_template=on_a_fixed_day(self._tokenizer),
                enable_thinking=False,
                **settings,
            )
        except Exception as error:  # a template may fail in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            roles = ", ".join(message["role"] for message in messages[:4])
            more = ", ..." if len(messages) > 4 else ""
            raise _AmbiguousTurnError(
                f"the chat template cannot render messages by {roles}{more} ({reason}); change "
                "the data, or use a different template"
            ) from error

    def _tokens(self, texts: Sequence[str]) -> list[tuple[Ids, Offsets]]:
        batch = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))

    # Generation marks.

    def _marked(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Ids, list[Span]]]:
        for sample in samples:
            try:
                yield sample, *self._marked_spans(sample)
            except _AmbiguousTurnError as error:
                self._mistakes.add("turn", sample.id, partial(str, error))

    def _marked_spans(self, sample: Sample) -> tuple[Ids, list[Span]]:
        """Return the tokens of a conversation, and the spans that the template marks."""
        messages = _as_dicts(sample)
        found = self._applied(
            messages,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        )
        borders = np.flatnonzero(np.diff([0, *found["assistant_masks"], 0])).tolist()
        spans = list(zip(borders[::2], borders[1::2], strict=True))
        turns = [i for i, message in enumerate(sample.messages) if message.role == "assistant"]
        if len(spans) != len(turns):
            raise _AmbiguousTurnError(
                f"the chat template marks {len(spans)} texts with {{% generation %}}, but the "
                f"assistant has {len(turns)} turns; let it mark each of them once"
            )
        whole = self._applied(messages, tokenize=False)
        offsets = found["offset_mapping"]
        learned = [
            _without_end(span, whole, offsets)
            for span, turn in zip(spans, turns, strict=True)
            if turn in sample.supervised
        ]
        return found["input_ids"], learned

    # Prefix difference.

    def _by_prefix(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Ids, list[Span]]]:
        rendered: list[tuple[Sample, str, list[Span]]] = []
        for sample in samples:
            messages = _as_dicts(sample)
            try:
                whole = self._applied(messages, tokenize=False)
                spans = [self._characters(i, messages, whole) for i in sample.supervised]
                rendered.append((sample, whole, spans))
            except _AmbiguousTurnError as error:
                self._mistakes.add("turn", sample.id, partial(str, error))
        if not rendered:
            return
        whole_texts = self._tokens([whole for _, whole, _ in rendered])
        prompts = self._tokens([whole[: spans[0][0]] for _, whole, spans in rendered])
        for (sample, whole, spans), (ids, offsets), (alone, _) in zip(
            rendered, whole_texts, prompts, strict=True
        ):
            try:
                tokens = [
                    self._token_span(whole, span, ids, offsets, _name(i, len(sample.messages)))
                    for i, span in zip(sample.supervised, spans, strict=True)
                ]
            except _AmbiguousTurnError as error:
                self._mistakes.add("border", sample.id, partial(str, error))
                continue
            if ids[: tokens[0][0]] != alone:
                self._notes.add("prompt", sample.id, partial(str, _CHANGED_PROMPT))
            for i, (_, end) in zip(sample.supervised, spans, strict=True):
                if whole[:end].endswith(sample.messages[i].content.strip()):
                    self._notes.add("end", sample.id, partial(str, _NO_END))
                    break
            yield sample, ids, tokens

    def _characters(self, number: int, messages: Messages, whole: str) -> Span:
        """Return the characters of a turn.

        Args:
            number: index of the turn.
            messages: the conversation.
            whole: its text.
        """
        name = _name(number, len(messages))
        start = self._applied(messages[:number], tokenize=False, add_generation_prompt=True)
        until = self._applied(messages[: number + 1], tokenize=False)
        if not whole.startswith(until) and (eos := self._tokenizer.eos_token):
            until = until.removesuffix(eos)  # which some templates write after the last turn
        if not whole.startswith(until):
            raise _AmbiguousTurnError(
                f"the chat template writes {name} differently when other messages follow "
                f"({_difference(until, whole)}); set supervise: last, or {_MARK_THEM}"
            )
        if not until.startswith(start):
            raise _AmbiguousTurnError(
                f"{name} does not continue the generation prompt of the chat template "
                f"({_difference(start, until)}); {_MARK_THEM}"
            )
        turn, content = until[len(start) :], messages[number]["content"].strip()
        if not turn.lstrip().startswith(content):
            raise _AmbiguousTurnError(
                f"the chat template changes the text of {name} "
                f"({_difference(content, turn.lstrip())}); change the data, or {_MARK_THEM}"
            )
        return len(start), len(start) + len(turn.rstrip())

    def _token_span(self, whole: str, span: Span, ids: Ids, offsets: Offsets, name: str) -> Span:
        """Return the tokens of a span of characters.

        Args:
            whole: the text.
            span: the characters.
            ids: the text's tokens.
            offsets: the characters of each token.
            name: what the span is, for messages.

        Raises:
            _AmbiguousTurnError: a token lies on both sides of a border.
        """
        start, end = span
        first = next(i for i, (_, until) in enumerate(offsets) if until > start)
        crosses = offsets[first][0] < start
        if not crosses and (offsets[first - 1][1] if first else 0) < start:
            # White space before the border has no token, or its token is that of the next word.
            [(alone, _)] = self._tokens([whole[:start]])
            crosses = alone != ids[:first]
        if crosses:
            raise _AmbiguousTurnError(_crossing(whole, start, name))
        last = max(i for i, (begin, _) in enumerate(offsets) if begin < end)
        if whole[end : offsets[last][1]].strip():
            raise _AmbiguousTurnError(_crossing(whole, end, name))
        return first, last + 1


_MARK_THEM = "use a template that marks the assistant's turns with {% generation %}"
_CHANGED_PROMPT = (
    "the last tokens before a turn of the assistant are different ones when it follows; models "
    "that are given the prompt alone read other tokens there"
)
_NO_END = "the chat template writes nothing after the assistant's text, so no end is learned"


def _as_dicts(sample: Sample) -> Messages:
    return [{"role": message.role, "content": message.content} for message in sample.messages]


def _name(number: int, count: int) -> str:
    return f"message {number + 1} of {count}"


def _difference(expected: str, found: str) -> str:
    """Show the first place where two texts differ."""
    pairs = enumerate(zip(expected, found, strict=False))
    place = next((i for i, (one, other) in pairs if one != other), min(len(expected), len(found)))
    first = max(place - 10, 0)
    return f"{expected[first : place + 20]!r} becomes {found[first : place + 20]!r}"


def _crossing(whole: str, border: int, name: str) -> str:
    return (
        f"a token crosses the border of {name}, between {whole[max(border - 10, 0) : border]!r} "
        f"and {whole[border : border + 10]!r}; use a template with a line end or a special token "
        "there"
    )


def _without_end(span: Span, whole: str, offsets: Offsets) -> Span:
    """Return a span of tokens without those at its end that are white space."""
    first, end = span
    while end - first > 1 and not whole[slice(*offsets[end - 1])].strip():
        end -= 1
    return first, end
