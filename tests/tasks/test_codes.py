"""Codes that tokenizers tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from firstcli.api import Sample
from firstcli.data.encoding import Encoding, encode_questions
from firstcli.data.joint import JointEncoder
from firstcli.errors import UserError
from firstcli.tasks.codes import Tokens, TokensOf, chosen_codes, clash

PROMPT = "text\n\nLabel:"
WORDS = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple)


def tokens_of(*tokenizers: PreTrainedTokenizerFast) -> TokensOf:
    encoders = [JointEncoder(tokenizer) for tokenizer in tokenizers]
    return lambda texts: [
        encoder.continuations(PROMPT, [f" {text}" for text in texts]) for encoder in encoders
    ]


def by_letter(texts: Sequence[str]) -> list[list[Tokens | None]]:
    """A tokenizer with one token per character, and EOS."""
    return [[(*map(ord, text), 0) for text in texts]]


@given(st.lists(WORDS, min_size=2, max_size=5, unique=True))
def test_a_clash_is_what_the_answer_position_says(sequences: list[Tokens]) -> None:
    ended = [(*tokens, 9) for tokens in sequences]
    columns = list(zip(*ended, strict=False))
    decisive = next((c for c in columns if len(set(c)) > 1), columns[-1])
    found = clash(ended)
    assert (found is None) == (len(set(decisive)) == len(decisive))
    if found:
        assert found[0] < found[1] and decisive[found[0]] == decisive[found[1]]


def test_letters_for_a_few() -> None:
    assert chosen_codes(3, by_letter) == ["A", "B", "C"]
    assert chosen_codes(26, by_letter)[-1] == "Z"


def test_the_most_that_a_tokenizer_tells_apart() -> None:
    codes = chosen_codes(1000, by_letter)
    assert len(codes) == 53  # A alone, and A with each letter in upper and lower case
    (encoded,) = by_letter(codes)
    assert clash([tokens for tokens in encoded if tokens]) is None


def test_a_token_that_all_codes_share_is_passed_over() -> None:
    def after_a_space(texts: Sequence[str]) -> list[list[Tokens | None]]:
        return [[(1, *tokens) for tokens in texts if tokens] for texts in by_letter(texts)]

    assert chosen_codes(26, after_a_space) == chosen_codes(26, by_letter)


def test_two_tokenizers_must_both_tell_codes_apart() -> None:
    def blind_to_vowels(texts: Sequence[str]) -> list[list[Tokens | None]]:
        return [
            *by_letter(texts),
            [
                tuple(1 if chr(i) in "AEIOU" else i for i in ids)
                for (ids,) in zip([tokens for tokens in by_letter(texts)[0] if tokens], strict=True)
            ],
        ]

    codes = chosen_codes(22, blind_to_vowels)
    assert codes[0] == "A" and not {"E", "I", "O", "U"} & {code[0] for code in codes}


def test_texts_that_cannot_be_used_are_left_out() -> None:
    def without_b(texts: Sequence[str]) -> list[list[Tokens | None]]:
        return [[None if "B" in text else tuple(map(ord, text)) for text in texts]]

    assert chosen_codes(2, without_b) == ["A", "C"]


def distinct(codes: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Encode a question with the codes as candidates, as a run does."""
    sample = Sample.question(PROMPT, [f" {code}" for code in codes], 0, id="x")
    try:
        encode_questions([sample], Encoding(tokenizer, "here"))
    except UserError:
        return False
    return True


@pytest.mark.parametrize("count", [2, 26, 40])
def test_codes_of_tiny_tokenizers(tokenizer: PreTrainedTokenizerFast, count: int) -> None:
    codes = chosen_codes(count, tokens_of(tokenizer))
    assert len(codes) == count and distinct(codes, tokenizer)


@pytest.mark.shared
def test_a_thousand_codes_of_real_tokenizers(shared_models: Path) -> None:
    names = ("tokenizers/gpt2", "tokenizers/mistral", "wiki-5m")
    for name in names:
        tokenizer: Any = AutoTokenizer.from_pretrained(shared_models / name)
        codes = chosen_codes(1000, tokens_of(tokenizer))
        assert len(codes) == 1000 and distinct(codes, tokenizer), name
        assert chosen_codes(26, tokens_of(tokenizer))[:3] == ["A", "B", "C"]
