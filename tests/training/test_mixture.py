"""Weights of domains that follow the gap to the teacher: the formula, the draws, and resuming."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from conftest import MakeLlama
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.runtime.console import Console
from firstcli.training import objective_forward, trainer
from firstcli.training.batches import MicroBatches
from firstcli.training.mixture import (
    DomainDraws,
    MixturePlan,
    drawn,
    held_out_losses,
    next_weights,
)
from firstcli.training.soft_targets import SoftTargets
from support.small_training import K, V, soft_targets, training_arguments
from training.two_processes import run_in_two_processes

EVERY = 2


def certain(samples: Sequence[EncodedSample]) -> SoftTargets:
    """All probability on the true token, unless it is 0, 1 or 2: then on the tokens outside."""
    true = np.concatenate([sample.targets for sample in samples])
    ids = np.tile(np.arange(3, 3 + K), (len(true), 1))
    ids[:, 0] = np.where(true < 3, 20, true)
    ids[:, 1:] = np.array([30, 31, 32, 33])
    hit = (ids == true[:, None]) & (np.arange(K) == 0)
    tail = (~hit.any(axis=1)).astype(np.float32)
    return SoftTargets(ids.astype(np.int32), hit.astype(np.float32), tail, 1 - tail)


def rows(count: int, seed: int, name: str) -> list[EncodedSample]:
    draw = np.random.default_rng(seed)
    return [
        EncodedSample(f"{name}{i}", draw.integers(0, 30, 6, dtype=np.int32), 2, None)
        for i in range(count)
    ]


TRAIN = rows(24, 0, "s")


def plan(teacher: tuple[float, ...] = (1.0, 1.0), smoothing: float = 0.5) -> MixturePlan:
    held_out = [rows(5, 1, "a"), rows(9, 2, "b")]
    domain_of = np.array([0] * 6 + [1] * 18)
    return MixturePlan(("one", "two"), domain_of, held_out, certain, teacher, EVERY, smoothing)


def draws(
    losses: list[list[float]], teacher: tuple[float, ...] = (1.0, 1.0), smoothing: float = 0.5
) -> DomainDraws:
    remaining = iter(losses)
    return DomainDraws(plan(teacher, smoothing), 8, 5, lambda: np.array(next(remaining)))


def test_the_factors_are_those_of_the_paper() -> None:
    ratios, smoothing = np.array([1.5, 1.0, 3.0]), 0.3
    weights = np.full(3, 1 / 3)
    for _ in range(3):
        psi = [r * math.exp(ratio) for r, ratio in zip(weights, ratios, strict=True)]
        expected = [smoothing * each / sum(psi) + (1 - smoothing) / 3 for each in psi]
        weights = next_weights(weights, ratios, smoothing)
        assert weights == pytest.approx(expected, abs=1e-14)
        assert weights.sum() == pytest.approx(1, abs=1e-14)


def test_equal_gaps_keep_all_weights_equal() -> None:
    weights = np.full(4, 0.25)
    for gap in (2.5, 1.75, 1.0, 30.0):
        weights = next_weights(weights, np.full(4, gap), 0.5)
        assert weights == pytest.approx(np.full(4, 0.25), abs=1e-15)


def test_a_huge_gap_does_not_overflow_and_leaves_every_domain_its_share() -> None:
    weights = next_weights(np.array([0.5, 0.5]), np.array([1e6, 1.0]), 0.5)
    assert weights == pytest.approx([0.75, 0.25])
    assert next_weights(np.array([1.0, 0.0]), np.array([1.0, 1e6]), 1.0) == pytest.approx([1, 0])


def test_a_larger_gap_gets_a_larger_weight() -> None:
    mixture = draws([[2.0, 1.2], [1.1, 1.6]])
    mixture.of_epoch(0)
    first = mixture.current
    mixture.of_epoch(1)
    assert first["one"] > first["two"]
    assert mixture.current["two"] > first["two"]


def test_the_gap_is_relative_to_the_teacher() -> None:
    mixture = draws([[2.0, 3.0]], teacher=(1.0, 2.0))
    mixture.of_epoch(0)
    assert mixture.current == pytest.approx({"one": 0.5, "two": 0.5})


def test_samples_are_drawn_by_the_weights_whatever_the_sizes_of_the_domains() -> None:
    domain_of = np.array([1, 0, 1, 1, 2, 1])
    chosen = drawn(np.array([0.5, 0.2, 0.3]), domain_of, 60_000, (1, 0))
    counts = np.bincount(chosen, minlength=6) / 60_000
    # Four standard errors of a share are below 0.009.
    assert counts == pytest.approx([0.05, 0.5, 0.05, 0.05, 0.3, 0.05], abs=0.009)


def test_draws_depend_on_seed_and_period_alone() -> None:
    weights, domain_of = np.array([0.5, 0.5]), plan().domain_of
    same = [drawn(weights, domain_of, 16, (1, 2)) for _ in range(2)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], drawn(weights, domain_of, 16, (1, 3)))
    assert not np.array_equal(same[0], drawn(weights, domain_of, 16, (2, 2)))


def test_a_domain_with_a_weight_of_almost_nothing_is_never_indexed_outside() -> None:
    chosen = drawn(np.array([1.0, 1e-300]), np.array([0, 1]), 1000, (0, 0))
    assert not chosen.any()


@pytest.mark.parametrize(("processes", "micro"), [(1, 8), (2, 2), (4, 1)])
def test_steps_learn_the_same_samples_with_any_number_of_processes(
    processes: int, micro: int
) -> None:
    def steps(processes: int, micro: int) -> list[list[int]]:
        mixture = draws([[2.0, 1.2]])
        lengths = np.array([len(row.input_ids) for row in TRAIN])
        parts = [
            list(MicroBatches(lengths, 8, micro, processes, rank, 5, choice=mixture))
            for rank in range(processes)
        ]
        each = 8 // (micro * processes)
        return [
            sorted(i for part in parts for one in part[s * each : (s + 1) * each] for i in one)
            for s in range(EVERY)
        ]

    assert steps(processes, micro) == steps(1, 4)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.mixture: .* 'two' became nan; .* lower the"):
        draws([[1.0, math.nan]]).of_epoch(0)


def test_held_out_losses_are_those_of_the_outcomes(make_llama: MakeLlama) -> None:
    """Against float64: -log q of the true token, or of all tokens but the k it is not among."""
    model = make_llama(V).eval()
    objective_forward.install_objective(model, "topk-tail")
    forward = model.forward
    with torch.no_grad():
        found = held_out_losses(forward, plan(), torch.device("cpu"))
    del model.forward
    for losses, samples in zip(found, plan().held_out, strict=True):
        expected = []
        for sample in samples:
            with torch.no_grad():
                logits = model(torch.from_numpy(sample.input_ids[None]).long()).logits[0].double()
            q = logits.softmax(-1).numpy()
            target = certain([sample])
            for n, (position, token) in enumerate(
                zip(sample.positions, sample.targets, strict=True)
            ):
                at = q[position - 1]
                is_outside = bool(target.tail[n])
                p = 1 - at[target.token_ids[n]].sum() if is_outside else at[token]
                expected.append(-math.log(p))
        assert losses == pytest.approx(np.mean(expected), rel=1e-5)


def fit(model: LlamaForCausalLM, folder: Path, micro: int = 4, **fields: Any) -> trainer.Outcome:
    args = training_arguments(folder, **fields)
    args.per_device_train_batch_size = micro
    args.gradient_accumulation_steps = 8 // (micro * distributed.count())
    quiet = Console(quiet=True)
    return trainer.train(model, TRAIN, soft_targets, "topk-tail", args, quiet, "", mixture=plan())


def weights(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([value.detach().ravel() for value in model.parameters()])


def test_training_updates_the_weights_every_n_steps_and_logs_them(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    outcome = fit(make_llama(V), tmp_path)
    assert outcome.mixture is not None
    assert (outcome.samples, outcome.steps) == (24, 9)  # three passes of three steps, as without
    assert [entry["step"] for entry in outcome.mixture.history] == [0, 2, 4, 6, 8]
    assert [entry["epoch"] for entry in outcome.log] == pytest.approx(np.arange(1, 10) / 3)
    for step, entry in enumerate(outcome.log):
        now = dict(zip(("one", "two"), outcome.mixture.updates[step // EVERY].weights, strict=True))
        assert {name: entry[f"weight of {name}"] for name in now} == now
        assert sum(now.values()) == pytest.approx(1, abs=1e-12)
    assert outcome.facts["mixture"] == outcome.mixture.current


class Killed(Exception):
    pass


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5])
def test_a_resumed_mixture_equals_an_uninterrupted_one(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """Bit for bit, in the middle of a period and at its end."""
    fields: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    whole = make_llama(V)
    uninterrupted = fit(whole, tmp_path / "whole", **fields)
    plain = trainer.PositionTrainer.training_step

    def stopping(self: trainer.PositionTrainer, *args: Any, **kwargs: Any) -> object:
        if self.state.global_step == last:
            raise Killed
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(trainer.PositionTrainer, "training_step", stopping)
    with pytest.raises(Killed):
        fit(make_llama(V), tmp_path / "killed", **fields)
    monkeypatch.undo()
    resumed = make_llama(V, seed=99)  # its weights come from the checkpoint
    outcome = fit(resumed, tmp_path / "killed", **fields)
    assert torch.equal(weights(resumed), weights(whole))
    assert outcome.mixture and uninterrupted.mixture
    assert outcome.mixture.updates == uninterrupted.mixture.updates
    assert outcome.log == uninterrupted.log


def test_the_micro_batch_does_not_change_the_first_weights_and_draws(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    whole, halved = fit(make_llama(V), tmp_path, micro=8), fit(make_llama(V), tmp_path, micro=2)
    assert whole.mixture and halved.mixture
    assert whole.mixture.updates[0] == halved.mixture.updates[0]
    for one, other in zip(whole.mixture.updates, halved.mixture.updates, strict=True):
        assert one.weights == pytest.approx(other.weights, rel=1e-4)


def train_shared(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder / "start")
    outcome = fit(model, folder / "run", micro=2)
    assert outcome.mixture is not None
    each = distributed.gathered(outcome.mixture.updates)
    assert each[0] == each[1]
    if distributed.is_first():
        torch.save((weights(model), outcome.mixture.history), folder / "result.pt")
    distributed.leave()


def test_two_processes_draw_the_samples_of_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    model.save_pretrained(tmp_path / "start")
    alone = fit(model, tmp_path / "alone")
    run_in_two_processes(train_shared, tmp_path)
    shared, history = torch.load(tmp_path / "result.pt")
    assert alone.mixture is not None
    for entry, expected in zip(history, alone.mixture.history, strict=True):
        for name in ("one", "two"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4)
    assert (shared - weights(model)).abs().max() < 1e-4


def test_a_checkpoint_holds_the_updates(tmp_path: Path) -> None:
    mixture = draws([[2.0, 1.2], [1.1, 1.6]])
    order = [mixture.of_epoch(epoch).tolist() for epoch in (0, 1)]
    mixture.save(tmp_path)
    restored = draws([])
    restored.restore(tmp_path)
    assert [restored.of_epoch(epoch).tolist() for epoch in (0, 1)] == order
    assert json.loads((tmp_path / "mixture.json").read_text("utf-8"))
