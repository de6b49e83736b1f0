"""What a model takes of a device's memory while it is only read: weights, one batch, logits."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from firstcli.models.readout import CHUNK_ROWS


def weight_bytes(model: PreTrainedModel, width: int, quantized: float | None = None) -> int:
    """Return the bytes of a model's weights.

    Args:
        model: the model; it may be without weights.
        width: bytes of a weight that is not quantised.
        quantized: bytes of a weight of a linear layer, if these are quantised. The output layer
            never is.
    """
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    total = sum(value.numel() for value in model.parameters())
    if quantized is None:
        return width * total
    count = sum(module.weight.numel() for module in linear)
    return int(quantized * count) + width * (total - count)


def batch_bytes(model: PreTrainedModel, tokens: int, width: int) -> int:
    """Estimate the bytes that a batch takes at most, without gradients.

    One layer is alive at a time: either attention (its input, the normalised input, queries, keys,
    values and the result) or the feed-forward part (input, normalised input and three tensors of
    the intermediate size). After the last layer, a chunk of float32 logits takes their place.
    Attention is assumed not to store its probabilities, as fused kernels do.

    Args:
        model: the model; it may be without weights.
        tokens: tokens of the batch, padding included.
        width: bytes of a number in the hidden states.
    """
    config = model.config.get_text_config()
    hidden = int(model.get_output_embeddings().weight.shape[1])
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * hidden
    layer = tokens * width * max(6 * hidden, 2 * hidden + 3 * inner)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    logits = tokens * width * 2 * hidden + min(tokens, CHUNK_ROWS) * vocabulary * 4
    return max(layer, logits)


def width_of(dtype: str) -> int:
    """Return the bytes of a number."""
    named: torch.dtype = getattr(torch, dtype)
    return named.itemsize
