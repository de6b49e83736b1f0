"""All weights of a checkpoint are loaded, or none: missing, unused and misshapen ones are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    MixtralConfig,
    PreTrainedConfig,
)

from conftest import MakeLlama
from firstcli.checkpoints.loading import load_complete
from firstcli.errors import UserError
from firstcli.families.causal_lm import CausalLM, CausalLMOptions
from firstcli.families.scratch import Scratch, ScratchOptions
from support import checkpoints
from support.checkpoints import edit

Weights = dict[str, Tensor]


@pytest.fixture
def copy(tmp_path: Path, pico_folder: Path) -> Path:
    """A sound checkpoint that a test may change."""
    return Path(shutil.copytree(pico_folder, tmp_path / "copy"))


def store(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Change the stored weights."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def saved(folder: Path, config: PreTrainedConfig) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def refused(folder: Path, *parts: str) -> None:
    """Check the message of every way in which a folder is loaded."""
    ways: list[Callable[[], object]] = [
        lambda: load_complete(folder),
        lambda: CausalLM(CausalLMOptions()).load_trained(folder, "float32"),
        lambda: Scratch(ScratchOptions()).load_trained(folder, "float32"),
    ]
    for load in ways:
        with pytest.raises(UserError) as caught:
            load()
        for part in (f"checkpoint {folder}: ", *parts):
            assert part in str(caught.value)


def test_biases_that_the_configuration_does_not_declare(
    tmp_path: Path, copy: Path, make_llama: MakeLlama
) -> None:
    make_llama(330, attention_bias=True).save_pretrained(copy)
    edit(copy, attention_bias=False)
    name = "model.layers.0.self_attn.k_proj.bias"
    refused(copy, "8 weights have no place in the model", name, "mend config.json")


def test_fewer_layers_declared_than_stored(copy: Path) -> None:
    edit(copy, num_hidden_layers=1)
    refused(copy, "9 weights have no place in the model", "'model.layers.1.input_layernorm.weight'")


def test_more_layers_declared_than_stored(copy: Path) -> None:
    edit(copy, num_hidden_layers=3)
    refused(copy, "9 weights are missing", "'model.layers.2.input_layernorm.weight'")


def test_weights_of_a_different_shape(copy: Path) -> None:
    edit(copy, intermediate_size=56)
    refused(
        copy, "6 weights have a different shape", "mlp.down_proj.weight", "(32, 48)", "(32, 56)"
    )


def test_everything_at_once(copy: Path) -> None:
    edit(copy, attention_bias=True, intermediate_size=56)
    store(copy, lambda weights: weights | {"value_head.weight": torch.zeros(1, 32)})
    refused(copy, "8 weights are missing", "1 weights have no place", "6 weights have a different")


def test_another_number_of_experts(tmp_path: Path) -> None:
    """Stored apart, the experts of a layer are merged into one weight when they are loaded."""
    config = MixtralConfig(**checkpoints.SHAPE, num_key_value_heads=1, num_local_experts=4)
    load_complete(saved(tmp_path, config))
    edit(tmp_path, num_local_experts=2)
    refused(tmp_path, "different shape", "'model.layers.0.mlp.experts.down_proj'")


def test_a_head_that_is_tied_by_the_configuration_only(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    """An equal copy does no harm; a different one leaves open which of both counts."""
    make_llama(50, tie_word_embeddings=False).save_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    refused(tmp_path, "'lm_head.weight'", "tie_word_embeddings")
    embedding = "model.embed_tokens.weight"
    store(tmp_path, lambda weights: weights | {"lm_head.weight": weights[embedding].clone()})
    model = load_complete(tmp_path)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_tied_head_need_not_be_stored(tmp_path: Path, make_llama: MakeLlama) -> None:
    make_llama(50, tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_complete(tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    refused(tmp_path, "1 weights are missing, such as 'lm_head.weight'")


SHAPE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 8, "intermediate_size": 8}
BUFFERS: list[tuple[PreTrainedConfig | None, tuple[str, ...]]] = [
    (None, ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")),
    (
        GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=8),
        ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"),
    ),
    (
        GPTNeoConfig(
            vocab_size=40,
            hidden_size=8,
            num_layers=1,
            num_heads=2,
            attention_types=[[["global"], 1]],
            max_position_embeddings=8,
        ),
        ("transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias"),
    ),
    (
        GPTNeoXConfig(**SHAPE, num_hidden_layers=1, num_attention_heads=2),
        (
            "gpt_neox.layers.0.attention.bias",
            "gpt_neox.layers.0.attention.masked_bias",
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        ),
    ),
]


@pytest.mark.parametrize(("config", "names"), BUFFERS)
def test_buffers_that_models_compute_do_no_harm(
    copy: Path, config: PreTrainedConfig | None, names: tuple[str, ...]
) -> None:
    """Files from earlier versions of transformers hold them."""
    if config:
        saved(copy, config)
    store(copy, lambda weights: weights | {name: torch.ones(1) for name in names})
    load_complete(copy)
