"""Try out whether a model keeps packed sequences apart: several in one row, without padding.

transformers derives the borders of the sequences from position ids that start again at 0. Which
architectures heed them cannot be read from a configuration: a state-space model carries its state
into the next sequence, and some models ignore position ids that they accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from firstcli.checkpoints.causality import difference, evaluating, tolerance
from firstcli.checkpoints.placement import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (5, 11)
"""Tokens of the two sequences; the second starts in the middle of the row."""


def fault(model: PreTrainedModel, token_ids: Sequence[int], context: int | None) -> str | None:
    """Return why a model cannot read packed sequences, or None if it can.

    Two sequences are read packed, and in a padded batch. Their logits must be equal, up to a small
    part of what different tokens change. The model's mode and random numbers are left as they were.

    Args:
        model: a causal decoder, on any device that it runs on.
        token_ids: at least two ordinary token ids, all different.
        context: the longest sequence that the model accepts; None if it has no limit.
    """
    import torch

    first, second = (min(length, context or length) for length in LENGTHS)
    ids = torch.tensor([token_ids[i % len(token_ids)] for i in range(first + second)])
    padded, mask = torch.zeros(2, 2, max(first, second), dtype=torch.long)
    padded[0, :first], padded[1, :second] = ids[:first], ids[first:]
    mask[0, :first] = mask[1, :second] = 1
    positions = torch.cat([torch.arange(first), torch.arange(second)])
    device = input_device(model)
    with torch.no_grad(), evaluating(model):
        apart = model(
            input_ids=padded.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits.float()
        try:
            packed = model(
                input_ids=ids[None].to(device),
                position_ids=positions[None].to(device),
                use_cache=False,
            ).logits[0]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises: it reads padded batches
            reason = " ".join(str(error).split())[:100]
            return f"it does not read sequences in one row ({reason})"
    common = min(first, second)
    bound = difference(apart[0, :common], apart[1, :common]) * tolerance(model, packed)
    parts = packed.float().split([first, second])
    worst = max(difference(parts[0], apart[0, :first]), difference(parts[1], apart[1, :second]))
    if worst <= bound:
        return None
    return f"it mixes up the sequences of one row, which changes their logits by up to {worst:.2g}"
