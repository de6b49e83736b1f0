"""The samples of each training step, and each process's share of them.

The order is a pure function of lengths, batch size, seed and epoch. Neither the number of
processes, nor the micro-batch, nor a resumed run changes which samples a step learns from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

POOL_BATCHES = 128  # batches sorted together by length: padding below 5 %, otherwise random

Lengths = npt.NDArray[np.int64]


def batches_of_epoch(
    lengths: Sequence[int] | Lengths, batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
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
    sizes = np.asarray(lengths)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(sizes))
    batches = []
    for first in range(0, len(order), POOL_BATCHES * batch_size):
        pool = order[first : first + POOL_BATCHES * batch_size]
        pool = pool[np.argsort(-sizes[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    incomplete = [batch for batch in batches if len(batch) < batch_size]
    full = [full[i] for i in generator.permutation(len(full))]
    if full:
        longest = max(range(len(full)), key=lambda i: int(sizes[full[i][0]]))
        full.insert(0, full.pop(longest))
    return full + incomplete


def _share_of(
    batch: npt.NDArray[np.int64], micro_batch_size: int, processes: int, rank: int
) -> list[list[int]]:
    """Return one process's micro-batches of a batch; all processes get equally many.

    Micro-batches of similar length go to different processes, which then wait little for each
    other. A process without samples gets one as `~index`, whose positions do not count.
    """
    parts = [
        batch[i : i + micro_batch_size].tolist() for i in range(0, len(batch), micro_batch_size)
    ]
    idle = [[~int(batch[-1])]] * (-len(parts) % processes)
    return (parts + idle)[rank::processes]


def padding_share(
    lengths: Sequence[int] | Lengths, micro_batches: Iterable[Sequence[int]]
) -> float:
    """Return the share of padding among the tokens of all micro-batches."""
    sizes = np.asarray(lengths)
    used = computed = 0
    for part in micro_batches:
        used += int(sizes[part].sum())
        computed += int(sizes[part].max()) * len(part)
    return 1 - used / computed


@dataclass
class MicroBatches:
    """One process's micro-batches, epoch after epoch: a batch sampler."""

    lengths: Sequence[int] | Lengths
    batch_size: int
    micro_batch_size: int
    processes: int
    rank: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        parallel = self.micro_batch_size * self.processes
        return whole * (self.batch_size // parallel) + -(-rest // parallel)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in batches_of_epoch(self.lengths, self.batch_size, self.seed, self.epoch):
            yield from _share_of(batch, self.micro_batch_size, self.processes, self.rank)


class EpochLoader(DataLoader[int]):
    """A loader that passes the epoch's number on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, MicroBatches):
            self.batch_sampler.set_epoch(epoch)
