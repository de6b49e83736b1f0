"""Batches of training samples: padded tokens, and targets flattened over (row, column)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstcli.data.encoding import EncodedSample
from firstcli.models import inference
from firstcli.training.soft_targets import SoftTargets


class Teacher(Protocol):
    """Says what the samples of a batch are taught, such as `teaching.SoftTargetBuilder`."""

    def __call__(self, rows: Sequence[EncodedSample], /) -> SoftTargets:
        """Return what all their supervised positions are taught, in order."""


class Rows(torch.utils.data.Dataset[int]):
    """The indices of the training samples; `collate` looks the samples up."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class Collate:
    """Make a batch from indices: padded tokens, and targets flattened over (row, column)."""

    def __init__(self, rows: Sequence[EncodedSample], lessons: Teacher | None) -> None:
        self._rows = rows
        self._lessons = lessons

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [self._rows[i] for i in indices]
        padded = inference.pad([row.input_ids for row in rows])
        counts = [len(row.targets) for row in rows]
        batch = {
            "input_ids": padded.input_ids,  # (B, L)
            "attention_mask": padded.attention_mask,
            "rows": torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)),  # (N,)
            # The token at position t is predicted from position t - 1.
            "columns": torch.cat(
                [torch.arange(row.start - 1, len(row.input_ids) - 1) for row in rows]
            ),
            "targets": _tensor([row.targets for row in rows]).long(),
            "samples": torch.tensor(indices),  # (B,)
        }
        if self._lessons is not None:
            probabilities = self._lessons(rows)
            batch["token_ids"] = torch.from_numpy(probabilities.token_ids).long()  # (N, k)
            batch["probabilities"] = torch.from_numpy(probabilities.probabilities)  # (N, k)
            batch["tail"] = torch.from_numpy(probabilities.tail)  # (N,)
            batch["teacher_mass"] = torch.from_numpy(probabilities.teacher_mass)  # (N,)
        return batch


def _tensor(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
