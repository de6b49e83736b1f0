"""The memory of a model that is only read."""

from __future__ import annotations

import pytest
import torch

from conftest import MakeLlama
from firstcli.models import footprint

V = 40


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_take_what_tensors_take(make_llama: MakeLlama, dtype: str) -> None:
    model = make_llama(V, tie_word_embeddings=True).to(getattr(torch, dtype))
    width = footprint.width_of(dtype)
    held = sum(value.numel() * value.element_size() for value in model.parameters())
    assert footprint.weight_bytes(model, width) == held


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_layers_within_are_quantised(make_llama: MakeLlama, tied: bool) -> None:
    """32 wide, 48 inside, 2 layers: four matrices of attention, three of the feed-forward part."""
    model = make_llama(V, tie_word_embeddings=tied)
    linear = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    rest = 32 * V * (1 if tied else 2) + 5 * 32  # embeddings, and five norms
    assert footprint.weight_bytes(model, 2, 0.5625) == 0.5625 * linear + 2 * rest
    assert footprint.weight_bytes(model, 2) == 2 * (linear + rest)


def test_a_batch_takes_a_layer_or_a_chunk_of_logits(make_llama: MakeLlama) -> None:
    model = make_llama(V)
    assert footprint.batch_bytes(model, 1000, 4) == 1000 * 4 * (2 * 32 + 3 * 48)
    wide = make_llama(4000)
    assert footprint.batch_bytes(wide, 1000, 2) == 1000 * 2 * 64 + 512 * 4000 * 4
    assert footprint.batch_bytes(wide, 10, 2) == 10 * 2 * 64 + 10 * 4000 * 4
