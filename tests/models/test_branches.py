"""Predictions that reuse a generation's cache equal those of whole texts, run one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from conftest import MakeLlama
from firstcli.models import branches, readout
from firstcli.models.branches import Branch, Generated, fault, generated, likeliest, log_probs
from firstcli.models.generation import GreedyLogProbs, continuations
from support.architectures import ARCHITECTURES, Architecture

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14]]
NOT_REUSED = {"Mistral", "Gemma 2", "Gemma 3", "Mamba", "Mamba 2"}
"""They keep a window, or a state."""
_NO_CACHE = "its cache does not keep all tokens"


@pytest.fixture(scope="module")
def model(make_llama: MakeLlama) -> PreTrainedModel:
    return make_llama(40)


def text_of(model: PreTrainedModel, *, keeps: bool) -> Generated:
    return generated(model, PROMPTS, 6, (), LogitsProcessorList(), keeps=keeps)


def branches_of(text: Generated) -> list[Branch]:
    """Branches that share nothing, some, and all of the generated tokens, in no order."""
    whole = [[*prompt, *new] for prompt, new in zip(text.prompts, text.new, strict=True)]
    return [
        Branch(1, [*whole[1][:8], 20, 21, 22], 2),
        Branch(0, [*whole[0][:3], 23], 1),
        Branch(2, [30, 31, 32, 33], 1),
        Branch(2, whole[2], 1),
        Branch(0, [*whole[0], 24, 25, 26, 27], 4),
        Branch(1, whole[1][:3], 3),
        Branch(0, whole[0][:2], 1),
    ]


@torch.no_grad()
def naive(model: Any, branch: Branch) -> torch.Tensor:
    """Return the log-probabilities of all tokens at a branch's predictions, (count, V)."""
    ids = torch.tensor([list(branch.input_ids)])
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits[-branch.count :].double().log_softmax(-1)


def tokens_of(many: list[Branch]) -> list[np.ndarray[Any, Any]]:
    """Some tokens for each prediction; branches have different numbers of them."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 40, (branch.count, 2 + i % 3)) for i, branch in enumerate(many)]


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("limit", [8192, 30, 1])
def test_predictions_equal_those_of_whole_texts(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, keeps: bool, limit: int
) -> None:
    monkeypatch.setattr(branches, "EVALUATION_TOKENS", limit)  # of a batch
    text = text_of(model, keeps=keeps)
    many = branches_of(text)
    ids = tokens_of(many)
    reader = readout.Reader(model)
    with torch.inference_mode():
        found = log_probs(reader, text, many, ids)
        top = likeliest(reader, text, many, 3)
    for branch, chosen, values, first in zip(many, ids, found, top, strict=True):
        expected = naive(model, branch)
        assert values == pytest.approx(expected.gather(1, torch.from_numpy(chosen)), abs=1e-5)
        assert first.tolist() == expected.topk(3).indices.tolist()


def test_only_what_follows_the_shared_tokens_runs(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(model, keeps=True)
    assert [text.shared(branch) for branch in branches_of(text)] == [8, 3, 0, 6, 8, 0, 1]
    widths = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].shape)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    reader = readout.Reader(model)
    widths.clear()
    (branch,) = [branches_of(text)[0]]
    log_probs(reader, text, [branch], tokens_of([branch]))
    assert widths == [(1, 3)]


def test_a_branch_leaves_the_cache_as_it_was(model: PreTrainedModel) -> None:
    text = text_of(model, keeps=True)
    many = branches_of(text)
    reader = readout.Reader(model)
    first = log_probs(reader, text, many, tokens_of(many))
    again = log_probs(reader, text, many, tokens_of(many))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_keeping_the_cache_changes_no_text(model: PreTrainedModel) -> None:
    plain = continuations(model, PROMPTS, 6, [], LogitsProcessorList())
    assert text_of(model, keeps=True).new == plain == text_of(model, keeps=False).new


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_log_probabilities_of_greedy_tokens(model: Any, temperature: float) -> None:
    noted = GreedyLogProbs(temperature)
    ends = continuations(model, PROMPTS, 6, [], LogitsProcessorList())[1][3:4]
    new = continuations(model, PROMPTS, 6, ends, LogitsProcessorList([noted]))
    assert len({*map(len, new)}) > 1  # one text ends before the others
    rows = noted.rows([len(tokens) for tokens in new])
    for prompt, tokens, values in zip(PROMPTS, new, rows, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits.double() / temperature).log_softmax(-1)
        assert values == pytest.approx(
            expected.gather(1, torch.tensor(tokens)[:, None])[:, 0], abs=1e-5
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.name)
def test_a_trial_finds_which_caches_can_be_reused(
    architecture: Architecture, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = architecture.build(len(byte_tokenizer))
    found = fault(model, byte_tokenizer)
    assert found == (_NO_CACHE if architecture.name in NOT_REUSED else None)
    # Whatever the trial finds, whole texts give the right predictions.
    text = text_of(model, keeps=found is None)
    many = [branch for branch in branches_of(text) if branch.row != 2]
    ids = tokens_of(many)
    with torch.inference_mode():
        values = log_probs(readout.Reader(model), text, many, ids)
    for branch, chosen, log_prob in zip(many, ids, values, strict=True):
        expected = naive(model, branch).gather(1, torch.from_numpy(chosen))
        assert log_prob == pytest.approx(expected, abs=1e-4)


def test_a_context_that_is_too_small_for_a_trial(
    make_llama: MakeLlama, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_llama(len(byte_tokenizer), max_position_embeddings=12)
    assert fault(model, byte_tokenizer) == (
        "its context or its vocabulary is too small for a trial"
    )
