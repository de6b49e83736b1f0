"""The batches of training: which samples each step learns from, and their tensors.

The order is a pure function of lengths, batch size, seed and epoch. Neither the number of
processes, nor the micro-batch, nor a resumed run changes which samples a step learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from firstcli.data.encoded import IntArray
from firstcli.data.encoding import EncodedSample
from firstcli.models import inference
from firstcli.training.soft_targets import SoftTargets

POOL_BATCHES = 128  # batches sorted together by length: padding below 5 %, otherwise random

SoftTargetSource = Callable[[Sequence[EncodedSample]], SoftTargets]
"""Returns the soft targets of all supervised positions of a batch, in order, such as
`soft_targets.SoftTargetBuilder`."""


class EpochChoice(Protocol):
    """Chooses the samples of each epoch, such as `copies.CopyChoice`."""

    def __len__(self) -> int:
        """Return how many samples an epoch has."""

    def of_epoch(self, epoch: int) -> IntArray:
        """Return their indices, which may repeat; the same at each call."""


def batches_of_epoch(lengths: IntArray, batch_size: int, seed: int, epoch: int) -> list[IntArray]:
    """Cut a random order of the samples into batches of similar length.

    Samples are shuffled, pooled by `POOL_BATCHES` batches, sorted by length within a pool, longest
    first, and cut; then the batches are shuffled. The batch with the longest sample comes first, so
    that memory runs out at once or never. An incomplete batch comes last.

    Args:
        lengths: tokens per sample, (N,).
        batch_size: samples per batch.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    batches = []
    for first in range(0, len(order), POOL_BATCHES * batch_size):
        pool = order[first : first + POOL_BATCHES * batch_size]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    incomplete = [batch for batch in batches if len(batch) < batch_size]
    full = [full[i] for i in generator.permutation(len(full))]
    if full:
        longest = max(range(len(full)), key=lambda i: int(lengths[full[i][0]]))
        full.insert(0, full.pop(longest))
    return full + incomplete


def padding_share(lengths: IntArray, micro_batches: Iterable[Sequence[int]]) -> float:
    """Return the share of padding among the tokens of all micro-batches."""
    used = computed = 0
    for part in micro_batches:
        used += int(lengths[part].sum())
        computed += int(lengths[part].max()) * len(part)
    return 1 - used / computed


@dataclass
class MicroBatches:
    """One process's micro-batches, epoch after epoch: a batch sampler.

    Micro-batches of similar length go to different processes, which then wait little for each
    other. Of each batch, all processes get equally many: a process without samples gets one as
    `~index`, whose positions do not count.
    """

    lengths: IntArray
    batch_size: int
    micro_batch_size: int
    processes: int
    rank: int
    seed: int
    epoch: int = 0
    choice: EpochChoice | None = None
    """Chooses the samples of each epoch; None takes all. With copies, `lengths` holds theirs, too.
    """

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        return len(self.lengths) if self.choice is None else len(self.choice)

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        parallel = self.micro_batch_size * self.processes
        return whole * (self.batch_size // parallel) + -(-rest // parallel)

    def __iter__(self) -> Iterator[list[int]]:
        size = self.micro_batch_size
        chosen = np.arange(len(self.lengths))
        if self.choice is not None:
            chosen = self.choice.of_epoch(self.epoch)
        lengths = self.lengths[chosen]
        for places in batches_of_epoch(lengths, self.batch_size, self.seed, self.epoch):
            batch = chosen[places]
            parts = [batch[i : i + size].tolist() for i in range(0, len(batch), size)]
            parts += [[~int(batch[-1])]] * (-len(parts) % self.processes)
            yield from parts[self.rank :: self.processes]


@dataclass(frozen=True)
class TrainingBatches(Dataset[dict[str, Tensor]]):
    """The batch of B samples with N supervised positions in total, by the samples' indices.

    A single `~index` gives a batch with the sample's tokens but N = 0.
    """

    samples: Sequence[EncodedSample]
    soft_targets: SoftTargetSource | None
    batching: inference.Batching = "padded"
    choice: EpochChoice | None = None
    """Chooses the samples of each epoch; None takes all."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        if indices[0] < 0:
            batch = self[[~indices[0]]]
            by_sample = ("input_ids", "attention_mask", "position_ids", "samples")
            return {name: part if name in by_sample else part[:0] for name, part in batch.items()}
        samples = [self.samples[i] for i in indices]
        targets = np.concatenate([sample.targets for sample in samples])
        batch = inference.collated(samples, self.batching) | {
            "targets": torch.from_numpy(targets).long(),  # (N,)
            "samples": torch.tensor(indices),  # (B,)
        }
        if self.soft_targets is not None:
            soft = self.soft_targets(samples)
            batch["token_ids"] = torch.from_numpy(soft.token_ids).long()  # (N, k)
            batch["probabilities"] = torch.from_numpy(soft.probabilities)  # (N, k)
            batch["tail"] = torch.from_numpy(soft.tail)  # (N,)
            batch["teacher_mass"] = torch.from_numpy(soft.teacher_mass)  # (N,)
            if soft.is_label is not None:
                batch["is_label"] = torch.from_numpy(soft.is_label)  # (N, k)
            if soft.weights is not None:
                batch["weights"] = torch.from_numpy(soft.weights)  # (N,)
        return batch

    __getitems__ = __getitem__  # which a DataLoader with a batch sampler calls
