"""Evaluation: each candidate's probability, the same in any batch, one pass per question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.api import Sample
from firstcli.data.encoding import EncodedQuestion, encode_questions
from firstcli.metrics.records import EvalRecords
from firstcli.models import readout
from firstcli.stages.scoring import candidate_log_probs

PLACES = ("fire", "water", "the passage", "the dry green fire", "a wet place\n\n\nwith Yes", "no")


def questions(tokenizer: PreTrainedTokenizerFast) -> list[EncodedQuestion]:
    """Questions of different lengths, with two or three candidates."""
    samples = [
        Sample.question(
            f"Q: What is {place}?\nAnswer:",
            [" yes", " no", " The"][: 2 + number % 2],
            number % 2,
            id=place,
        )
        for number, place in enumerate(PLACES)
    ]
    return encode_questions(samples, tokenizer, "test")


@torch.no_grad()
def naive(model: torch.nn.Module, question: EncodedQuestion) -> list[float]:
    """Read the candidates off an ordinary forward pass of this question alone, in float64."""
    ids = torch.tensor(question.input_ids[None], dtype=torch.long)
    log_probs = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
    return [float(log_probs[token]) for token in question.candidate_ids]


@torch.no_grad()
def evaluated(model: Any, batch: Sequence[EncodedQuestion]) -> dict[str, list[float]]:
    return candidate_log_probs(readout.Reader(model), batch)


def test_candidates_get_their_probability_in_the_whole_vocabulary(
    tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    """Whatever the batch and its padding."""
    model, rows = make_llama(len(tokenizer)), questions(tokenizer)
    expected = {one.id: naive(model, one) for one in rows}
    assert len({tuple(values) for values in expected.values()}) == len(rows)
    for batch in (rows, rows[::-1], rows[2:4], *([one] for one in rows)):
        found = evaluated(model, batch)
        assert list(found) == [one.id for one in batch]
        for one in batch:
            np.testing.assert_allclose(found[one.id], expected[one.id], atol=2e-5)


def test_one_forward_pass_answers_a_batch(
    byte_tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    model, rows = make_llama(len(byte_tokenizer)), questions(byte_tokenizer)
    reader = readout.Reader(model)
    rows_seen: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: rows_seen.append(len(inputs[0]))
    )
    scored: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, __, output: scored.append(output.shape))
    with torch.no_grad():
        candidate_log_probs(reader, rows)
    assert rows_seen == [len(rows)]
    assert scored == [(1, len(rows), 3)]  # the candidates at the last positions only


def test_equal_candidates_are_a_tie_that_goes_to_the_first(
    byte_tokenizer: PreTrainedTokenizerFast, make_llama: MakeLlama
) -> None:
    model, rows = make_llama(len(byte_tokenizer)), questions(byte_tokenizer)
    with torch.no_grad():
        model.lm_head.weight[rows[1].candidate_ids[2]] = model.lm_head.weight[
            rows[1].candidate_ids[0]
        ]
        model.lm_head.weight[rows[1].candidate_ids[1]] = model.lm_head.weight[
            rows[1].candidate_ids[0]
        ]
    found = evaluated(model, rows)[rows[1].id]
    assert found[0] == found[1] == found[2]
    records = EvalRecords.from_log_probs([rows[1].id], [rows[1].answer or 0], [found])
    assert records.prediction.tolist() == [0] and records.tie.tolist() == [True]
    assert records.confidence[0] == pytest.approx(1 / 3)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_real_tokenizers(name: str, shared_models: Path, make_llama: MakeLlama) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    samples = [
        Sample.question(f"Q: {text}\nA: The answer is (", ["a).", "b).", "c)."], 2, id=text)
        for text in ("Where?", "What is it that one does in a very small house?")
    ]
    rows = encode_questions(samples, tokenizer, "test")
    assert tokenizer.convert_ids_to_tokens(list(rows[0].candidate_ids)) == ["a", "b", "c"]
    model = make_llama(len(tokenizer))
    found = evaluated(model, rows)
    for one in rows:
        np.testing.assert_allclose(found[one.id], naive(model, one), atol=2e-5)
