"""Text of an instruction student, with the probability of each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from firstcli.data.token_texts import token_texts
from firstcli.errors import UserError
from firstcli.student.load import TrainedStudent, load_student
from support.tickets import TrainedRun

pytest_plugins = ["support.students"]

PROMPTS = ["Say 1.", "Say 2, and then a good deal more than that.", "Say 3.", "Say"]


@pytest.fixture(scope="module")
def author(writer: TrainedRun) -> TrainedStudent:
    return load_student(writer.folder)


def test_tokens_and_probabilities_equal_a_naive_loop(
    writer: TrainedRun, author: TrainedStudent
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(writer.folder)
    model = AutoModelForCausalLM.from_pretrained(writer.folder).eval()
    for prompt, generation in zip(PROMPTS, author.generate(PROMPTS, 9), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        start, probabilities = len(ids), []
        while len(ids) < start + 9:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            ids.append(int(logits.argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
            probabilities.append(float(logits.softmax(-1).max()))
        finished = ids[-1] == tokenizer.eos_token_id
        new = ids[start : len(ids) - finished]
        assert generation.text == tokenizer.decode(new)
        assert generation.finished == finished
        found = [token.probability for token in generation.tokens]
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        assert "".join(token.text for token in generation.tokens) == generation.text


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_changes_nothing(author: TrainedStudent, batch_size: int) -> None:
    whole = author.generate(PROMPTS, 9)
    for one, other in zip(whole, author.generate(PROMPTS, 9, batch_size), strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(
            [token.probability for token in one.tokens],
            [token.probability for token in other.tokens],
            atol=1e-5,
        )


def test_the_context_cuts_off_long_prompts_alone(
    writer: TrainedRun, author: TrainedStudent
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(writer.folder)
    long_prompt = str(tokenizer.decode(tokenizer("Say 1. " * 40)["input_ids"][:60]))
    room = 64 - len(tokenizer(long_prompt)["input_ids"])
    assert 0 < room < 12
    short, long, too_long = author.generate(["Say", long_prompt, "Say 1. " * 40], 12)
    assert len(short.tokens) == 12 or short.finished
    assert len(long.tokens) == room or long.finished
    assert too_long.text is None and too_long.error and "too long" in too_long.error


def test_bad_prompts_have_an_error_each(author: TrainedStudent) -> None:
    good, blank, wrong = author.generate([PROMPTS[0], "  ", {"prompt": 1.5}], 3)
    assert good.error is None
    assert blank.error and "no text" in blank.error
    assert wrong.error and "expected text" in wrong.error


def test_a_student_that_writes_does_not_choose(author: TrainedStudent) -> None:
    assert author.generates and author.labels is None
    with pytest.raises(UserError, match="use `generate`"):
        author.predict(PROMPTS)


def _bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize("text", ["", "plain", "ünd 🦊 fox", "日本語", " leading"])
def test_token_texts_are_the_parts_of_the_decoded_text(text: str) -> None:
    tokenizer: Any = _bytes_tokenizer()
    ids = tokenizer(text)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) == len(text.encode())
    assert "".join(texts) == text
    assert [part for part in texts if part] == list(text)


def test_an_incomplete_character_at_the_end_is_shown_as_such() -> None:
    tokenizer: Any = _bytes_tokenizer()
    ids = tokenizer("aü")["input_ids"][:-1]
    assert token_texts(tokenizer, ids) == ["a", "\ufffd"]
