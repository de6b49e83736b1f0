"""A prompt that is encoded once for all its responses gives the tokens of every text alone."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from firstcli.api import Sample
from firstcli.data import joint
from firstcli.data.joint import JointEncoder, JointEncoding

Tokenizer = PreTrainedTokenizerFast
LONG = "Q: What is the water that is wet and dry?\n(a) wet\n(b) dry\nThe answer is:"


def encodings(samples: Sequence[Sample], tokenizer: Any) -> list[JointEncoding]:
    return list(JointEncoder(tokenizer)(samples))


def assert_each_text_alone(samples: Sequence[Sample], tokenizer: Any) -> None:
    """Compare with encoding every text by itself."""
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for sample, found in zip(samples, encodings(samples, tokenizer), strict=True):
        responses = sample.candidates or (sample.response,)
        expected = [tokenizer(sample.prompt + text)["input_ids"] for text in responses]
        assert found.prompt == tokenizer(sample.prompt)["input_ids"]
        assert list(found.responses) == [(ids + eos, len(ids)) for ids in expected]


class Counting:
    """A tokenizer that counts the characters which it encodes whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: str | list[str], **options: Any) -> Any:
        self.characters += sum(map(len, [texts] if isinstance(texts, str) else texts))
        return self._tokenizer(texts, **options)


words = st.text(
    st.one_of(
        st.sampled_from("aeinrstwd  ,.()\n\t:5"),
        st.sampled_from("😀é日İ\u0301\u200d\u00a0'"),
    ),
    max_size=40,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=words, end=words, candidates=st.lists(words, min_size=1, max_size=4), right=st.integers()
)
def test_responses_have_the_tokens_of_the_whole_text(
    tokenizer: Tokenizer, prompt: str, end: str, candidates: list[str], right: int
) -> None:
    sample = Sample.question(prompt + "the water" + end, candidates, right % len(candidates))
    assert_each_text_alone([sample, Sample(sample.prompt, sample.response)], tokenizer)


def test_a_shared_prompt_is_encoded_once(byte_tokenizer: Tokenizer) -> None:
    counting: Any = Counting(byte_tokenizer)
    samples = [Sample.question(LONG, [" yes", " no", " wet", " dry"], i % 4) for i in range(8)]
    encodings(samples, counting)
    assert counting.characters < 8 * len(LONG + " yes") + 20
    assert_each_text_alone(samples, byte_tokenizer)


MANY = [f" {number} wet" for number in range(joint.MANY + 4)]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(words, min_size=1, max_size=3), end=words, right=st.integers())
def test_many_candidates_have_the_tokens_of_the_whole_text(
    tokenizer: Tokenizer, prompts: list[str], end: str, right: int
) -> None:
    samples = [
        Sample.question(f"{prompt}the water{end}", MANY, (right + i) % len(MANY))
        for i, prompt in enumerate(prompts)
    ]
    assert_each_text_alone([*samples, Sample.question("the water", MANY[:2], 0)], tokenizer)


def test_many_candidates_are_encoded_once_for_equal_ends(byte_tokenizer: Tokenizer) -> None:
    counting: Any = Counting(byte_tokenizer)
    samples = [Sample.question(f"{i} {LONG}", MANY, i % len(MANY)) for i in range(64)]
    shared = {id(found.ends) for found in encodings(samples, counting)}
    assert len(shared) == 1 and None not in shared
    once = len(LONG + MANY[-1]) + 3
    assert counting.characters < (2 * len(samples) + len(MANY) + 2) * once
    assert_each_text_alone(samples, byte_tokenizer)


def test_tokens_that_do_not_fit_are_not_shared(byte_tokenizer: Tokenizer) -> None:
    """Two prompts with equal ends, of which one takes its candidates' first letters with it."""
    backend = deepcopy(byte_tokenizer)
    backend.add_tokens(["ab of the lot:x"])
    candidates = [f"x{number}" for number in range(joint.MANY + 1)]
    samples = [Sample.question(f"{head} of the lot:", candidates, 0) for head in ("cd", "ab")]
    found = encodings(samples, backend)
    assert found[0].ends is not None and found[1].ends is None
    assert_each_text_alone(samples, backend)


@pytest.mark.parametrize("pattern", [None, r"[\s\S]+"])
def test_without_a_split_into_words_every_text_is_encoded_whole(
    byte_tokenizer: Tokenizer, pattern: str | None
) -> None:
    """Llama 2 merges the whole text as one word: a response may change tokens before it."""
    whole = deepcopy(byte_tokenizer)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.backend_tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
        if pattern
        else byte_level
    )
    counting: Any = Counting(whole)
    sample = Sample.question(LONG, [" yes", " no", " wet", " dry"], 0)
    encodings([sample], counting)
    assert counting.characters > 5 * len(LONG)
    assert_each_text_alone([sample], whole)


def test_a_prompt_whose_parts_do_not_fit_is_encoded_whole(byte_tokenizer: Tokenizer) -> None:
    """`add_prefix_space` puts a space before a text that begins with a line end, unseen before."""
    prefixed = deepcopy(byte_tokenizer)
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    prompt = "Is the water wet\nThe water:"
    samples = [Sample.question(prompt, [" yes", " no"], i % 2) for i in range(3)]
    assert_each_text_alone(samples, prefixed)


def test_an_added_token_with_spaces_may_reach_over_the_cut(byte_tokenizer: Tokenizer) -> None:
    """The token is found with one candidate only, and begins before the place of the cut."""
    added = deepcopy(byte_tokenizer)
    added.add_tokens(["is wet and the water is dry"])
    sample = Sample.question("Yes, it is wet and the water is", [" wet", " dry"], 0)
    assert_each_text_alone([sample], added)


def test_a_normalizer_that_looks_further_than_a_word(byte_tokenizer: Tokenizer) -> None:
    far = deepcopy(byte_tokenizer)
    far.backend_tokenizer.normalizer = normalizers.Replace(Regex("wet(?=.* no$)"), "dry")
    sample = Sample.question("The wet water is in the answer:", [" yes", " no"], 0)
    assert_each_text_alone([sample], far)


def test_identity_tells_tokenizers_apart(byte_tokenizer: Tokenizer) -> None:
    same, other_eos, padded = (deepcopy(byte_tokenizer) for _ in range(3))
    other_eos.eos_token = "<pad>"
    padded.backend_tokenizer.enable_truncation(5)  # is switched off before anything is encoded
    assert joint.identity(same) == joint.identity(byte_tokenizer) == joint.identity(padded)
    assert joint.identity(other_eos) != joint.identity(byte_tokenizer)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers(shared_models: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    texts = [" yes", " no", "x", "\n\nA", " 12", "'s", "", "  é", " 日本"]
    endings = ["Answer:", "a\nThe answer is (", "12 ", "don", "\n", " the\u00a0", "is the <|end"]
    samples = [Sample.question("Q: Why not?\nIt is so: " + e, texts, 0) for e in endings]
    assert_each_text_alone(samples, tokenizer)
