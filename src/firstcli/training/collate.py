"""Training batches: padded tokens, and the supervised positions of all samples flattened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from firstcli.data.encoding import EncodedSample
from firstcli.models import inference
from firstcli.training.soft_targets import SoftTargets

SoftTargetSource = Callable[[Sequence[EncodedSample]], SoftTargets]
"""Returns the soft targets of all supervised positions of a batch, in order, such as
`soft_targets.SoftTargetBuilder`."""


class SampleIndices(torch.utils.data.Dataset[int]):
    """The indices of the training samples, for a loader whose `Collate` looks the samples up.

    Unlike a range, it returns a negative `~index` unchanged.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class Collate:
    """Make a batch from the indices of B samples with N supervised positions in total.

    From a single `~index`, it makes a batch with the sample's tokens but N = 0.
    """

    def __init__(
        self, samples: Sequence[EncodedSample], soft_targets: SoftTargetSource | None
    ) -> None:
        self._samples = samples
        self._soft_targets = soft_targets

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if indices[0] < 0:
            batch = self([~indices[0]])
            by_sample = ("input_ids", "attention_mask", "samples")
            return {name: part if name in by_sample else part[:0] for name, part in batch.items()}
        samples = [self._samples[i] for i in indices]
        padded = inference.pad([sample.input_ids for sample in samples])
        counts = torch.tensor([len(sample.targets) for sample in samples])
        # The token at position t is predicted from position t - 1.
        columns = [torch.arange(sample.start - 1, len(sample.input_ids) - 1) for sample in samples]
        targets = np.concatenate([sample.targets for sample in samples])
        batch = {
            "input_ids": padded.input_ids,  # (B, L)
            "attention_mask": padded.attention_mask,  # (B, L)
            "rows": torch.arange(len(samples)).repeat_interleave(counts),  # (N,)
            "columns": torch.cat(columns),  # (N,)
            "targets": torch.from_numpy(targets).long(),  # (N,)
            "samples": torch.tensor(indices),  # (B,)
        }
        if self._soft_targets is not None:
            soft = self._soft_targets(samples)
            batch["token_ids"] = torch.from_numpy(soft.token_ids).long()  # (N, k)
            batch["probabilities"] = torch.from_numpy(soft.probabilities)  # (N, k)
            batch["tail"] = torch.from_numpy(soft.tail)  # (N,)
            batch["teacher_mass"] = torch.from_numpy(soft.teacher_mass)  # (N,)
        return batch
