"""Tiny configurations of many architectures, as docs/architectures.md lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from support.checkpoints import SHAPE

TOKENS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
"""The special tokens of the tests' byte-level tokenizer."""
BASE: dict[str, Any] = SHAPE | TOKENS | {"max_position_embeddings": 128}
GROUPED: dict[str, Any] = BASE | {"num_key_value_heads": 1}
UNTIED = {"tie_word_embeddings": False}
TIED = {"tie_word_embeddings": True}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
GPT2: dict[str, Any] = TOKENS | {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 128,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture, and what holds for it."""

    kind: Callable[..., PreTrainedConfig]
    values: dict[str, Any]

    def config(self, vocabulary: int, **values: Any) -> PreTrainedConfig:
        return self.kind(**self.values | {"vocab_size": vocabulary} | values)

    def build(self, vocabulary: int, **values: Any) -> PreTrainedModel:
        """Return a model whose predictions are far from uniform, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config(vocabulary, **values)
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.eval()
        return model


ARCHITECTURES = {
    "llama": Architecture(LlamaConfig, GROUPED | UNTIED),
    "llama-tied": Architecture(LlamaConfig, GROUPED | TIED),
    "qwen2": Architecture(Qwen2Config, GROUPED | TIED),
    "qwen3": Architecture(Qwen3Config, GROUPED | TIED | {"head_dim": 8}),
    "mistral": Architecture(MistralConfig, GROUPED | UNTIED | {"sliding_window": 4}),
    "gemma2": Architecture(Gemma2Config, GROUPED | {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}),
    "gemma3": Architecture(Gemma3TextConfig, GROUPED | {"head_dim": 8, "sliding_window": 4}),
    "phi3": Architecture(Phi3Config, GROUPED | UNTIED),
    "gpt2": Architecture(GPT2Config, GPT2),
    "gpt-neox": Architecture(GPTNeoXConfig, BASE),
    "opt": Architecture(OPTConfig, BASE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0}),
    "falcon": Architecture(FalconConfig, BASE),
    "mixtral": Architecture(MixtralConfig, GROUPED | UNTIED | {"num_local_experts": 4}),
    "qwen2-moe": Architecture(Qwen2MoeConfig, GROUPED | UNTIED | EXPERTS | {"shared_expert_intermediate_size": 12}),
    "qwen3-moe": Architecture(Qwen3MoeConfig, GROUPED | UNTIED | EXPERTS | {"head_dim": 8}),
    "mamba": Architecture(MambaConfig, TOKENS | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}),
    "mamba2": Architecture(Mamba2Config, TOKENS | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
}
