"""Tokens and their texts, for servers that know no token ids."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from firstcli.api import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_ID = "token_id:"
"""How vLLM writes ids in place of texts."""


class Texts:
    """Converts between a tokenizer's ids and texts; refuses what is ambiguous."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read nothing yet."""
        self._tokenizer = tokenizer

    def text_of(self, id: str, token_ids: list[int]) -> tuple[str, int]:
        """Return the text of tokens, and how many of them a server adds by itself.

        A BOS is left out, because servers add it. `id` names the sample.

        Raises:
            UserError: the text would be read as other tokens.
        """
        bos = self._tokenizer.bos_token_id
        added = int(bool(token_ids) and token_ids[0] == bos)
        own = token_ids[added:]
        text = self._tokenizer.decode(own, clean_up_tokenization_spaces=False)
        if self._tokenizer(text, add_special_tokens=False)["input_ids"] != own:
            raise UserError(
                f"sample '{id}': its text is read as other tokens when it is encoded again, so the "
                "server's probabilities cannot be aligned; use a server that takes token ids"
            )
        return str(text), added

    def id_of(self, text: str) -> int:
        """Return the id of a token that a server names.

        Raises:
            UserError: no token has this text, or several have.
        """
        if text.startswith(TOKEN_ID) and text.removeprefix(TOKEN_ID).isdigit():
            return int(text.removeprefix(TOKEN_ID))
        ids = self._ids.get(text, [])
        if len(ids) == 1:
            return ids[0]
        found = f"{len(ids)} tokens have it" if ids else "no token has it"
        raise UserError(
            f"the server names a token by its text {text!r}, and {found}, so its probabilities "
            "cannot be aligned; use a server that returns token ids"
        )

    def has(self, token_id: int, text: str) -> bool:
        """Return whether a token may have this text."""
        if text.startswith(TOKEN_ID):
            return text == f"{TOKEN_ID}{token_id}"
        return token_id in self._ids.get(text, [])

    def count(self, text: str) -> int:
        """Return the number of a text's tokens."""
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def special_in(self, token_ids: list[int]) -> str:
        """Return the first special token among some tokens; empty if there is none."""
        special = set(self._tokenizer.all_special_ids) | set(
            self._tokenizer.get_added_vocab().values()
        )
        found = [token_id for token_id in token_ids if token_id in special]
        return str(self._tokenizer.convert_ids_to_tokens(found[0])) if found else ""

    @property
    def letter(self) -> int:
        """The id of a token that is a whole character."""
        return int(self._tokenizer("a", add_special_tokens=False)["input_ids"][-1])

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for token_id in range(len(self._tokenizer)):
            text = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
            ids.setdefault(str(text), []).append(token_id)
        return ids
