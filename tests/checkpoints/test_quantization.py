"""Quantised weights: which of them can be trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
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
