# ruff: noqa: TID253
"""Batches of training samples: padded tokens, and targets flattened over (row, column)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from firstcli import models
from firstcli.encoding import Encoded

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taught:
    """What a sample's supervised positions are taught from the teacher."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    probabilities: FloatArray  # (N, k), p^ = M * target
    tail: FloatArray  # (N,), 1 - M
    teacher_mass: FloatArray  # (N,), P, whatever M is


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

    def __init__(self, rows: Sequence[Encoded], taught: Sequence[Taught] | None) -> None:
        self._rows = rows
        self._taught = taught

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = [self._rows[i] for i in indices]
        padded = models.pad([row.input_ids for row in rows])
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
        if self._taught is not None:
            taught = [self._taught[i] for i in indices]
            batch["token_ids"] = _tensor([one.token_ids for one in taught]).long()  # (N, k)
            batch["taught"] = _tensor([one.probabilities for one in taught])  # (N, k)
            batch["tail"] = _tensor([one.tail for one in taught])  # (N,)
            batch["teacher_mass"] = _tensor([one.teacher_mass for one in taught])  # (N,)
        return batch


def _tensor(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
