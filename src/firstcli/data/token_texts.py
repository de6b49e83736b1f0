"""The text of each token of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return each token's part of the decoded text; together they are the whole text.

    Decoders look back: a token's text can depend on the token before it, and a character can take
    several tokens, of which the last one gets it.
    """
    decode: Any = tokenizer.decode
    texts: list[str] = []
    # Decoding starts at the last place where a character ended, which bounds the work per token.
    start = read = 0
    for end in range(1, len(ids) + 1):
        before = decode(ids[start:read], skip_special_tokens=False)
        text = decode(ids[start:end], skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, read = read, end
    return texts
