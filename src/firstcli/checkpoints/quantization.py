"""Checkpoints with quantised weights: whether they can be loaded here, and trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_quantization(source: str, config: PreTrainedConfig) -> None:
    """Check that what quantised weights need is installed.

    Raises:
        UserError: a library or a device is missing, or the method is unknown; says which.
    """
    if (settings := _settings(config)) is None:
        return
    try:
        _quantizer(settings)
    # The methods of transformers raise any of these for a missing library or device.
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"checkpoint {source}: its weights are quantised ({_method(settings)}) and cannot be "
            f"loaded here: {reason}; mend that, or give the checkpoint that is not quantised"
        ) from error


def untrainable_method(config: PreTrainedConfig) -> str | None:
    """Return the method of weights that stay quantised and cannot be trained, or None."""
    if (settings := _settings(config)) is None:
        return None
    quantizer = _quantizer(settings)
    if getattr(quantizer.quantization_config, "dequantize", False):
        return None
    return None if getattr(quantizer, "is_qat_trainable", False) else _method(settings)


def _settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    for part in (config, config.get_text_config()):
        if settings := getattr(part, "quantization_config", None):
            return dict(settings if isinstance(settings, dict) else settings.to_dict())
    return None


def _quantizer(settings: dict[str, Any]) -> Any:
    """Return the quantizer that `from_pretrained` will use, after its own check."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
    quantizer.validate_environment(device_map=None, weights_only=True)
    return quantizer


def _method(settings: dict[str, Any]) -> str:
    return str(settings.get("quant_method", "bitsandbytes"))  # early files state none
