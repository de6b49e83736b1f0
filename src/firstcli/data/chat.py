"""Render prompts and responses with a tokenizer's chat template.

The prompt of a sample becomes the user's message, and its response the assistant's. A sample is
rendered before it is encoded, so everything after it sees two texts, as without a template:

- The prompt is what a chat server sends: the conversation with the generation prompt.
- The response is what the template writes after it, without white space around the answer. Some
  templates write a space before every answer; it then belongs to the response.
- The end is the first special token that the template writes after the response, such as
  `<|im_end|>`; in a template without one, it is the tokenizer's EOS.

The template writes BOS itself, so rendered texts are encoded without the tokenizer's own special
tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from firstcli.api import Sample
from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGE = "xqz"
"""A message that no template contains, by which its place is found."""
_ANSWER = "zqx"
_FIXED_DAY = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}"
"""What templates that write today's date are given: the default of Llama 3.1's own template. With
the real one, every day would have prompts of its own."""

Message = dict[str, str]


def has_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def on_a_fixed_day(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's template, changed so that what it writes does not depend on the day."""
    template: str = tokenizer.get_chat_template()
    return f"{_FIXED_DAY}{template}" if "strftime_now" in template else template


class ChatFormat:
    """How one tokenizer's template renders samples."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        """Render a conversation to learn what the template writes around an answer.

        Args:
            tokenizer: a tokenizer with a chat template.
            system: the text of the system message; None: there is none.

        Raises:
            UserError: the template cannot render a message, an answer or the system message.
        """
        self._tokenizer: Any = tokenizer
        self.system = system
        prompt = self.prompt(_MESSAGE)
        if _MESSAGE not in prompt:
            raise UserError(f"the chat template leaves out the user's message; {_OTHER}")
        if system is not None and system.strip() not in prompt:
            raise UserError("the chat template leaves out the system message; remove `system`")
        messages = [*self._messages(_MESSAGE), {"role": "assistant", "content": _ANSWER}]
        whole = self._applied(messages, add_generation_prompt=False)
        before, found, after = whole.rpartition(_ANSWER)
        if not found:
            raise UserError(f"the chat template leaves out the assistant's message; {_OTHER}")
        self._lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        if self._lead.strip():  # such as an empty thought, which a server does not send
            self._lead = ""
        self._trail, self.end = self._end_of(after)
        """The token that ends a response; None if there is none."""
        self._shared: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    @property
    def end_id(self) -> int | None:
        """The id of `end`."""
        end = self.end
        return None if end is None else int(self._tokenizer.convert_tokens_to_ids(end))

    @property
    def identity(self) -> str:
        """A digest of everything on which rendered texts depend, for a given tokenizer."""
        tokenizer = self._tokenizer
        content = [tokenizer.chat_template, tokenizer.special_tokens_map, self.system, self.end]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()

    def prompt(self, text: str) -> str:
        """Return the conversation up to where the assistant answers a message."""
        return self._applied(self._messages(text), add_generation_prompt=True)

    def response(self, text: str) -> str:
        """Return what follows the prompt, without the end.

        White space around the answer is removed: models answer without it.
        """
        return f"{self._lead}{text.strip()}{self._trail}"

    def rendered(self, sample: Sample) -> Sample:
        """Return a sample with rendered prompt, response and candidates."""
        if sample.candidates is not self._shared[0]:  # samples may share a thousand candidates
            self._shared = (sample.candidates, tuple(map(self.response, sample.candidates)))
        return replace(
            sample,
            prompt=self.prompt(sample.prompt),
            response=self.response(sample.response),
            candidates=self._shared[1],
        )

    def _messages(self, text: str) -> list[Message]:
        user = {"role": "user", "content": text}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": self.system}, user]

    def _applied(self, messages: list[Message], *, add_generation_prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                chat_template=on_a_fixed_day(self._tokenizer),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,  # templates ignore variables that they do not know
            )
        except Exception as error:  # a template may fail in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if self.system is not None and messages[0]["role"] == "system":
                advice = "remove `system`, or move its text into the prompt"
            else:
                advice = _OTHER
            raise UserError(
                f"the chat template cannot render a conversation of "
                f"{' and '.join(each['role'] for each in messages)} ({reason}); {advice}"
            ) from error
        return text

    def _end_of(self, after: str) -> tuple[str, str | None]:
        """Split what follows an answer: the text before the first special token, and that token.

        Without such a token the end is EOS, as in training without a template.
        """
        texts = {str(text) for text in self._tokenizer.all_special_tokens}
        added = self._tokenizer.added_tokens_decoder.values()
        texts |= {token.content for token in added if token.special}
        names = sorted(filter(None, texts), key=len, reverse=True)  # the longest at a place
        found = re.search("|".join(map(re.escape, names)), after) if names else None
        if found is None:
            eos = self._tokenizer.eos_token
            return "", None if eos is None else str(eos)
        return after[: found.start()], found.group()


_OTHER = "give a different template with `chat_template`, or set `chat: false`"
