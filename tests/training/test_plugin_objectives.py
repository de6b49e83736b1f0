"""`dac-kl`, weights of spans, and objectives of plugins, in the fused sums and in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import MakeLlama
from firstcli import plugins
from firstcli.api import StudentView, TargetView
from firstcli.data.encoding import EncodedSample
from firstcli.plugins.objectives import CheckedObjective, objective
from firstcli.recipe.sections import Arm, SpanWeights
from firstcli.stages.train_model import objective_of
from firstcli.training import (
    batches,
    fused_objectives,
    objective_forward,
    objectives,
    soft_targets,
)
from firstcli.training.soft_targets import SoftTargets
from training.test_fused_objectives import chunks_of, copied, dense, layer_of, leaves_of
from training.test_objectives import Drawn, naive_topk_tail, positions
from training.test_trainer import V, distance, drawn_samples, drawn_soft_targets, fit


def built(name: str, **options: Any) -> CheckedObjective:
    return objective(name, plugins.load("objectives", name).Options(**options))


def dac_kl(drawn: Drawn, threshold: float) -> Tensor:
    logits, ids, p, tail = drawn
    view = objectives.student_view(logits, ids)
    return objectives.topk_tail(*objectives.clipped(view, p, tail, threshold))


def naive_dac_kl(
    logits: list[float], ids: list[int], p: list[float], tail: float, threshold: float
) -> float:
    """The definition: keep the likeliest tokens one by one, and compare these and the rest."""
    kept: list[int] = []
    for place in sorted(range(len(p)), key=lambda place: -p[place]):
        if math.fsum(p[i] for i in kept) < threshold:
            kept.append(place)
    rest = tail + math.fsum(p[i] for i in range(len(p)) if i not in kept)
    return naive_topk_tail(logits, [ids[i] for i in kept], [p[i] for i in kept], rest)


@given(positions(), st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.99]))
def test_dac_kl_is_the_naive_sum(drawn: Drawn, threshold: float) -> None:
    got = dac_kl(drawn, threshold)
    rows = zip(*(part.tolist() for part in drawn), strict=True)
    losses = [naive_dac_kl(x, ids, p, tail, threshold) for x, ids, p, tail in rows]
    naive = torch.tensor(losses, dtype=torch.float64)
    torch.testing.assert_close(got, naive, rtol=1e-9, atol=1e-10)
    assert (got > -1e-12).all()  # a KL divergence


def test_dac_kl_of_a_case_with_a_known_answer() -> None:
    """Of .5, .3, .15 and .05, the first two reach .7; the student has .25 for each token."""
    logits, ids = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[3, 1, 0]])
    p = torch.tensor([[0.15, 0.5, 0.3]], dtype=torch.float64)  # in any order
    tail = torch.tensor([0.05], dtype=torch.float64)
    rest = 0.2 * math.log(0.2 / 0.5)
    two = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.25) + rest
    assert dac_kl((logits, ids, p, tail), 0.7).item() == pytest.approx(two, rel=1e-12)
    one = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert dac_kl((logits, ids, p, tail), 0.5).item() == pytest.approx(one, rel=1e-12)


@given(positions())
def test_with_threshold_1_dac_kl_is_topk_tail(drawn: Drawn) -> None:
    logits, ids, p, tail = drawn
    whole = objectives.topk_tail(objectives.student_view(logits, ids), p, tail)
    torch.testing.assert_close(dac_kl(drawn, 1.0), whole, rtol=1e-9, atol=1e-12)


@given(positions())
def test_the_order_of_the_tokens_does_not_matter_to_dac_kl(drawn: Drawn) -> None:
    logits, ids, p, tail = drawn
    other = (logits, ids.flip(-1), p.flip(-1), tail)
    torch.testing.assert_close(dac_kl(drawn, 0.6), dac_kl(other, 0.6), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("k", "v"), [(3, 6), (1, 4), (4, 4)])
def test_the_gradient_of_dac_kl_is_that_of_its_value(k: int, v: int) -> None:
    torch.manual_seed(3)
    ids = torch.stack([torch.randperm(v)[:k] for _ in range(5)])
    p = torch.rand(5, k, dtype=torch.float64) + 0.05
    mass = 1.0 if k == v else 0.9
    p, tail = mass * p / p.sum(-1, keepdim=True), torch.full((5,), 1 - mass, dtype=torch.float64)
    logits = torch.randn(5, v, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dac_kl((x, ids, p, tail), 0.6), (logits,))


# The fused sums.

BUILT_IN = [
    ("topk-tail", {}),
    ("topk-renormalized", {}),
    ("hard-gate", {}),
    ("dac-kl", {"threshold": 0.6}),
]


@pytest.mark.parametrize(("name", "options"), BUILT_IN)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "k", "v"), [(7, 3, 9), (0, 3, 9), (4, 5, 5)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_sums_of_a_plugin_are_those_of_all_logits(
    name: str, options: dict[str, Any], weighted: bool, n: int, k: int, v: int, rows: int
) -> None:
    torch.manual_seed(n + k)
    layer, mass = layer_of(n, 4, v, bias=True), 1.0 if k == v else 0.9
    ids = torch.stack([torch.randperm(v)[:k] for _ in range(n)] or [torch.zeros(k)]).long()[:n]
    p = torch.rand(n, k, dtype=torch.float64) + 1e-3
    p = mass * p / p.sum(-1, keepdim=True)
    is_label = torch.zeros(n, k, dtype=torch.bool)
    is_label[::2, 0] = True
    target = TargetView(p, torch.full((n,), 1 - mass, dtype=torch.float64), is_label)
    weights = torch.rand(n, dtype=torch.float64) + 0.5 if weighted else None
    losses_of = built(name, **options).losses
    view = objectives.student_view(dense(layer).values, ids)
    losses = losses_of(view, target)
    expected = (losses if weights is None else losses * weights).sum()
    wanted = torch.autograd.grad(expected, leaves_of(layer))
    with chunks_of(rows):
        for scores in (layer, dense(layer)):
            sums = fused_objectives.of_plugin(
                scores, ids, target, losses_of, weights=weights, with_entropy=True
            )
            torch.testing.assert_close(sums.loss, expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(sums.student_mass, view.log_q.detach().exp().sum())
            got = torch.autograd.grad(sums.loss, leaves_of(layer))
            torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_a_built_in_objective_is_the_same_with_and_without_its_own_sums() -> None:
    torch.manual_seed(1)
    layer, v = layer_of(6, 4, 9, bias=False), 9
    ids = torch.stack([torch.randperm(v)[:3] for _ in range(6)])
    p = torch.rand(6, 3, dtype=torch.float64)
    p, tail = 0.9 * p / p.sum(-1, keepdim=True), torch.full((6,), 0.1, dtype=torch.float64)
    is_label = ids == ids[:, :1]
    target = TargetView(p, tail, is_label)
    own = {
        "topk-tail": fused_objectives.topk_tail(layer, ids, p, tail),
        "topk-renormalized": fused_objectives.topk_renormalized(layer, ids, p / 0.9),
        "hard-gate": fused_objectives.hard_gate(layer, ids, p, tail, is_label),
    }
    for name, sums in own.items():
        other = fused_objectives.of_plugin(layer, ids, target, built(name).losses)
        torch.testing.assert_close(other.loss, sums.loss, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(each.loss, leaves_of(layer)) for each in (sums, other)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_half_precision_operands_have_losses_in_float32() -> None:
    torch.manual_seed(2)
    layer = copied(layer_of(8, 4, 9, bias=False), torch.bfloat16)
    ids = torch.stack([torch.randperm(9)[:3] for _ in range(8)])
    target = TargetView(torch.full((8, 3), 0.3), torch.full((8,), 0.1), None)
    sums = fused_objectives.of_plugin(layer, ids, target, built("dac-kl").losses)
    assert sums.loss.dtype == torch.float32
    assert all(leaf.grad is None for leaf in leaves_of(layer))
    sums.loss.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves_of(layer))


# Weights of spans.


def test_the_answer_begins_at_the_answer_position() -> None:
    samples = [
        EncodedSample("a", np.arange(6, dtype=np.int32), start=2, answer_position=4),
        EncodedSample("b", np.arange(3, dtype=np.int32), start=1, answer_position=1),
        EncodedSample("c", np.arange(4, dtype=np.int32), start=2, answer_position=None),
    ]
    found = soft_targets._span_weights(SpanWeights(explanation=0.5, answer=2.0), samples)
    assert found.tolist() == [0.5, 0.5, 2, 2, 2, 2, 0.5, 0.5]


class Weighted:
    """Random soft targets whose positions weigh something; a `SoftTargetSource`."""

    def __init__(self, rows: Sequence[EncodedSample], one: bool = False) -> None:
        draw = np.random.default_rng(5)
        self.rows, self._drawn = rows, drawn_soft_targets(rows)
        self.weights = {
            row.id: np.ones(len(row.targets)) if one else draw.uniform(0.2, 3, len(row.targets))
            for row in rows
        }

    def __call__(self, rows: Sequence[EncodedSample]) -> SoftTargets:
        weights = np.concatenate([self.weights[row.id] for row in rows])
        return replace(self._drawn(rows), weights=weights.astype(np.float32))

    def mean(self, model: Any, losses_of: fused_objectives.LossesOf) -> Tensor:
        """The weighted mean over all positions, each sample read by itself."""
        total, divisor = torch.zeros(()), 0.0
        for row in self.rows:
            logits = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0]
            soft = self._drawn([row])
            view = objectives.student_view(
                logits[row.positions - 1].float(), torch.from_numpy(soft.token_ids).long()
            )
            target = TargetView(
                torch.from_numpy(soft.probabilities), torch.from_numpy(soft.tail), None
            )
            weights = torch.from_numpy(self.weights[row.id]).float()
            total = total + (weights * losses_of(view, target)).sum()
            divisor += float(weights.sum())
        return total / divisor


@pytest.mark.parametrize("name", ["dac-kl", "topk-tail"])
@pytest.mark.parametrize("batching", ["padded", "packed"])
@pytest.mark.parametrize("micro", [8, 2, 1])
def test_a_step_is_the_weighted_mean_of_all_positions(
    tmp_path: Path, make_llama: MakeLlama, name: str, batching: Any, micro: int
) -> None:
    """Neither micro-batches nor padding nor packing changes the loss or the gradient."""
    rows, plugin = drawn_samples(8), built(name)
    source, reference = Weighted(rows), make_llama(V)
    loss = source.mean(reference, plugin.losses)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    outcome = fit(
        make_llama(V),
        rows,
        tmp_path,
        soft_targets=source,
        objective=plugin,
        micro_batch_size=micro,
        batching=batching,
    )
    [log] = outcome.log
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_equal_weights_change_nothing(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows, trained = drawn_samples(8), []
    for source in (drawn_soft_targets(rows), Weighted(rows, one=True)):
        model = make_llama(V)
        fit(model, rows, tmp_path, soft_targets=source, objective=built("topk-tail"), epochs=2)
        trained.append(torch.cat([value.detach().ravel() for value in model.parameters()]))
    assert distance(*trained) < 1e-6


# Which path trains an arm, and mistakes of plugins.


def test_only_objectives_without_own_sums_are_called_as_plugins() -> None:
    for name in ("topk-tail", "topk-renormalized", "hard-gate"):
        assert objective_of(Arm.model_validate({"objective": name})) == name
    weighted = {"objective": "topk-tail", "span_weights": {"answer": 2.0}}
    assert isinstance(objective_of(Arm.model_validate(weighted)), CheckedObjective)
    assert isinstance(objective_of(Arm.model_validate({"objective": "dac-kl"})), CheckedObjective)


def test_no_objective_is_blamed_for_a_student_that_is_not_finite() -> None:
    view = StudentView(torch.full((2, 3), torch.nan), torch.zeros(2))
    target = TargetView(torch.full((2, 3), 0.3), torch.full((2,), 0.1), None)
    assert built("dac-kl").losses(view, target).isnan().all()


def test_an_installed_objective_reads_what_it_needs(make_llama: MakeLlama) -> None:
    rows = drawn_samples(4)
    batch = batches.TrainingBatches(rows, drawn_soft_targets(rows))[range(4)]
    del batch["samples"]
    model = make_llama(V)
    objective_forward.install_objective(model, built("dac-kl", threshold=1.0))
    own = make_llama(V)
    objective_forward.install_objective(own, "topk-tail")
    found, expected = model(**batch), own(**batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
