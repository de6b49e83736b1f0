"""Quantised weights: which of them can be trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from firstcli.checkpoints import quantization
from firstcli.checkpoints.quantization import check_quantization, untrainable_method
from firstcli.errors import UserError


def quantized(settings: dict[str, Any] | None) -> LlamaConfig:
    return LlamaConfig.from_dict({"quantization_config": settings})


def test_plain_weights() -> None:
    for config in (LlamaConfig(), quantized(None)):
        check_quantization("x", config)
        assert untrainable_method(config) is None


@pytest.mark.parametrize(
    ("dequantize", "is_qat_trainable", "expected"),
    [(False, False, "gptq"), (True, False, None), (False, True, None)],
)
def test_weights_that_stay_quantised(
    monkeypatch: pytest.MonkeyPatch, dequantize: bool, is_qat_trainable: bool, expected: str | None
) -> None:
    settings = SimpleNamespace(dequantize=dequantize)
    quantizer: Any = SimpleNamespace(
        quantization_config=settings, is_qat_trainable=is_qat_trainable
    )
    monkeypatch.setattr(quantization, "_quantizer", lambda _: quantizer)
    config = quantized({"quant_method": "gptq", "bits": 4})
    assert untrainable_method(config) == expected


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'torchao'.")

    monkeypatch.setattr(quantization, "_quantizer", absent)
    config = quantized({"quant_method": "torchao"})
    with pytest.raises(UserError, match=r"x: its weights are quantised \(torchao\) .*'torchao';"):
        check_quantization("x", config)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"load_in_4bit": True, "load_in_8bit": False}, 0.5 + 4 / 64),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 0.5 + 1 / 64 + 4 / (64 * 256)),
        ({"load_in_8bit": True}, 1.0),
        ({"quant_method": "gptq", "bits": 4}, 0.5),
        ({"quant_method": "fp8"}, 1.0),
    ],
)
def test_bytes_of_a_weight(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: float
) -> None:
    kept: Any = SimpleNamespace(quantization_config=SimpleNamespace(dequantize=False))
    monkeypatch.setattr(quantization, "_quantizer", lambda _: kept)
    assert quantization.bytes_per_weight(quantized(settings)) == pytest.approx(expected)
    kept.quantization_config.dequantize = True  # as FP8 is on a CPU
    assert quantization.bytes_per_weight(quantized(settings)) is None
    assert quantization.bytes_per_weight(LlamaConfig()) is None


def test_quantising_needs_a_gpu_and_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="nf4 needs a GPU, and this machine has none"):
        quantization.bitsandbytes_config("nf4", None, double_quant=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'firstcli\[bitsandbytes\]'"):
        quantization.bitsandbytes_config("int8", None, double_quant=False)


def test_the_settings_reach_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "require_bitsandbytes", lambda _: None)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.50.0")
    four = quantization.bitsandbytes_config("fp4", "float16", double_quant=True)
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "fp4"
    assert four.bnb_4bit_use_double_quant and four.bnb_4bit_compute_dtype == torch.float16
    plain = quantization.bitsandbytes_config("nf4", None, double_quant=False)
    assert plain.bnb_4bit_compute_dtype == torch.bfloat16 and not plain.bnb_4bit_use_double_quant
    eight = quantization.bitsandbytes_config("int8", None, double_quant=False)
    assert eight.load_in_8bit and not eight.load_in_4bit


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Any) -> Any:
        raise ImportError("Loading a GPTQ quantized model requires gptqmodel")

    monkeypatch.setattr(quantization, "_quantizer", absent)
    with pytest.raises(UserError, match="run pip install 'gptqmodel'"):
        check_quantization("x", quantized({"quant_method": "gptq", "bits": 4}))
