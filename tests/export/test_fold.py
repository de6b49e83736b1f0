"""A folded temperature divides all logits by T, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
)

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.export.fold import Fold, fold

VOCABULARY = 40
IDS = torch.arange(1, 13).reshape(2, 6)
TOKENS = range(1, VOCABULARY)
NAMES = {
    "ids": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "llama": {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2},
}
LLAMA, GPT2 = NAMES["ids"] | NAMES["llama"], NAMES["ids"] | NAMES["gpt2"]
OPT = LLAMA | {"ffn_dim": 24}

# Name, type, configuration, the module that must hold the temperature.
ARCHITECTURES = [
    ("llama", LLAMA, "model.norm"),
    ("llama", LLAMA | {"tie_word_embeddings": True}, "model.norm"),
    ("qwen2", LLAMA, "model.norm"),
    ("qwen3", LLAMA, "model.norm"),
    ("mistral", LLAMA, "model.norm"),
    ("phi", LLAMA, "model.final_layernorm"),  # an output layer with bias
    ("phi3", LLAMA, "model.norm"),
    ("gpt2", GPT2, "transformer.ln_f"),  # tied, with bias
    ("gptj", GPT2 | {"rotary_dim": 4}, "transformer.ln_f"),
    ("gpt_neox", LLAMA, "gpt_neox.final_layer_norm"),
    ("opt", OPT | {"word_embed_proj_dim": 8}, "model.decoder.final_layer_norm"),  # projected after
    (  # as opt-350m: no normalisation after the last layer, which ends in one
        "opt",
        OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
        "model.decoder.layers.0.final_layer_norm",
    ),
    ("gemma", LLAMA | {"head_dim": 8}, "model.norm"),  # 1 + weight
    ("gemma3_text", LLAMA | {"head_dim": 8}, "model.norm"),
    ("nemotron", LLAMA, "model.norm"),  # 1 + weight, and a bias
    ("falcon", LLAMA, "transformer.ln_f"),
    ("bloom", NAMES["ids"] | NAMES["gpt2"] | {"hidden_size": 16}, "transformer.ln_f"),
    (
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 16, "n_heads": 2, "n_layers": 1},
        "transformer.norm_f",
    ),
    ("cohere", LLAMA | {"logit_scale": 0.0625}, "model.norm"),
    ("granite", LLAMA | {"logits_scaling": 8.0}, "model.norm"),
    ("stablelm", LLAMA, "model.norm"),
    ("starcoder2", LLAMA, "model.norm"),
    ("mamba", LLAMA | {"state_size": 4}, "backbone.norm_f"),
    ("olmo", LLAMA, "lm_head"),  # its normalisations have no weights
    ("olmo", LLAMA | {"tie_word_embeddings": True}, "lm_head"),
]


def build(name: str, config: dict[str, Any]) -> PreTrainedModel:
    """Return a model whose weights, those of normalisations included, are far from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(("name", "config", "place"), ARCHITECTURES)
def test_logits_are_divided_and_stay_so_on_disk(
    name: str, config: dict[str, Any], place: str, tmp_path: Path
) -> None:
    model = build(name, config)
    expected = logits(model).double() / 1.37
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    folded = fold(model, 1.37, TOKENS)
    assert (folded.module, folded.is_norm) == (place, place != "lm_head")
    assert folded.untied == (tied and not folded.is_norm)
    model.save_pretrained(tmp_path)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path)
    still_tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert still_tied == (tied and not folded.untied)
    for each in (model, loaded):
        torch.testing.assert_close(logits(each.eval()).double(), expected, rtol=0, atol=2e-6)


def test_soft_capped_logits_are_refused_however_small_they_are() -> None:
    config = LLAMA | {"head_dim": 8}
    model = build("gemma2", config)
    assert logits(model).abs().max() < 30  # the cap hardly changes them
    with pytest.raises(UserError, match=r"soft-capped .*first predict"):
        fold(model, 1.37, TOKENS)
    fold(build("gemma2", config | {"final_logit_softcapping": None}), 1.37, TOKENS)


class Shifted(LlamaForCausalLM):
    """Adds to its logits what no weight of the last layers can scale."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1.0
        return output


def test_logits_that_weights_cannot_scale_are_refused(make_llama: MakeLlama) -> None:
    shifted = Shifted(make_llama(VOCABULARY).config)
    with pytest.raises(UserError, match="Shifted: its logits are not proportional"):
        fold(shifted, 2.0, TOKENS)


def test_a_later_reader_of_the_normalised_states_sends_the_temperature_to_the_output_layer(
    make_llama: MakeLlama,
) -> None:
    """A bias behind the normalisation is not divided by it; the trial shows that."""
    model = make_llama(VOCABULARY, tie_word_embeddings=True)
    model.model.norm.register_forward_hook(lambda _, __, output: output + 0.5)
    expected = logits(model) / 1.5
    assert fold(model, 1.5, TOKENS) == Fold(1.5, "lm_head", False, True)
    torch.testing.assert_close(logits(model), expected)
    assert model.config.tie_word_embeddings is False


def test_failed_trials_leave_no_trace(make_llama: MakeLlama) -> None:
    model = build("gemma", LLAMA | {"head_dim": 8})
    before = {name: values.clone() for name, values in model.state_dict().items()}
    fold(model, 1.0, TOKENS)
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=1e-7)


@settings(max_examples=20)
@given(temperature=st.floats(0.1, 10))
def test_any_temperature(temperature: float, make_llama: MakeLlama) -> None:
    model = make_llama(VOCABULARY)
    expected = logits(model).double() / temperature
    fold(model, temperature, TOKENS)
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(logits(model).double(), expected, rtol=0, atol=bound)


def test_weights_that_are_not_finite_are_refused(make_llama: MakeLlama) -> None:
    model = make_llama(VOCABULARY)
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        fold(model, 2.0, TOKENS)
