"""Tiny models of many architectures: the rows of docs/architectures.md, in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
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

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
"""Those of the tests' byte-level tokenizer."""
BASE: dict[str, Any] = SHAPE | SPECIAL | {"max_position_embeddings": 128}
GROUPED: dict[str, Any] = BASE | {"num_key_value_heads": 1}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
SMALL_HEADS: dict[str, Any] = GROUPED | {"head_dim": 8}
WINDOW = {"sliding_window": 4}
CAPPED = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0}
EXPERTS: dict[str, Any] = UNTIED | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
STATE: dict[str, Any] = SPECIAL | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}
HEADS = {"num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture, with a configuration that shows what is special about it."""

    name: str
    kind: Callable[..., PreTrainedConfig]
    values: dict[str, Any]

    @property
    def has_experts(self) -> bool:
        return self.kind in (MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig)

    def build(self, vocabulary: int, **values: Any) -> PreTrainedModel:
        """Return a model in evaluation mode whose predictions are far from uniform.

        Args:
            vocabulary: rows of the output layer.
            values: further fields of the configuration.
        """
        config = self.kind(**self.values | {"vocab_size": vocabulary} | values)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.eval()
        return model

    def reference(self, vocabulary: int) -> PreTrainedModel:
        """Return the same model in float64, its experts as a plain loop over them."""
        model = self.build(vocabulary)
        if self.has_experts:
            model.set_experts_implementation("eager")  # kernels take no float64
        return model.double()


ARCHITECTURES = (
    Architecture("Llama", LlamaConfig, GROUPED | UNTIED),
    Architecture("Llama, tied", LlamaConfig, GROUPED | TIED),
    Architecture("Qwen 2", Qwen2Config, GROUPED | TIED),
    Architecture("Qwen 3", Qwen3Config, SMALL_HEADS | TIED),
    Architecture("Mistral", MistralConfig, GROUPED | UNTIED | WINDOW),
    Architecture("Gemma 2", Gemma2Config, SMALL_HEADS | WINDOW | CAPPED),
    Architecture("Gemma 3", Gemma3TextConfig, SMALL_HEADS | WINDOW),
    Architecture("Phi-3", Phi3Config, GROUPED | UNTIED),
    Architecture(
        "GPT-2",
        GPT2Config,
        SPECIAL
        | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
        | dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
    ),
    Architecture("GPT-NeoX", GPTNeoXConfig, BASE),
    Architecture(
        "OPT", OPTConfig, BASE | {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0}
    ),
    Architecture("Falcon", FalconConfig, BASE),
    Architecture("Mixtral", MixtralConfig, GROUPED | UNTIED | {"num_local_experts": 4}),
    Architecture(
        "Qwen 2 MoE", Qwen2MoeConfig, GROUPED | EXPERTS | {"shared_expert_intermediate_size": 12}
    ),
    Architecture("Qwen 3 MoE", Qwen3MoeConfig, SMALL_HEADS | EXPERTS),
    Architecture("Mamba", MambaConfig, STATE),
    Architecture("Mamba 2", Mamba2Config, STATE | HEADS),
)
