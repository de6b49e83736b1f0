"""Checkpoints with quantised weights, and weights that are quantised as they are loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from firstcli.errors import UserError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedConfig

PACKAGES = {
    "aqlm": "aqlm",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "firstcli[bitsandbytes]",
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}
"""What to install for a method, where transformers loads its weights through a package."""
_GROUP = 64
"""Weights of 4 bits that share one scale in bitsandbytes."""
LOADED_BYTES = {"nf4": 0.5 + 4 / _GROUP, "fp4": 0.5 + 4 / _GROUP, "int8": 1.0}
"""Bytes per weight of a matrix that bitsandbytes quantises, by `load_in`: 4 bits and a float32
scale per group; 8 bits."""


def bitsandbytes_config(
    load_in: str, compute_dtype: str | None, *, double_quant: bool
) -> BitsAndBytesConfig:
    """Return the configuration with which transformers quantises weights while it loads them.

    Args:
        load_in: `nf4`, `fp4` or `int8`.
        compute_dtype: dtype of the products with 4-bit weights; None: bfloat16.
        double_quant: whether to quantise the scales of 4-bit weights, too.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU.
    """
    require_bitsandbytes(load_in)
    import torch
    from transformers import BitsAndBytesConfig

    if load_in == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=load_in,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype or "bfloat16"),
        bnb_4bit_use_double_quant=double_quant,
    )


def require_bitsandbytes(load_in: str) -> None:
    """Check for what quantising weights needs.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU.
    """
    import torch

    what = f"model.options.quantization: load_in: {load_in}"
    if not torch.cuda.is_available():
        raise UserError(
            f"{what} needs a GPU, and this machine has none that PyTorch can use; run it on one, "
            "or leave out quantization"
        )
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"{what} needs the package bitsandbytes: pip install 'firstcli[bitsandbytes]'"
        )


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
        package = PACKAGES.get(_method(settings)) if isinstance(error, ImportError) else None
        cure = f"run pip install '{package}'" if package else "mend that"
        raise UserError(
            f"checkpoint {source}: its weights are quantised ({_method(settings)}) and cannot be "
            f"loaded here: {reason}; {cure}, or give the checkpoint that is not quantised"
        ) from error


def is_quantized(config: PreTrainedConfig) -> bool:
    """Return whether a checkpoint's weights are quantised."""
    return _settings(config) is not None


def untrainable_method(config: PreTrainedConfig) -> str | None:
    """Return the method of weights that stay quantised and cannot be trained, or None."""
    if (settings := _settings(config)) is None:
        return None
    quantizer = _quantizer(settings)
    if getattr(quantizer.quantization_config, "dequantize", False):
        return None
    return None if getattr(quantizer, "is_qat_trainable", False) else _method(settings)


def bytes_per_weight(config: PreTrainedConfig) -> float | None:
    """Return what a quantised weight of a linear layer takes, or None if none is quantised.

    The scales of groups of weights are included for bitsandbytes. Other methods state at most their
    number of bits.
    """
    settings = _settings(config)
    if settings is None or getattr(_quantizer(settings).quantization_config, "dequantize", False):
        return None
    if settings.get("load_in_4bit"):
        if settings.get("bnb_4bit_use_double_quant"):
            # A scale has 8 bits, and 256 scales share a float32.
            return 0.5 + (1 + 4 / 256) / _GROUP
        return LOADED_BYTES["nf4"]  # fp4 takes the same
    if settings.get("load_in_8bit"):
        return LOADED_BYTES["int8"]
    bits = settings.get("bits", settings.get("w_bit", 8))
    return float(bits) / 8 if isinstance(bits, int) else 1.0


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
