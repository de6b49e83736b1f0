"""The text of each token of a sequence, and its place in the text of all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
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


def token_spans(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> tuple[str, list[tuple[int, int]]]:
    """Return the decoded text of a sequence, and the characters that each token stands for."""
    whole: Any = tokenizer
    text: str = whole.decode(list(ids), skip_special_tokens=False)
    again = whole(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if again["input_ids"] == list(ids):  # as a rule; one call, not two per token
        return text, [(start, end) for start, end in again["offset_mapping"]]
    texts = token_texts(tokenizer, ids)
    return "".join(texts), list(pairwise(accumulate(map(len, texts), initial=0)))


def tokens_of(
    steps: Sequence[tuple[int, int]], tokens: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Return which tokens each step has: half-open ranges, in order and without overlap.

    Args:
        steps: the characters of each step, in order.
        tokens: the characters of each token, in order. A token belongs to a step if it stands for
            one of its characters; the first of two steps gets one that both share.
    """
    ranges = []
    end = 0
    for first, last in steps:
        start = end
        while start < len(tokens) and tokens[start][1] <= first:
            start += 1
        end = start
        while end < len(tokens) and tokens[end][0] < last:
            end += 1
        ranges.append((start, end))
    return tuple(ranges)
