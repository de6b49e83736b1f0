"""Models that mix up packed sequences are found, whatever arguments they accept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from checkpoints.test_causality import build
from conftest import MakeLlama
from firstcli.checkpoints import packing
from support.checkpoints import SHAPE

V = SHAPE["vocab_size"]
KEPT_APART: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
    "falcon": FalconConfig(**SHAPE),
    "mistral-window": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=3),
    "gemma2": Gemma2Config(**SHAPE, num_key_value_heads=1, head_dim=8, sliding_window=3),
    "mixtral": MixtralConfig(**SHAPE, num_key_value_heads=1, num_local_experts=4),
}
MIXED_UP: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(vocab_size=V, hidden_size=16, state_size=4, num_hidden_layers=1),
    "opt": OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2),
    "mpt": MptConfig(vocab_size=V, d_model=16, n_heads=2, n_layers=2),
}


def fault(model: Any, context: int | None = None) -> str:
    return packing.fault(model, range(5, V), context) or ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KEPT_APART)
def test_models_that_heed_position_ids_pass(name: str, dtype: torch.dtype) -> None:
    model = build(KEPT_APART[name])
    model.to(dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    assert fault(model) == ""


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_either_attention_passes(make_llama: MakeLlama, attention: str) -> None:
    assert fault(make_llama(V, attn_implementation=attention)) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXED_UP)
def test_models_that_carry_something_over_are_found(name: str, dtype: torch.dtype) -> None:
    model = build(MIXED_UP[name])
    model.to(dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    assert "it mixes up the sequences of one row" in fault(model)


@pytest.mark.parametrize("context", [1, 2, 3, 8])
def test_a_short_context(context: int) -> None:
    config = GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=context)
    assert fault(build(config), context) == ""


class WithoutPositions(torch.nn.Module):
    """Stand in for a decoder that takes no position ids."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return type("Output", (), {"logits": self.table(input_ids)})


def test_a_model_without_position_ids_is_found() -> None:
    assert "it does not read sequences in one row (" in fault(WithoutPositions())


def test_the_model_is_left_as_it_was(make_llama: MakeLlama) -> None:
    model = make_llama(V, attention_dropout=0.5)
    model.train()
    model.lm_head.eval()
    before = torch.random.get_rng_state()
    assert fault(model) == ""
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and model.model.training and not model.lm_head.training
