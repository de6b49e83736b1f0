"""Sampling by a row's own random numbers: the distribution, and what it does not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from conftest import MakeLlama
from firstcli.models.generation import Sampler, SeededChoice, continuations, text_after

ENDS = [2]


@pytest.fixture(scope="module")
def model(make_llama: MakeLlama) -> PreTrainedModel:
    return make_llama(40)


def test_each_token_is_drawn_with_its_probability() -> None:
    rows = 20_000
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0]).expand(rows, 4)
    chosen = SeededChoice([str(i) for i in range(rows)])(torch.zeros(rows, 1), logits)
    assert torch.equal((chosen == 0).sum(-1), torch.ones(rows, dtype=torch.long))
    frequencies = (chosen == 0).float().mean(0).numpy()
    expected = logits[0].double().softmax(-1).numpy()
    error = np.sqrt(expected * (1 - expected) / rows)
    assert (abs(frequencies - expected) < 4 * error).all()


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(2000, 5)
    chosen = SeededChoice([str(i) for i in range(2000)])(torch.zeros(2000, 1), logits)
    assert set((chosen == 0).nonzero()[:, 1].tolist()) == {1, 3}


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(0.8), Sampler(1.2, 0.9), Sampler(1.0, 1.0, 5)]
)
def test_a_text_does_not_depend_on_the_rest_of_its_batch(
    model: PreTrainedModel, sampler: Sampler
) -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    seeds = ["a", "b", "c"]

    def together(order: list[int]) -> dict[int, list[int]]:
        texts = continuations(
            model,
            [prompts[i] for i in order],
            12,
            ENDS,
            sampler.processors([seeds[i] for i in order]),
        )
        return dict(zip(order, texts, strict=True))

    alone = {i: together([i])[i] for i in range(3)}
    assert together([0, 1, 2]) == alone
    assert together([2, 1]) == {1: alone[1], 2: alone[2]}


def test_greedy_is_what_transformers_generates(model: Any) -> None:
    (text,) = continuations(model, [[5, 6, 7]], 10, [], Sampler().processors([""]))
    expected = model.generate(
        torch.tensor([[5, 6, 7]]), max_new_tokens=10, do_sample=False, eos_token_id=None
    )
    assert text == expected[0, 3:].tolist()


@pytest.mark.parametrize("ends", [[], ENDS])
def test_the_settings_of_a_checkpoint_have_no_effect(
    model: Any, monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    """Qwen 2.5, for example, comes with a penalty on repetitions."""

    def texts() -> list[list[int]]:
        return continuations(model, [[5, 6, 7], [8]], 10, ends, Sampler().processors(()))

    expected = texts()
    settings = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_new_tokens": 9}
    own = GenerationConfig(**settings, eos_token_id=expected[0][3], pad_token_id=0)
    monkeypatch.setattr(model, "generation_config", own)
    assert texts() == expected
    assert model.generation_config is own


def test_top_k_of_one_is_greedy(model: PreTrainedModel) -> None:
    greedy = continuations(model, [[5, 6]], 10, ENDS, Sampler().processors([""]))
    assert (
        continuations(model, [[5, 6]], 10, ENDS, Sampler(1.0, 1.0, 1).processors(["x"])) == greedy
    )


def test_a_text_ends_with_the_token_that_ends_it(model: PreTrainedModel) -> None:
    (free,) = continuations(model, [[5, 6, 7]], 10, [], Sampler().processors([""]))
    (ended,) = continuations(model, [[5, 6, 7]], 10, [free[3]], Sampler().processors([""]))
    assert ended == free[: free.index(free[3]) + 1]


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_the_space_before_a_text_is_kept(shared_models: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_models / "tokenizers" / name)
    prompt = tokenizer("The capital of France is")["input_ids"]
    whole = tokenizer("The capital of France is Paris, of course.")["input_ids"]
    assert text_after(tokenizer, prompt, whole[len(prompt) :]) == " Paris, of course."
