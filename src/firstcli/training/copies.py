"""Which copies of its samples a training learns in an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstcli.data.copies import sample_of
from firstcli.data.encoded import IntArray
from firstcli.data.splits import short_digest

Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CopyChoice:
    """Chooses in each epoch, for each of N samples, the sample itself or one of its copies.

    The choice for a sample is a pure function of seed, epoch and the sample's id. It depends
    neither on the other samples nor on their order, nor on how batches are made of them.
    """

    copies: IntArray
    """Indices of all copies, those of one sample one after the other."""
    starts: IntArray  # (N,) where the copies of each sample begin in `copies`
    counts: IntArray  # (N,) how many there are, which may be 0
    digests: Digests  # (N,) of the samples' ids
    share: float
    """The probability of a copy."""
    seed: int

    @classmethod
    def of(
        cls, samples: Sequence[str], copies: Iterable[str], share: float, seed: int
    ) -> CopyChoice:
        """Assign copies to samples; indices count the samples first, then the copies.

        Args:
            samples: the ids of the samples.
            copies: the ids of the copies; those of no sample are never chosen.
            share: the probability of a copy.
            seed: the seed of the training.
        """
        row_of = {id: row for row, id in enumerate(samples)}
        owners = np.fromiter((row_of.get(sample_of(id), -1) for id in copies), np.int64)
        order = np.argsort(owners, kind="stable")
        order = order[owners[order] >= 0]
        counts = np.bincount(owners[order], minlength=len(samples))
        return cls(
            copies=order + len(samples),
            starts=np.cumsum(counts) - counts,
            counts=counts,
            digests=np.fromiter(map(short_digest, samples), np.uint64, len(samples)),
            share=share,
            seed=seed,
        )

    def __len__(self) -> int:
        return len(self.counts)

    def of_epoch(self, epoch: int) -> IntArray:
        """Return the index of what stands for each sample in an epoch, (N,)."""
        draws = _uniform(self.digests, short_digest(f"copies {self.seed} {epoch}")) / self.share
        chosen = np.arange(len(self), dtype=np.int64)
        copied = (draws < 1) & (self.counts > 0)
        numbers = (draws[copied] * self.counts[copied]).astype(np.int64)
        chosen[copied] = self.copies[self.starts[copied] + numbers]
        return chosen


def _uniform(digests: Digests, key: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each digest, (N,), which a key draws anew.

    The digests are mixed as in SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195,
    Fig. 15), twice, because digest and key are only added.
    """
    mixed = _mixed(_mixed(digests) + np.uint64(key))
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def _mixed(values: Digests) -> Digests:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
