"""Which copies a training learns: a function of seed, epoch and the sample's id alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeLlama
from firstcli.data.copies import copy_id
from firstcli.data.encoding import EncodedSample
from firstcli.models.inference import Batching
from firstcli.training import trainer
from firstcli.training.batches import MicroBatches, batches_of_epoch
from firstcli.training.copies import CopyChoice
from training.test_trainer import (
    SAVING,
    Interrupted,
    Interrupting,
    V,
    distance,
    drawn_samples,
    drawn_soft_targets,
    fit,
    weights,
)

J = 3


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def copies_of(ids: Sequence[str], each: int = J) -> list[str]:
    return [copy_id(id, number) for id in ids for number in range(each)]


def chosen(ids: Sequence[str], copies: Sequence[str], epoch: int, **changes: Any) -> dict[str, str]:
    """Return what stands for each sample in an epoch."""
    settings = {"share": 0.5, "seed": 7, **changes}
    every = [*ids, *copies]
    indices = CopyChoice.of(ids, copies, **settings).of_epoch(epoch)
    return {id: every[index] for id, index in zip(ids, indices, strict=True)}


def test_only_a_sample_or_its_own_copy_stands_for_it() -> None:
    ids = names(50)
    for epoch in range(5):
        for id, choice in chosen(ids, copies_of(ids), epoch).items():
            assert choice == id or choice in copies_of([id])


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_shares_are_as_stated_and_all_copies_equally_frequent(share: float) -> None:
    ids, epochs = names(400), 25
    counts: Counter[str] = Counter()
    for epoch in range(epochs):
        for id, choice in chosen(ids, copies_of(ids), epoch, share=share).items():
            counts["itself" if choice == id else choice.partition("/")[0]] += 1
    total = 400 * epochs
    assert counts["itself"] / total == pytest.approx(1 - share, abs=0.02)
    for number in range(J):
        assert counts[f"copy{number + 1}"] / total == pytest.approx(share / J, abs=0.02)


def test_a_sample_s_epochs_and_an_epoch_s_samples_are_independent() -> None:
    ids, epochs = names(300), 40
    made = np.array(
        [[id != c for id, c in chosen(ids, copies_of(ids), e).items()] for e in range(epochs)]
    )
    assert made.mean(axis=0).std() == pytest.approx(0.5 / epochs**0.5, rel=0.25)
    assert made.mean(axis=1).std() == pytest.approx(0.5 / 300**0.5, rel=0.4)


@given(st.permutations(names(12)), st.integers(0, 11), st.integers(0, 5))
def test_neither_the_order_nor_the_other_samples_change_a_choice(
    order: list[str], left: int, epoch: int
) -> None:
    reference = chosen(names(12), copies_of(names(12)), epoch)
    some = order[left:]
    shuffled = [copy for id in order for copy in copies_of([id])]
    assert chosen(some, shuffled, epoch) == {id: reference[id] for id in some}


def test_the_choice_depends_on_seed_and_epoch() -> None:
    ids = names(40)
    first = chosen(ids, copies_of(ids), 0)
    assert first == chosen(ids, copies_of(ids), 0)
    assert first != chosen(ids, copies_of(ids), 1)
    assert first != chosen(ids, copies_of(ids), 0, seed=8)


def test_a_larger_share_keeps_the_samples_that_had_copies() -> None:
    ids = names(100)
    few = chosen(ids, copies_of(ids), 0, share=0.2)
    more = chosen(ids, copies_of(ids), 0, share=0.6)
    assert all(more[id] != id for id, choice in few.items() if choice != id)


def test_a_sample_without_a_copy_stands_for_itself() -> None:
    ids = names(30)
    copies = [*copies_of(ids[:10], 1), *copies_of(["unknown"], 4)]
    for epoch in range(4):
        result = chosen(ids, copies, epoch, share=1.0)
        assert [result[id] for id in ids[:10]] == copies_of(ids[:10], 1)
        assert all(result[id] == id for id in ids[10:])
    none = CopyChoice.of(ids, [], 0.5, 0)
    assert none.of_epoch(3).tolist() == list(range(30))


@given(
    count=st.integers(1, 60),
    micro=st.integers(1, 3),
    accumulated=st.integers(1, 3),
    processes=st.integers(1, 4),
)
def test_sharing_a_step_does_not_change_its_samples(
    count: int, micro: int, accumulated: int, processes: int
) -> None:
    ids = names(count)
    choice = CopyChoice.of(ids, copies_of(ids), 0.5, 1)
    lengths = np.random.default_rng(count).integers(1, 50, count * (1 + J))
    size, epoch = micro * accumulated * processes, 3
    rows = choice.of_epoch(epoch)
    whole = [rows[batch] for batch in batches_of_epoch(lengths[rows], size, 5, epoch)]
    shares = []
    for rank in range(processes):
        sampler = MicroBatches(lengths, size, micro, processes, rank, 5, choice=choice)
        sampler.set_epoch(epoch)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    assert sampler.samples == count
    for step, batch in enumerate(whole):
        parts = [part for share in shares for part in share[step * accumulated :][:accumulated]]
        assert sorted(i for part in parts for i in part if i >= 0) == sorted(batch.tolist())


# Whole trainings.


def rows_and_copies(count: int = 21) -> tuple[list[EncodedSample], CopyChoice]:
    rows = drawn_samples(count)
    others = drawn_samples(count * J, seed=9)
    ids = copies_of([row.id for row in rows])
    copies = [replace(other, id=id) for other, id in zip(others, ids, strict=True)]
    return [*rows, *copies], CopyChoice.of([row.id for row in rows], ids, 0.5, 0)


def common(rows: Sequence[EncodedSample], choice: CopyChoice, **changes: Any) -> dict[str, Any]:
    soft = drawn_soft_targets(rows)
    return {
        "soft_targets": soft,
        "objective": "topk-tail",
        "choice": choice,
        "epochs": 3,
        **changes,
    }


def test_there_are_as_many_steps_and_samples_as_without_copies(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, choice = rows_and_copies()
    with_copies = fit(make_llama(V), rows, tmp_path / "a", **common(rows, choice))
    plain = {**common(rows, choice), "choice": None}
    without = fit(make_llama(V), rows[:21], tmp_path / "b", **plain)
    for name in ("samples", "steps", "positions"):
        assert getattr(with_copies, name) == getattr(without, name)
    assert [e["loss"] for e in with_copies.log] != [e["loss"] for e in without.log]


def test_each_epoch_learns_what_is_chosen(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows, choice = rows_and_copies()
    soft = drawn_soft_targets(rows)
    learned: list[str] = []

    def recorded(samples: Sequence[EncodedSample]) -> Any:
        learned.extend(sample.id for sample in samples)
        return soft(samples)

    fit(make_llama(V), rows, tmp_path, **common(rows, choice, soft_targets=recorded))
    for epoch in range(3):
        expected = [rows[index].id for index in choice.of_epoch(epoch)]
        assert sorted(learned[21 * epoch : 21 * (epoch + 1)]) == sorted(expected)


@pytest.mark.parametrize(("micro", "batching"), [(2, "padded"), (8, "packed"), (1, "packed")])
def test_micro_batches_and_packing_change_nothing(
    tmp_path: Path, make_llama: MakeLlama, micro: int, batching: Batching
) -> None:
    rows, choice = rows_and_copies()
    slow = common(rows, choice, learning_rate=1e-3)
    whole, split = make_llama(V), make_llama(V)
    fit(whole, rows, tmp_path / "whole", **slow)
    fit(split, rows, tmp_path / "split", micro_batch_size=micro, batching=batching, **slow)
    assert distance(weights(split), weights(whole)) < 1e-5
    assert distance(weights(make_llama(V)), weights(whole)) > 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Bit for bit: killed in the third epoch, resumed from the end of the second."""
    rows, choice = rows_and_copies()
    settings = common(rows, choice, fields=SAVING)
    uninterrupted, resumed = make_llama(V), make_llama(V, seed=99)
    whole = fit(uninterrupted, rows, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path / "killed", console=Interrupting(8), **settings)
    rest = fit(resumed, rows, tmp_path / "killed", **settings)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert [entry["loss"] for entry in rest.log] == [entry["loss"] for entry in whole.log]


def test_a_run_resumed_within_an_epoch_equals_an_uninterrupted_one(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    rows, choice = rows_and_copies()
    fields = {"save_strategy": "steps", "save_steps": 5, "logging_steps": 1}
    settings = common(rows, choice, fields=fields)
    uninterrupted, resumed = make_llama(V), make_llama(V, seed=99)
    fit(uninterrupted, rows, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        fit(make_llama(V), rows, tmp_path / "killed", console=Interrupting(7), **settings)
    checkpoint = trainer.last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.name == "checkpoint-5"  # of 3 steps per epoch
    fit(resumed, rows, tmp_path / "killed", **settings)
    assert torch.equal(weights(resumed), weights(uninterrupted))
