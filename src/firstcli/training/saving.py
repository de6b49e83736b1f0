"""Save a trained model in the dtype that the recipe asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from firstcli.api import Dtype
from firstcli.errors import UserError, shortened
from firstcli.runtime.files import write_json


def save(
    model: PreTrainedModel, weights: Mapping[str, Tensor] | None, dtype: Dtype, folder: Path
) -> None:
    """Write a model as a Hugging Face folder, whose configuration states the dtype.

    Args:
        model: the trained model.
        weights: its whole weights, if the model holds only shards of them.
        dtype: type of the saved weights.
        folder: where to write; it exists.

    Raises:
        UserError: a weight is too large for the dtype.
    """
    wanted = getattr(torch, dtype)
    whole: Mapping[str, Tensor] = model.state_dict() if weights is None else weights
    kept = _kept_in_float32(model, wanted)
    model.save_pretrained(folder, state_dict=dict(_converted(whole, wanted, kept)))
    path = folder / "config.json"  # transformers writes the dtype of the model in memory
    write_json(path, _with_dtype(json.loads(path.read_text("utf-8")), dtype))


def _converted(
    weights: Mapping[str, Tensor], dtype: torch.dtype, kept: re.Pattern[str] | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight in a dtype, on the CPU; tied weights stay one tensor, to be saved once."""
    made: dict[tuple[object, ...], Tensor] = {}
    overflowing: list[str] = []
    for name, value in weights.items():
        if not value.is_floating_point() or (kept and kept.search(name)):
            yield name, value
            continue
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in made:
            made[key] = value.detach().to("cpu", dtype)
            if dtype == torch.float16 and not made[key].isfinite().all():
                overflowing.append(name)
        yield name, made[key]
    if overflowing:
        raise UserError(
            f"save_dtype: weights such as {shortened(overflowing, 2)} are too large for float16; "
            "the last checkpoint is kept, set save_dtype: bfloat16 or float32"
        )


def _kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Return what matches the names of weights that the model's class keeps in float32."""
    names: set[str] = set()
    if dtype != torch.float32:
        names |= set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        names |= set(model._keep_in_fp32_modules or ())
    return re.compile("|".join(map(_within_a_name, sorted(names)))) if names else None


def _within_a_name(module: str) -> str:
    return rf"(^|\.){re.escape(module)}(\.|$)"


def _with_dtype(config: Any, dtype: Dtype) -> Any:
    """Return a configuration whose every part that states a dtype states this one."""
    if isinstance(config, dict):
        changed: Iterable[tuple[str, Any]] = (
            (key, dtype if key == "dtype" else _with_dtype(value, dtype))
            for key, value in config.items()
        )
        return dict(changed)
    return config
