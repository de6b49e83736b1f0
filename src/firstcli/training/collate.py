"""Training batches: padded tokens, and the supervised positions of all samples flattened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from firstcli.data.encoding import EncodedSample
from firstcli.models import inference
from firstcli.training.soft_targets import SoftTargets

SoftTargetSource = Callable[[Sequence[EncodedSample]], SoftTargets]
"""Returns the soft targets of all supervised positions of a batch, in order, such as
`soft_targets.SoftTargetBuilder`."""


@dataclass(frozen=True)
class TrainingBatches(Dataset[dict[str, Tensor]]):
    """The batch of B samples with N supervised positions in total, by the samples' indices.

    A single `~index` gives a batch with the sample's tokens but N = 0.
    """

    samples: Sequence[EncodedSample]
    soft_targets: SoftTargetSource | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if indices[0] < 0:
            batch = self[[~indices[0]]]
            by_sample = ("input_ids", "attention_mask", "samples")
            return {name: part if name in by_sample else part[:0] for name, part in batch.items()}
        samples = [self.samples[i] for i in indices]
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
        if self.soft_targets is not None:
            soft = self.soft_targets(samples)
            batch["token_ids"] = torch.from_numpy(soft.token_ids).long()  # (N, k)
            batch["probabilities"] = torch.from_numpy(soft.probabilities)  # (N, k)
            batch["tail"] = torch.from_numpy(soft.tail)  # (N,)
            batch["teacher_mass"] = torch.from_numpy(soft.teacher_mass)  # (N,)
        return batch

    __getitems__ = __getitem__  # which a DataLoader with a batch sampler calls
