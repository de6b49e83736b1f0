"""Each epoch uses every sample once, on any number of processes, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.training.batches import MicroBatches, batches_of_epoch, padding_share


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=300),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_an_epoch_contains_every_sample_once(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    batches = batches_of_epoch(np.array(lengths), batch_size, seed, 0)
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        assert (np.diff([lengths[i] for i in batch]) <= 0).all()  # longest first
    if len(batches[0]) == batch_size and len(batches[-1]) == batch_size:
        assert lengths[batches[0][0]] == max(lengths)


@given(
    count=st.integers(1, 100),
    micro=st.integers(1, 3),
    accumulated=st.integers(1, 3),
    processes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_sharing_a_step_does_not_change_its_samples(
    count: int, micro: int, accumulated: int, processes: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, count)
    size = micro * accumulated * processes
    whole = batches_of_epoch(lengths, size, seed, 3)
    shares = []
    for rank in range(processes):
        sampler = MicroBatches(lengths, size, micro, processes, rank, seed)
        sampler.set_epoch(3)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert (
        len({len(share) for share in shares}) == 1
    )  # processes synchronise after every micro-batch
    for step, batch in enumerate(whole):
        parts = [part for share in shares for part in share[step * accumulated :][:accumulated]]
        counted = sorted(i for part in parts for i in part if i >= 0)
        assert counted == sorted(batch.tolist())


def test_the_order_depends_on_seed_and_epoch() -> None:
    lengths = np.full(40, 5)

    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in batches_of_epoch(lengths, 8, seed, epoch) for i in batch]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_samples_of_similar_length_share_a_batch() -> None:
    """With lengths like Alpaca's, half of the tokens in random batches would be padding."""
    lengths = np.random.default_rng(0).lognormal(4.9, 0.6, 8192).astype(int).clip(1, 1024)
    together = list(MicroBatches(lengths, 32, 32, 1, 0, seed=0))
    assert padding_share(lengths, together) < 0.05
    at_random = np.random.default_rng(1).permutation(8192).reshape(-1, 32).tolist()
    assert padding_share(lengths, at_random) > 0.5


def test_padding_share_counts_tokens() -> None:
    assert padding_share(np.array([3, 1, 2]), [[0, 1], [2]]) == pytest.approx(1 - 6 / 8)
    assert padding_share(np.array([4, 4]), [[0, 1]]) == 0
