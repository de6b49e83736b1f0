"""Try out whether a loaded model is a causal decoder and ignores padding on the right.

No configuration can be trusted for that: an encoder loads as a decoder without a word, and one flag
turns a decoder into an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from firstcli.checkpoints.placement import input_device

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

LENGTH = 16
"""Tokens of each sequence; the second half is changed."""
TOLERANCE = 1e-4
"""Largest change of the first half's logits, relative to that of the second half's."""
ROUNDING_ERRORS = 4
"""The same in units of the weights' precision: kernels and mixtures of experts round differently
in different places of a batch, but a model that sees the future changes by a tenth or more."""


def fault(model: PreTrainedModel, token_ids: Sequence[int], context: int | None) -> str | None:
    """Return what is wrong with a model's predictions, or None if they are sound.

    One batch holds a sequence, the same with a different second half, and the same with its second
    half replaced by masked padding. The predictions of the first half must be equal. The model's
    mode and random numbers are left as they were.

    Args:
        model: the model, on any device that it runs on.
        token_ids: at least two ordinary token ids, all different.
        context: the longest sequence that the model accepts; None if it has no limit.

    Raises:
        Exception: the model does not run on its device.
    """
    import torch

    length = max(2, min(LENGTH, context or LENGTH))
    half = length // 2
    ids = torch.tensor([token_ids[i % len(token_ids)] for i in range(length + 1)])
    batch = ids[:length].repeat(3, 1)  # (3, L)
    batch[1, half:] = ids[half + 1 :]  # each token differs from the next one
    mask = torch.ones_like(batch)
    batch[2, half:] = mask[2, half:] = 0  # as `models.inference.pad` does
    device = input_device(model)
    with torch.no_grad(), evaluating(model):
        output = model(input_ids=batch.to(device), attention_mask=mask.to(device), use_cache=False)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != batch.shape:
        return None  # what reads the predictions reports it
    original, changed, padded = logits.float()
    effect = difference(original[half:], changed[half:])
    bound = effect * tolerance(model, logits)
    if (leak := difference(original[:half], changed[:half])) > bound:
        return (
            f"it is not causal: later tokens change the logits before them, by up to {leak:.2g} "
            f"(their own by {effect:.2g}); choose a decoder, or set is_decoder or is_causal "
            "to true in its config.json if that turned it into an encoder"
        )
    if (leak := difference(original[:half], padded[:half])) > bound:
        return (
            "it does not ignore padding: masked tokens on the right change the logits before "
            f"them, by up to {leak:.2g}; choose a different architecture"
        )
    return None


def tolerance(model: PreTrainedModel, logits: Tensor) -> float:
    """Return the largest harmless change of a model's logits, relative to that of an effect."""
    import torch

    precision = max(torch.finfo(dtype).eps for dtype in (logits.dtype, model.dtype))
    return max(TOLERANCE, ROUNDING_ERRORS * precision)


def difference(left: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference; NaN, which is never above a bound, if any is."""
    return float((left - right).abs().max())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Disable dropout, so that no random number is drawn; restore every module's mode later."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
