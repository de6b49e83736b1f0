"""Logits at selected positions, padding and batches, for architectures with different heads."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.families.causal_lm import CausalLM, CausalLMOptions
from firstcli.models import inference, readout
from support import checkpoints

V = 60
SHAPE: dict[str, Any] = checkpoints.SHAPE | {
    "vocab_size": V,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "mistral-window": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=4),
    "qwen2-tied": Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "gemma2": Gemma2Config(
        **SHAPE, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, sliding_window=4
    ),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
    "opt": OPTConfig(**{**SHAPE, "pad_token_id": 1}, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2),
    "falcon": FalconConfig(**SHAPE),
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # far from uniform predictions
    model.eval()
    return model


def sequences(*lengths: int) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, V, length, dtype=np.int32) for length in lengths]


def all_positions(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return every position of every sequence, as (rows, columns)."""
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return rows, torch.cat([torch.arange(length) for length in lengths])


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_logits_at_equals_the_logits_of_single_sequences(name: str) -> None:
    """A padded batch at selected positions equals single sequences, for every kind of head."""
    model = build(ARCHITECTURES[name])
    texts = sequences(9, 3, 6, 1)
    lengths = [len(text) for text in texts]
    whole = torch.cat(
        [model(input_ids=torch.tensor(text[None], dtype=torch.long)).logits[0] for text in texts]
    )
    padded = inference.pad(texts)
    rows, columns = all_positions(lengths)
    logits_at = readout.Reader(model).logits_at
    got = logits_at(padded.input_ids, padded.attention_mask, rows, columns)
    assert got.dtype == torch.float32 and got.shape == (sum(lengths), V)
    torch.testing.assert_close(got, whole.float(), rtol=1e-4, atol=1e-5)
    chosen = torch.tensor([5, 0, 12])  # any positions, in any order
    selected = logits_at(padded.input_ids, padded.attention_mask, rows[chosen], columns[chosen])
    torch.testing.assert_close(selected, whole[chosen].float(), rtol=1e-4, atol=1e-5)
    # The model is unchanged outside a call.
    again = model(input_ids=torch.tensor(texts[0][None], dtype=torch.long)).logits[0]
    torch.testing.assert_close(again, whole[: lengths[0]])


def test_soft_capping_is_active() -> None:
    """Otherwise its architecture would not test it."""
    model = build(ARCHITECTURES["gemma2"])
    [text] = sequences(9)
    logits = model(input_ids=torch.tensor(text[None], dtype=torch.long)).logits
    assert 0.4 < logits.abs().max() <= 0.5


def test_gradients_pass_through_logits_at(make_llama: MakeLlama) -> None:
    model = make_llama(V)
    texts = sequences(7, 4)
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([2, 5, 3])
    padded = inference.pad(texts)

    def gradients(logits: Tensor) -> list[Tensor]:
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([4, 5, 6]))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    whole = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits
    expected = gradients(whole[rows, columns])
    got = gradients(
        readout.Reader(model).logits_at(padded.input_ids, padded.attention_mask, rows, columns)
    )
    for gradient, expected_gradient in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_half_precision_weights_give_float32_logits(make_llama: MakeLlama) -> None:
    model = make_llama(V).to(torch.bfloat16)  # type: ignore[arg-type]  # a decorator hides it
    padded = inference.pad(sequences(4))
    rows, columns = torch.tensor([0]), torch.tensor([3])
    got = readout.Reader(model).logits_at(padded.input_ids, padded.attention_mask, rows, columns)
    assert got.dtype == torch.float32


class BypassedHead(nn.Module):
    """Multiplies by its head's weight instead of calling the head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(V, 16)
        self.head = nn.Linear(16, V, bias=False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logits = self.inner(input_ids) @ self.head.weight.T
        return type("Output", (), {"logits": logits})


def test_an_architecture_that_bypasses_its_head_is_refused() -> None:
    """Also if the shape of the logits matches by chance: 2 sequences of 4, 4 positions."""
    model: Any = BypassedHead()
    padded = inference.pad(sequences(4, 4))
    for count in (3, 4):
        rows = columns = torch.zeros(count, dtype=torch.long)
        with pytest.raises(UserError, match="BypassedHead does not apply its output layer"):
            readout.Reader(model).logits_at(padded.input_ids, padded.attention_mask, rows, columns)


def test_a_model_without_a_head_is_refused(make_llama: MakeLlama) -> None:
    with pytest.raises(UserError, match="LlamaModel has no output layer"):
        readout.Reader(make_llama(V).model)


# Padding and batches.


def test_padding_is_on_the_right_and_masked() -> None:
    padded = inference.pad([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
    assert padded.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert padded.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded.input_ids.dtype == padded.attention_mask.dtype == torch.int64


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_contain_every_sequence_once(lengths: list[int], tokens: int) -> None:
    batches = list(inference.batches(lengths, tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        width = max(lengths[i] for i in batch)
        assert len(batch) == 1 or width * len(batch) <= tokens
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


# Configurations.


def test_sizes_come_from_the_model(make_llama: MakeLlama) -> None:
    model = make_llama(V, max_position_embeddings=77)
    assert inference.vocabulary_size(model) == V
    assert inference.context_length(model) == 77
    assert inference.context_length(build(ARCHITECTURES["gpt2"])) == 64
    assert inference.context_length(build(ARCHITECTURES["bloom"])) is None  # ALiBi: no limit


def test_devices_and_dtypes() -> None:
    assert inference.device_of(_family("cpu")).type == "cpu"
    with pytest.raises(UserError, match=r"model.options.device: 'warp' is not usable"):
        inference.device_of(_family("warp"))
    cpu = torch.device("cpu")
    assert inference.inference_dtype(_family("cpu"), cpu) == "float32"
    assert inference.inference_dtype(_family("cpu", dtype="bfloat16"), cpu) == "bfloat16"


def test_one_gpu_cannot_be_named_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # there is no GPU
    assert inference.device_of(_family("cuda:1")) == torch.device("cuda:1")
    assert inference.device_of(_family("cuda")) == torch.device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="'cuda:1' names one GPU, but each of the 2 processes"):
        inference.device_of(_family("cuda:1"))


def _family(device: str, **options: Any) -> inference.Family:
    return cast(inference.Family, CausalLM(CausalLMOptions(device=device, **options)))
