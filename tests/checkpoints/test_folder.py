"""What is recognised in a checkpoint's folder before any weights are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from firstcli.api import ModelRef
from firstcli.checkpoints.folder import check_folder, weight_files
from firstcli.errors import UserError
from firstcli.families import causal_lm
from firstcli.families.causal_lm import CausalLM, CausalLMOptions

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 4021\n".format("0" * 64)
LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)}


@pytest.fixture
def copy(tmp_path: Path, pico_folder: Path) -> Path:
    """A sound checkpoint that a test may change."""
    return Path(shutil.copytree(pico_folder, tmp_path / "copy"))


def save(path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, path, metadata={"format": "pt"})


def write_adapter(folder: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "meta/base", "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save(folder / "adapter_model.safetensors", LORA)


def refused(folder: Path, *parts: str) -> None:
    """Check the message, and that `causal-lm` gives it before it loads anything."""
    with pytest.raises(UserError) as caught:
        check_folder(folder)
    for part in (f"checkpoint {folder}: ", *parts):
        assert part in str(caught.value)
    with pytest.raises(UserError) as again:
        CausalLM(CausalLMOptions()).tokenizer(ModelRef(str(folder)), ())
    assert again.value.messages == caught.value.messages


def shard(folder: Path) -> list[str]:
    """Spread a folder's weights over two files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    halves = [dict(list(weights.items())[i::2]) for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        save(folder / file, half)
    weight_map = {name: f for f, half in zip(files, halves, strict=True) for name in half}
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return files


def test_a_sound_folder_passes(copy: Path) -> None:
    check_folder(copy)
    names = shard(copy)
    check_folder(copy)
    assert weight_files(copy) == [copy / name for name in names]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_git_lfs_pointers(copy: Path, name: str) -> None:
    (copy / name).write_text(POINTER)
    refused(copy, f"'{name}'", "git lfs pull")


def test_a_pointer_among_shards(copy: Path) -> None:
    (copy / shard(copy)[1]).write_text(POINTER)
    refused(copy, "'model-00002-of-00002.safetensors'", "git lfs pull")


def test_pointers_that_are_not_read_do_no_harm(copy: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.safetensors"):
        (copy / name).write_text(POINTER)
    check_folder(copy)


def test_an_adapter_beside_base_weights(copy: Path) -> None:
    write_adapter(copy)
    refused(copy, "an adapter (adapter_config.json) beside a model's weights", "merge_and_unload")


def test_adapter_weights_without_their_configuration(copy: Path) -> None:
    save(copy / "model.safetensors", load_file(copy / "model.safetensors") | LORA)
    refused(copy, "holds adapter weights", "lora_A", "merge_and_unload")


def test_an_adapter_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With peft installed, transformers would load the base model, wherever that is."""
    write_adapter(tmp_path)
    found = str(tmp_path / "adapter_config.json")
    monkeypatch.setattr(
        "transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: found
    )
    ref = ModelRef("someone/adapter", "v1")
    with pytest.raises(UserError, match=r"adapter: is an adapter of 'meta/base'.*download"):
        CausalLM(CausalLMOptions()).tokenizer(ref, ())
    causal_lm._hub_adapter_problem.cache_clear()


@pytest.mark.parametrize("other", [None, "pytorch_model.bin", "model.Q4_K_M.gguf"])
def test_other_formats(copy: Path, other: str | None) -> None:
    (copy / "model.safetensors").unlink()
    if other:
        (copy / other).write_bytes(b"")
    refused(copy, "has no model.safetensors" + (f", only '{other}'" if other else ";"))


def test_missing_and_damaged_files(copy: Path) -> None:
    first, _ = shard(copy)
    whole = (copy / first).read_bytes()
    (copy / first).unlink()
    refused(
        copy, f"1 of 2 files that model.safetensors.index.json names are missing, such as '{first}'"
    )
    (copy / first).write_bytes(whole[: len(whole) // 2])
    refused(copy, f"{first} is damaged or incomplete")
    (copy / first).write_bytes(b"<html>404</html>")
    refused(copy, f"{first} is damaged or incomplete")


def test_quantised_weights_without_a_declaration(copy: Path) -> None:
    packed = {"model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 32, dtype=torch.int32)}
    save(copy / "model.safetensors", load_file(copy / "model.safetensors") | packed)
    refused(copy, "holds quantised weights", "up_proj.qweight", "no quantization_config")


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("settings", "library"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "unheard-of"}, "unheard-of"),
    ],
)
def test_quantised_weights_whose_library_is_missing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], library: str
) -> None:
    for module in ("gptq", "bnb_4bit", "bnb_8bit"):
        for name in ("is_optimum_available", "is_bitsandbytes_available"):
            target = f"transformers.quantizers.quantizer_{module}.{name}"
            monkeypatch.setattr(target, lambda *_: False, raising=False)
    edit(copy, quantization_config=settings)
    with pytest.raises(UserError, match=f"its weights are quantised .*{library}"):
        CausalLM(CausalLMOptions()).empty_model(ModelRef(str(copy)), None)  # type: ignore[arg-type]
