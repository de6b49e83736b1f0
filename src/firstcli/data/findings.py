"""What a tokenizer does to samples that is wrong or unexpected: one message per kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from firstcli.data.joint import Ids, JointEncoder, JointEncoding
from firstcli.errors import Message, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN = 8
"""Tokens that a message shows."""
_MARKER = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>")
"""What separates turns in the chat templates of many models."""


@dataclass
class Findings:
    """The samples of one set in which something was found, by kind."""

    where: str
    """The recipe's key, which begins every error message."""
    texts: dict[str, str] = field(default_factory=dict)
    """What was found in the first sample of each kind, and what to do."""
    ids: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, sample_id: str | None, text: Callable[[], str]) -> None:
        """Note that something was found in a sample; `text` describes it in the first one."""
        if kind not in self.texts:
            self.texts[kind] = text()
        self.ids.setdefault(kind, []).append(str(sample_id))

    def raise_any(self) -> None:
        """Raise UserError with one message per kind, if anything was found."""
        if self.texts:
            raise UserError(
                *(Message(f"{self.where}: {text}", kind, self.where) for kind, text in self)
            )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield each kind and its message, which names the first sample and counts the others."""
        for kind, text in self.texts.items():
            ids = self.ids[kind]
            others = f" (and {len(ids) - 1} other samples)" if len(ids) > 1 else ""
            yield kind, f"sample '{ids[0]}'{others}: {text}"


_IN_MESSAGE = (
    "the prompt contains special tokens besides those of the chat template, so a model reads more "
    "turns than one; if the prompts are rendered already, set `chat: false`, else remove them"
)


class SpecialTokens:
    """Finds special tokens where a text should contain none, or that occur twice."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: JointEncoder, findings: Findings
    ) -> None:
        """Look at nothing yet; mistakes go to `findings`, the rest to `unexpected`."""
        self._tokenizer: Any = tokenizer
        self._encoder, self._mistakes = encoder, findings
        self.unexpected = Findings(findings.where)
        self._ids = encoder.special_ids
        self._eos = encoder.end_id
        self._of_template = 0
        """Special tokens that the chat template writes into every prompt."""
        if encoder.chat is not None:
            ids = self._tokenizer(encoder.chat.prompt("a"), add_special_tokens=False)["input_ids"]
            self._of_template = self._count(ids)

    def look(self, joint: JointEncoding, responses: Sequence[tuple[Ids, int]]) -> None:
        """Look at a sample's prompt and at some of its responses."""
        sample = joint.sample
        prompt = joint.prompt[len(self._encoder.opening) :]
        if self._encoder.is_doubled(joint.prompt):
            self._mistakes.add("doubled BOS", sample.id, lambda: self._doubled(joint))
        elif self._encoder.chat is not None:
            if self._count(prompt) > self._of_template:
                self.unexpected.add("prompt", sample.id, lambda: _IN_MESSAGE)
        elif not self._ids.isdisjoint(prompt):
            self.unexpected.add("prompt", sample.id, lambda: self._in_prompt(joint, prompt))
        if ("<|" in sample.prompt or "_of_turn>" in sample.prompt) and (
            foreign := self._foreign(sample.prompt)
        ):
            self.unexpected.add("marker", sample.id, lambda: self._split(foreign))
        for ids, length in responses:
            response = ids[joint.start : length]
            if not self._ids.isdisjoint(response):
                text = partial(self._in_response, response)
                self.unexpected.add("response", sample.id, text)
                break

    def _count(self, ids: Ids) -> int:
        return sum(id in self._ids for id in ids)

    def _tokens(self, ids: Ids) -> str:
        shown = [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids[:_SHOWN])]
        return f"{shown}{' ...' if len(ids) > _SHOWN else ''}"

    def _names(self, ids: Ids) -> str:
        found = dict.fromkeys(id for id in ids if id in self._ids)
        return ", ".join(repr(str(name)) for name in self._tokenizer.convert_ids_to_tokens(found))

    def _doubled(self, joint: JointEncoding) -> str:
        return (
            f"the prompt begins with {self._names(self._encoder.opening)}, which the tokenizer "
            f"adds to every text, so its tokens are {self._tokens(joint.prompt)}; remove it from "
            "the prompts, or set train.doubled_bos: drop"
        )

    def _in_prompt(self, joint: JointEncoding, prompt: Ids) -> str:
        return (
            f"the prompt contains {self._names(prompt)}, encoded as special tokens, as in a "
            f"rendered chat template; its tokens are {self._tokens(joint.prompt)}"
        )

    def _in_response(self, response: Ids) -> str:
        text = (
            f"the response contains {self._names(response)}, encoded as special tokens; its tokens "
            f"are {self._tokens(response)}"
        )
        if response[-1] == self._eos:
            return f"{text}, and another EOS follows; remove it from the responses"
        return f"{text}, and the student learns to stop there" if self._eos in response else text

    def _foreign(self, prompt: str) -> str | None:
        """Return a marker of a chat template that is no token of this tokenizer."""
        for marker in dict.fromkeys(_MARKER.findall(prompt)):
            id = self._tokenizer.convert_tokens_to_ids(marker)
            if id is None or id == self._tokenizer.unk_token_id:
                return str(marker)
        return None

    def _split(self, marker: str) -> str:
        pieces = self._tokenizer(marker, add_special_tokens=False)["input_ids"]
        if self._encoder.chat is not None:
            return (
                f"the rendered prompt contains {marker!r}, which is no token of this tokenizer but "
                f"is split into {self._tokens(pieces)}; give a template for this tokenizer with "
                "`chat_template`"
            )
        return (
            f"the prompt contains {marker!r}, which is no token of this tokenizer but is split "
            f"into {self._tokens(pieces)}; render the prompts with this model's chat template"
        )
