"""Hard Gate distillation: the label where the student is less sure of it than its teacher."""

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
from firstcli.data.encoding import EncodedSample
from firstcli.models import readout
from firstcli.models.readout import Layer
from firstcli.training import batches, fused_objectives, objective_forward, objectives
from firstcli.training.soft_targets import SoftTargets
from training.test_fused_objectives import chunks_of, copied, dense, layer_of, leaves_of
from training.test_trainer import K, V, distance, drawn_samples, drawn_soft_targets, fit


def naive(
    logits: Tensor, ids: Tensor, p: Tensor, tail: Tensor, labels: Sequence[int | None]
) -> tuple[Tensor, int]:
    """The objective position by position; also how many learn their label."""
    total, count = 0 * logits.sum(), 0
    for n, label in enumerate(labels):
        q = logits[n].softmax(-1)
        places = [k for k in range(ids.shape[1]) if ids[n, k] == label]
        if places and bool(q[label] < p[n, places[0]]):
            total, count = total - q[label].log(), count + 1
            continue
        for k in range(ids.shape[1]):
            if p[n, k] > 0:
                total = total + p[n, k] * (p[n, k] / q[ids[n, k]]).log()
        if tail[n] > 0:
            outside = torch.ones_like(q, dtype=torch.bool)
            outside[ids[n]] = False
            total = total + tail[n] * (tail[n] / q[outside].sum()).log()
    return total, count


@given(
    sizes=st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(2, 12)),
    k=st.integers(1, 12),
    rows=st.integers(1, 7),
    tail=st.sampled_from([0.0, 1e-6, 0.1, 0.9]),
    bias=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    unlabelled=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_are_those_of_the_definition(
    sizes: tuple[int, int, int],
    k: int,
    rows: int,
    tail: float,
    bias: bool,
    scale: float,
    unlabelled: bool,
    seed: int,
) -> None:
    """In float64, fused and dense: also without positions, with k = V and with labels outside."""
    torch.manual_seed(seed)
    n, d, v = sizes
    k = min(k, v)
    tail = 0.0 if k == v else tail
    layer = layer_of(n, d, v, bias=bias, scale=scale)
    ids = torch.stack([torch.randperm(v)[:k] for _ in range(n)] or [torch.zeros(k)]).long()[:n]
    p = torch.rand(n, k, dtype=torch.float64) + 1e-3
    p = (1 - tail) * p / p.sum(-1, keepdim=True)
    tails = torch.full((n,), tail, dtype=torch.float64)
    labels = [None if unlabelled and i % 2 else int(torch.randint(v, ())) for i in range(n)]
    numbers = torch.tensor([-1 if label is None else label for label in labels]).long()
    is_label = ids == numbers[:, None]

    expected, count = naive(dense(layer).values, ids, p, tails, labels)
    wanted = torch.autograd.grad(expected, leaves_of(layer))
    with chunks_of(rows):
        found = [
            fused_objectives.hard_gate(scores, ids, p, tails, is_label)
            for scores in (layer, dense(layer))
        ]
    for sums in found:
        torch.testing.assert_close(sums.loss, expected, rtol=1e-9, atol=1e-9)
        assert int(sums.from_label) == count and not sums.from_label.requires_grad
        for gradient, other in zip(
            torch.autograd.grad(sums.loss, leaves_of(layer)), wanted, strict=True
        ):
            torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-8)


def gate_of(q_label: float, p_label: float, is_label: bool = True) -> bool:
    log_q = torch.tensor([[math.log(q_label), math.log(0.01)]], dtype=torch.float64)
    p = torch.tensor([[p_label, 0.05]], dtype=torch.float64)
    marks = torch.tensor([[is_label, False]])
    target, tail, from_label = objectives.gated(log_q, p, torch.tensor([0.1]), marks)
    if from_label.item():
        assert target.tolist() == [[1.0, 0.0]] and tail.item() == 0
    else:
        assert torch.equal(target, p) and tail.item() == pytest.approx(0.1)
    return bool(from_label.item())


def test_the_teacher_is_learned_unless_the_student_is_less_sure() -> None:
    assert gate_of(0.2, 0.5)
    assert not gate_of(0.7, 0.5)
    assert not gate_of(0.5, 0.5)  # as sure
    assert not gate_of(0.2, 0.0)  # the teacher gives the label no probability
    assert not gate_of(0.2, 0.5, is_label=False)  # outside the k tokens, or without a label


def test_learning_the_label_is_cross_entropy_and_learning_the_teacher_is_topk_tail() -> None:
    """A student that is surer than its teacher everywhere, or nowhere, has one loss throughout."""
    torch.manual_seed(0)
    layer = layer_of(6, 4, 9, bias=True)
    ids = torch.stack([torch.randperm(9)[:3] for _ in range(6)])
    is_label = torch.zeros(6, 3, dtype=torch.bool)
    is_label[:, 1] = True
    low, high = torch.tensor([[0.5, 1e-9, 0.1]]), torch.tensor([[1e-9, 1 - 1e-9, 0.0]])
    for row, learns_label in ((low, False), (high, True)):
        p = row.double().expand(6, 3)
        tail = (1 - p.sum(-1)).clamp(min=0)
        gated = fused_objectives.hard_gate(layer, ids, p, tail, is_label)
        if learns_label:
            expected = fused_objectives.labels(layer, ids[:, 1])
        else:
            expected = fused_objectives.topk_tail(layer, ids, p, tail)
        torch.testing.assert_close(gated.loss, expected.loss)
        torch.testing.assert_close(
            torch.autograd.grad(gated.loss, [layer.hidden])[0],
            torch.autograd.grad(expected.loss, [layer.hidden])[0],
        )


