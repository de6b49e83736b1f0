"""Which samples make a training step, and which of them a process takes at a time.

The order is a pure function of lengths, batch size, seed and epoch, so that neither the number of
processes, nor the micro-batch, nor a resumed run changes which samples a step learns from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader

POOL = (
    128  # batches whose samples are sorted together: padding below 5 %, the rest is left to chance
)

Lengths = npt.NDArray[np.int64]


def batches_of_epoch(
    lengths: Sequence[int] | Lengths, batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Cut a random order of the samples into batches of like length, each longest first.

    Samples are shuffled, pooled by `POOL` batches, sorted by length within a pool, cut, and the
    batches shuffled. The batch with the longest sample comes first, so that memory runs out at
    once or never; one that is not full comes last.
    """
    sizes = np.asarray(lengths)
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(sizes))
    batches = []
    for first in range(0, len(order), POOL * batch_size):
        pool = order[first : first + POOL * batch_size]
        pool = pool[np.argsort(-sizes[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    full = [batch for batch in batches if len(batch) == batch_size]
    rest = [batch for batch in batches if len(batch) < batch_size]
    full = [full[i] for i in generator.permutation(len(full))]
    if full:
        longest = max(range(len(full)), key=lambda i: int(sizes[full[i][0]]))
        full.insert(0, full.pop(longest))
    return full + rest


def share_of(
    batch: npt.NDArray[np.int64], micro: int, processes: int, rank: int
) -> list[list[int]]:
    """Return the micro-batches that one process takes of a batch; all take equally many.

    Neighbours in length go to different processes, so that these wait little for each other. A
    process that is left without samples gets one whose positions do not count, as `~index`.
    """
    parts = [batch[i : i + micro].tolist() for i in range(0, len(batch), micro)]
    idle = [[~int(batch[-1])]] * (-len(parts) % processes)
    return (parts + idle)[rank::processes]


def padding_share(
    lengths: Sequence[int] | Lengths, micro_batches: Iterable[Sequence[int]]
) -> float:
    """Return which share of the tokens that a model computes on are padding."""
    sizes = np.asarray(lengths)
    used = computed = 0
    for part in micro_batches:
        used += int(sizes[part].sum())
        computed += int(sizes[part].max()) * len(part)
    return 1 - used / computed


@dataclass
class MicroBatches:
    """The micro-batches of one process, epoch after epoch: a batch sampler."""

    lengths: Sequence[int] | Lengths
    batch_size: int
    micro: int
    processes: int
    rank: int
    seed: int
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        each = self.batch_size // (self.micro * self.processes)
        return whole * each + -(-rest // (self.micro * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        for batch in batches_of_epoch(self.lengths, self.batch_size, self.seed, self.epoch):
            yield from share_of(batch, self.micro, self.processes, self.rank)


class EpochLoader(DataLoader[int]):
    """A loader that passes the number of the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, MicroBatches):
            self.batch_sampler.set_epoch(epoch)


Collated = dict[str, Tensor]


def uncounted(collate: Callable[[Sequence[int]], Collated]) -> Callable[[Sequence[int]], Collated]:
    """Let a collate function take `~index`: the sample's tokens without supervised positions."""

    def whole_or_idle(indices: Sequence[int]) -> Collated:
        if indices[0] >= 0:
            return collate(indices)
        batch = collate([~indices[0]])
        by_sample = ("input_ids", "attention_mask", "samples")
        return {name: part if name in by_sample else part[:0] for name, part in batch.items()}

    return whole_or_idle


def loader_settings(args: Any) -> dict[str, Any]:
    """Return what TrainingArguments say of loading, as DataLoader takes it."""
    return {
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory,
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
    }
