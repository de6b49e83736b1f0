"""Models that see the future or padding are found, whatever their configuration says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CpmAntConfig,
    GPT2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from conftest import MakeLlama
from firstcli.checkpoints import causality
from firstcli.models import inference
from support.checkpoints import SHAPE

V = SHAPE["vocab_size"]
SOUND: dict[str, PreTrainedConfig] = {
    "bart": BartConfig(vocab_size=V, d_model=16, decoder_layers=1, decoder_attention_heads=2),
    "bert": BertConfig(**SHAPE, is_decoder=True),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2),
    "mamba": MambaConfig(vocab_size=V, hidden_size=16, state_size=4, num_hidden_layers=1),
    "mixtral": MixtralConfig(**SHAPE, num_key_value_heads=1, num_local_experts=4),
}
CPMANT = CpmAntConfig(
    vocab_size=V,
    hidden_size=16,
    num_attention_heads=2,
    dim_head=8,
    dim_ff=24,
    num_hidden_layers=2,
    prompt_types=4,
    prompt_length=4,
    segment_types=4,
)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model whose weights are larger than usual, like those of a trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def fault(model: PreTrainedModel, context: int | None = None) -> str:
    return causality.fault(model, range(5, V), context) or ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SOUND)
def test_decoders_pass(name: str, dtype: torch.dtype) -> None:
    model = build(SOUND[name])
    model.to(dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    assert fault(model) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_flag_makes_a_decoder_see_the_future(
    make_llama: MakeLlama, attention: str, dtype: torch.dtype
) -> None:
    model = make_llama(V, is_causal=False, attn_implementation=attention)
    model.to(dtype)  # type: ignore[arg-type]  # a decorator hides its signature
    assert fault(model).startswith("it is not causal: later tokens change")
    assert fault(make_llama(V, attn_implementation=attention)) == ""


def test_an_encoder_is_found() -> None:
    """It loads as a decoder with no more than a warning."""
    assert "it is not causal" in fault(build(BertConfig(**SHAPE)))


def test_even_weights_that_have_learned_nothing_show_it() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BertConfig(**SHAPE))
    assert "it is not causal" in fault(model)


def test_cpmant_is_refused() -> None:
    """All its tokens see each other, and it guesses the padding, always on the left, from id 0."""
    assert "it is not causal" in fault(build(CPMANT))


class PaddingCounted(torch.nn.Module):
    """Stand in for a causal model whose scale depends on the number of masked tokens."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(V, V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        logits = self.table(input_ids) * attention_mask.sum(-1)[:, None, None]
        return type("Output", (), {"logits": logits})


def test_padding_that_counts_is_found() -> None:
    model: Any = PaddingCounted()
    assert "it does not ignore padding" in fault(model)


def test_a_short_context(make_llama: MakeLlama) -> None:
    """A learned position limits the length; longer sequences would fail."""
    for context in (2, 3, 8):
        model = build(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, n_positions=context))
        assert fault(model, context) == ""
        assert "causal" in fault(make_llama(V, is_causal=False), context)


def test_the_model_is_left_as_it_was(make_llama: MakeLlama) -> None:
    """Also with dropout: its modes and the random numbers are the same as before."""
    model = make_llama(V, attention_dropout=0.5)
    model.train()
    model.lm_head.eval()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert fault(model) == ""
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.model.training and not model.lm_head.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_special_tokens_are_left_out(
    make_llama: MakeLlama, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    """A multimodal model fails on tokens that stand for images."""
    model = make_llama(len(byte_tokenizer), is_causal=False)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(
        lambda *args: seen.append(args[2]["input_ids"]), with_kwargs=True
    )
    assert "LlamaForCausalLM cannot be used, because it is not causal" in str(
        inference.decoder_fault(model, byte_tokenizer)
    )
    given = set(seen[0][:2].flatten().tolist())
    assert len(given) > 10 and not given & set(byte_tokenizer.all_special_ids)
