"""In which dtype the weights of a checkpoint are stored."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from transformers import AutoConfig, PreTrainedConfig

from firstcli.api import Dtype
from firstcli.checkpoints import adapters
from firstcli.checkpoints.folder import stored_dtype


def checkpoint_dtype(config: PreTrainedConfig, folder: Path | None) -> Dtype:
    """Return the dtype of a checkpoint's weights.

    The configuration says it, or otherwise the file of the weights; float32 if neither does.

    Args:
        config: the configuration of the whole model.
        folder: the checkpoint's folder, or None for one on the hub.
    """
    stated = [part.dtype for part in (config, config.get_text_config())]
    stated.append(stored_dtype(folder) if folder else None)
    names = (str(dtype).removeprefix("torch.") for dtype in stated)
    known: tuple[Dtype, ...] = get_args(Dtype)
    return next((one for name in names for one in known if one == name), "float32")


def base_dtype(folder: Path) -> Dtype:
    """Return the dtype of the whole model that an adapter's folder belongs to."""
    base = adapters.whole_model(folder)
    config = AutoConfig.from_pretrained(base.checkpoint, revision=base.revision)
    return checkpoint_dtype(config, base.folder)
