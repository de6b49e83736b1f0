"""Short codes that stand for labels, chosen so that a model's tokenizer tells them apart.

A model answers with one token: the first in which the candidates differ. Words often begin with the
same token (`card lost`, `card stolen`), and many tokenizers split unusual words into letters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, product
from string import ascii_lowercase, ascii_uppercase

Tokens = tuple[int, ...]
TokensOf = Callable[[Sequence[str]], Sequence[Sequence[Tokens | None]]]
"""Returns the tokens of each text for each tokenizer; None if a text cannot be used."""

_SHORT = 26 + 26 * 26
"""Number of codes of one or two capital letters, which come first."""
_DEPTHS = range(3)
"""Tokens that all codes may share before they differ: a space, for example."""


def clash(sequences: Sequence[Tokens]) -> tuple[int, int] | None:
    """Return the first two sequences that share the token at the answer position.

    This is the first place at which not all of them have the same token.
    """
    place, last = 0, min(map(len, sequences)) - 1
    while place < last and len({tokens[place] for tokens in sequences}) == 1:
        place += 1
    seen: dict[int, int] = {}
    for number, tokens in enumerate(sequences):
        if tokens[place] in seen:
            return seen[tokens[place]], number
        seen[tokens[place]] = number
    return None


def chosen_codes(count: int, tokens_of: TokensOf) -> list[str]:
    """Return codes that every tokenizer tells apart: A, B, C if possible, else longer ones.

    Args:
        count: how many codes are needed.
        tokens_of: encodes texts as responses.

    Returns:
        The codes; fewer than `count` if there are not enough.
    """
    short = list(islice(_all_codes(), _SHORT))
    pools = [short[:count]] if count <= len(ascii_uppercase) else []
    best: list[str] = []
    for pool in (*pools, short, list(_all_codes())):
        encoded = tokens_of(pool)
        usable = [n for n in range(len(pool)) if all(texts[n] is not None for texts in encoded)]
        tokenizers = [{n: tokens for n in usable if (tokens := texts[n])} for texts in encoded]
        for depths in product(_DEPTHS, repeat=len(tokenizers)):
            found = [pool[n] for n in islice(_told_apart(tokenizers, depths), count)]
            best = max(best, found, key=len)
            if len(best) == count:
                return best
    return best


def _all_codes() -> Iterator[str]:
    """Yield codes, short ones first: A, AB, abc, ABC, Abc, ab, a."""
    upper, lower = ascii_uppercase, ascii_lowercase
    alphabets = (
        (upper,),
        (upper, upper),
        (lower, lower, lower),
        (upper, upper, upper),
        (upper, lower, lower),
        (upper, lower),
        (lower, lower),
        (lower,),
    )
    return chain.from_iterable(map("".join, product(*letters)) for letters in alphabets)


def _told_apart(tokenizers: Sequence[dict[int, Tokens]], depths: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of texts whose tokens at a depth all differ, for each tokenizer.

    Args:
        tokenizers: for each tokenizer, the tokens of each text by its number.
        depths: for each tokenizer, how many first tokens all texts share. These are the most
            frequent ones.
    """
    kept = set(tokenizers[0])
    for texts, depth in zip(tokenizers, depths, strict=True):
        long = {number: tokens for number, tokens in texts.items() if len(tokens) > depth}
        if not long:
            return
        counts = Counter(tokens[:depth] for tokens in long.values())
        (common, _), *_ = counts.most_common(1)
        kept &= {number for number, tokens in long.items() if tokens[:depth] == common}
    used: list[set[int]] = [set() for _ in tokenizers]
    for number in sorted(kept):
        tokens = [texts[number][depth] for texts, depth in zip(tokenizers, depths, strict=True)]
        if all(token not in seen for token, seen in zip(tokens, used, strict=True)):
            yield number
            for token, seen in zip(tokens, used, strict=True):
                seen.add(token)
