"""Adapters' folders: what their base model is, and what is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from firstcli.api import ModelRef
from firstcli.checkpoints import adapters
from firstcli.checkpoints.adapters import Base, base_of, check_checkpoint
from firstcli.checkpoints.loading import load_complete
from firstcli.errors import UserError
from firstcli.families.causal_lm import CausalLM, CausalLMOptions
from firstcli.workspace.artifacts import Digests

peft = pytest.importorskip("peft")
IDS = torch.arange(24).reshape(2, 12)


def make_adapter(folder: Path, base: Path, seed: int = 0, **config: Any) -> Path:
    """Save an adapter with peft's own methods."""
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options | config))
    generator = torch.Generator().manual_seed(seed)
    for name, value in wrapped.named_parameters():
        if "lora_" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    wrapped.save_pretrained(folder)
    return folder


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def adapter(tmp_path: Path, pico_folder: Path) -> Path:
    shutil.copytree(pico_folder, tmp_path / "base")
    return make_adapter(tmp_path / "adapter", tmp_path / "base")


def refused(folder: Path, *parts: str) -> None:
    """Check the message, and that the family gives it before it loads anything."""
    with pytest.raises(UserError) as caught:
        check_checkpoint(folder)
    for part in (f"checkpoint {folder}: ", *parts):
        assert part in str(caught.value)
    with pytest.raises(UserError) as again:
        CausalLM(CausalLMOptions()).tokenizer(ModelRef(str(folder)), ())
    assert again.value.messages == caught.value.messages


def test_an_adapter_is_merged_as_peft_merges_it(adapter: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = base(IDS).logits
    expected = peft.PeftModel.from_pretrained(base, adapter)(IDS).logits
    family, ref = CausalLM(CausalLMOptions()), ModelRef(str(adapter))
    tokenizer = family.tokenizer(ref, ())  # that of the base model
    model = family.model(ref, tokenizer, "float32", 0)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (before - expected).abs().max() > 0.01
    empty = family.empty_model(ref, tokenizer)
    assert [(n, v.shape) for n, v in empty.named_parameters()] == [
        (n, v.shape) for n, v in model.named_parameters()
    ]
    half = load_complete(adapter, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


def test_an_adapter_of_an_adapter(adapter: Path, tmp_path: Path) -> None:
    middle = load_complete(adapter, dtype=torch.float32)
    middle.save_pretrained(tmp_path / "middle")
    second = make_adapter(tmp_path / "second", tmp_path / "middle", seed=1)
    expected = load_complete(second, dtype=torch.float32)(IDS).logits
    change(second, base_model_name_or_path=str(adapter))
    check_checkpoint(second)
    found = load_complete(second, dtype=torch.float32)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    change(adapter, base_model_name_or_path=str(second))
    refused(second, "is its own base model")


def test_the_base_is_a_folder_or_a_hub_id(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Base(str((tmp_path / "base").resolve()))
    assert base_of(adapter) == base
    change(adapter, base_model_name_or_path="../base")  # relative to the adapter
    assert base_of(adapter) == base
    monkeypatch.chdir(tmp_path)
    change(adapter, base_model_name_or_path="base")  # relative to the current folder
    assert base_of(adapter) == base
    change(adapter, base_model_name_or_path="owner/base", revision="v1")
    assert base_of(adapter) == Base("owner/base", "v1")


@pytest.mark.parametrize("base", ["/nowhere/base", "../nowhere/base", "~/nowhere/at all"])
def test_a_missing_base_is_one_sentence(adapter: Path, base: str) -> None:
    change(adapter, base_model_name_or_path=base)
    refused(adapter, f"base model of this adapter, '{base}', is not there", "adapter_config.json")


def test_an_adapter_without_a_base(adapter: Path) -> None:
    change(adapter, base_model_name_or_path=None)
    refused(adapter, "has no base_model_name_or_path")


def test_other_kinds_and_formats(adapter: Path) -> None:
    change(adapter, peft_type="LOHA")
    refused(adapter, "of type LOHA", "merges only LORA")
    change(adapter, peft_type="LORA")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(adapter, "adapter_model.safetensors is damaged or incomplete")
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(adapter, "git lfs pull")
    weights.rename(adapter / "adapter_model.bin")
    refused(adapter, "has no adapter_model.safetensors, only adapter_model.bin")


def test_a_damaged_base_is_named(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"base: has no model.safetensors"):
        check_checkpoint(adapter)


def test_without_peft_the_extra_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "peft" else find(name))
    refused(adapter, "needs peft", "pip install 'firstcli[peft]'")


def test_an_adapter_that_does_not_fit_its_base(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    first, *_ = weights
    save_file({name: v for name, v in weights.items() if name != first}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"does not fit its base model .*1 weights are missing"):
        load_complete(adapter)
    save_file(weights | {"base_model.model.extra.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"does not fit .*no place in the model, such as"):
        load_complete(adapter)
    save_file(weights | {first: torch.zeros(2, 5)}, path)
    with pytest.raises(UserError, match=r"does not fit its base model .*size mismatch"):
        load_complete(adapter)


def test_the_digest_covers_the_adapter_and_its_base(adapter: Path, tmp_path: Path) -> None:
    def digest() -> str:
        return Digests().of_checkpoint(adapter)

    def rewrite(path: Path) -> None:
        weights = load_file(path)
        first, *_ = weights
        save_file(weights | {first: weights[first] + 1}, path, {"format": "pt"})

    found = [digest()]
    assert digest() == found[0]
    rewrite(adapter / "adapter_model.safetensors")
    found.append(digest())
    rewrite(tmp_path / "base" / "model.safetensors")
    found.append(digest())
    for revision in ("v1", "v2"):
        change(adapter, base_model_name_or_path="owner/base", revision=revision)
        found.append(digest())
    assert len(set(found)) == len(found)
