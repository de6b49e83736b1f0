"""Which samples a step learns from: all of them once, whoever takes them, with little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstcli.training.sampling import MicroBatches, batches_of_epoch, padding_share, uncounted


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=300),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_an_epoch_holds_every_sample_once(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = batches_of_epoch(lengths, batch_size, seed, 0)
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
def test_however_a_step_is_shared_it_learns_from_the_same_samples(
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
    assert len({len(share) for share in shares}) == 1  # they meet after every micro-batch
    for step, batch in enumerate(whole):
        parts = [part for share in shares for part in share[step * accumulated :][:accumulated]]
        counted = sorted(i for part in parts for i in part if i >= 0)
        assert counted == sorted(batch.tolist())


def test_seed_and_epoch_draw_the_order() -> None:
    lengths = [5] * 40

    def order(seed: int, epoch: int) -> list[int]:
        return [int(i) for batch in batches_of_epoch(lengths, 8, seed, epoch) for i in batch]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_samples_of_like_length_share_a_batch() -> None:
    """Lengths as Alpaca's: half of the tokens would be padding in batches drawn at random."""
    lengths = np.random.default_rng(0).lognormal(4.9, 0.6, 8192).astype(int).clip(1, 1024)
    together = list(MicroBatches(lengths, 32, 32, 1, 0, seed=0))
    assert padding_share(lengths, together) < 0.05
    at_random = np.random.default_rng(1).permutation(8192).reshape(-1, 32).tolist()
    assert padding_share(lengths, at_random) > 0.5


def test_padding_share_counts_tokens() -> None:
    assert padding_share([3, 1, 2], [[0, 1], [2]]) == pytest.approx(1 - 6 / 8)
    assert padding_share([4, 4], [[0, 1]]) == 0


def test_a_process_without_samples_runs_one_that_does_not_count() -> None:
    batch = {
        "input_ids": torch.ones(1, 7),
        "attention_mask": torch.ones(1, 7),
        "samples": torch.tensor([4]),
        "rows": torch.zeros(3),
        "targets": torch.zeros(3),
        "probabilities": torch.zeros(3, 5),
    }
    asked: list[list[int]] = []

    def collate(indices: object) -> dict[str, torch.Tensor]:
        asked.append(list(indices))  # type: ignore[call-overload]
        return dict(batch)

    idle = uncounted(collate)([~4])
    assert asked == [[4]]
    assert idle["input_ids"].shape == (1, 7) and idle["samples"].tolist() == [4]
    assert len(idle["rows"]) == len(idle["targets"]) == 0 and idle["probabilities"].shape == (0, 5)
    assert uncounted(collate)([4])["probabilities"].shape == (3, 5)
