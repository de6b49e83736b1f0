"""Trained models are saved in the dtype that the recipe asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import MakeLlama
from firstcli.api import Dtype
from firstcli.checkpoints.loading import load_complete
from firstcli.errors import UserError
from firstcli.training import saving

V = 40
DTYPES: list[Dtype] = ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_rounded_once_and_stored_once(
    tmp_path: Path, make_llama: MakeLlama, dtype: Dtype, tied: bool
) -> None:
    """The model in memory keeps its weights; what is loaded equals them rounded."""
    model = make_llama(V, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saving.save(model, None, dtype, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    wanted = getattr(torch, dtype)
    assert ("lm_head.weight" in stored) != tied
    for name, value in stored.items():
        assert value.dtype == wanted and torch.equal(value, before[name].to(wanted))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    loaded = load_complete(tmp_path, dtype=torch.float32)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name].to(wanted).float())


def test_gathered_weights_count_instead_of_the_model(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    gathered = {name: value + 1 for name, value in model.state_dict().items()}
    saving.save(model, gathered, "bfloat16", tmp_path)
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, gathered[name].bfloat16())


def test_weights_that_a_class_keeps_in_float32(tmp_path: Path, make_llama: MakeLlama) -> None:
    model: Any = make_llama(V)
    model._keep_in_fp32_modules_strict = {"norm"}
    model._keep_in_fp32_modules = {"embed_tokens"}
    for dtype, kept in {"bfloat16": r"\bnorm\b", "float16": r"\bnorm\b|embed_tokens"}.items():
        saving.save(model, None, dtype, tmp_path)  # type: ignore[arg-type]
        for name, value in load_file(tmp_path / "model.safetensors").items():
            assert (value.dtype == torch.float32) == bool(re.search(kept, name)), name


def test_a_weight_that_is_too_large_for_float16(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    with pytest.raises(UserError, match=r"'model.norm.weight' are too large for float16"):
        saving.save(model, None, "float16", tmp_path)
    saving.save(model, None, "bfloat16", tmp_path)


def test_every_part_of_a_configuration_states_the_dtype() -> None:
    config = {"dtype": "float32", "text_config": {"dtype": "float32", "x": [1]}, "y": {}}
    found = saving._with_dtype(config, "bfloat16")
    assert found == {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": [1]}, "y": {}}