def test_float32_is_close_to_float64() -> None:
    torch.manual_seed(1)
    wide = layer_of(40, 8, 50, bias=True)
    narrow = copied(wide, torch.float32)
    ids = torch.stack([torch.randperm(50)[:5] for _ in range(40)])
    p = torch.rand(40, 5, dtype=torch.float64)
    p *= 0.9 / p.sum(-1, keepdim=True)
    is_label = torch.arange(5) == torch.arange(40)[:, None] % 6  # some have none
    call = (ids, p, torch.full((40,), 0.1, dtype=torch.float64), is_label)
    expected = fused_objectives.hard_gate(wide, *call)
    got = fused_objectives.hard_gate(narrow, *call)
    assert got.from_label == expected.from_label and 0 < got.from_label < 40
    torch.testing.assert_close(got.loss.double(), expected.loss, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(
        torch.autograd.grad(got.loss, leaves_of(narrow)),
        torch.autograd.grad(expected.loss, leaves_of(wide)),
        strict=True,
    ):
        torch.testing.assert_close(gradient.double(), other, rtol=1e-4, atol=1e-5)


# Training.


class Gated:
    """Drawn soft targets whose second token is the label, as a `SoftTargetSource`."""

    def __init__(self, rows: Sequence[EncodedSample]) -> None:
        self._drawn = drawn_soft_targets(rows)

    def __call__(self, rows: Sequence[EncodedSample]) -> SoftTargets:
        soft = self._drawn(rows)
        targets, ids = np.concatenate([row.targets for row in rows]), soft.token_ids.copy()
        ids = np.where(ids == targets[:, None], ids[:, 1:2], ids)  # no token twice
        ids[:, 1] = targets
        return replace(soft, token_ids=ids, is_label=ids == targets[:, None])


def naive_loss(model: Any, rows: Sequence[EncodedSample]) -> tuple[Tensor, int]:
    """The sum over all positions, one sample at a time."""
    total, count, source = torch.zeros((), dtype=torch.float64), 0, Gated(rows)
    for row in rows:
        logits = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0].double()
        soft = source([row])
        loss, from_label = naive(
            logits[row.positions - 1],
            torch.from_numpy(soft.token_ids).long(),
            torch.from_numpy(soft.probabilities).double(),
            torch.from_numpy(soft.tail).double(),
            row.targets.tolist(),
        )
        total, count = total + loss, count + from_label
    return total, count


@pytest.mark.parametrize("micro, batching", [(8, "padded"), (2, "padded"), (4, "packed")])
def test_a_step_is_that_of_the_whole_batch(
    tmp_path: Path, make_llama: MakeLlama, micro: int, batching: Any
) -> None:
    rows, model = drawn_samples(8), make_llama(V)
    total, count = naive_loss(model, rows)
    positions = sum(len(row.targets) for row in rows)
    gradients = torch.autograd.grad(total / positions, list(model.parameters()))
    norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
    outcome = fit(
        make_llama(V),
        rows,
        tmp_path,
        soft_targets=Gated(rows),
        objective="hard-gate",
        micro_batch_size=micro,
        batching=batching,
    )
    [log] = outcome.log
    assert log["loss"] == pytest.approx(total.item() / positions, rel=1e-5)
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert log["from_label"] == pytest.approx(count / positions)
    assert outcome.facts["from_label"] == log["from_label"] and 0 < count < positions


def test_the_dense_path_gives_the_same(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For models whose output layer is not a plain Linear."""
    rows = drawn_samples(8)
    batch = batches.TrainingBatches(rows, Gated(rows))[range(8)]
    assert batch["is_label"].shape == batch["token_ids"].shape == (len(batch["targets"]), K)
    del batch["samples"]
    results = []
    for obstacle in (None, "the test requires it"):
        if obstacle:
            monkeypatch.setattr(readout, "_obstacle", lambda _, reason=obstacle: reason)
        model = make_llama(V)
        objective_forward.install_objective(model, "hard-gate")
        output = model(**batch)
        gradients = torch.autograd.grad(output["loss"], list(model.parameters()))
        results.append((output, torch.cat([gradient.ravel() for gradient in gradients])))
    (fused, got), (plain, expected) = results
    assert distance(got, expected) < 1e-5
    assert fused["from_label"] == plain["from_label"]


def test_a_process_without_samples_has_nothing_to_learn(make_llama: MakeLlama) -> None:
    rows = drawn_samples(2)
    batch = batches.TrainingBatches(rows, Gated(rows))[[~0]]
    assert batch["is_label"].shape == (0, K)
    del batch["samples"]
    model = make_llama(V)
    objective_forward.install_objective(model, "hard-gate")
    output = model(**batch)
    assert output["loss"].item() == 0 == output["from_label"].item()


def test_operands_are_freed_like_those_of_other_objectives() -> None:
    layer = layer_of(3, 4, 9, bias=False)
    ids, p = torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.4)
    marks = torch.tensor([[True, False]] * 3)
    loss = fused_objectives.hard_gate(
        Layer(layer.hidden, layer.weight, None), ids, p, torch.full((3,), 0.2), marks
    ).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
