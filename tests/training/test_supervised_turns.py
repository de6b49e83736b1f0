"""Samples of which some tokens in the middle are not supervised, as in a chat of several turns.

Loss and knowledge equal those of a naive reference, which reads one sample at a time and one
position at a time; padding and the other samples of a batch change nothing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from conftest import MakeLlama
from firstcli.data.encoded import EncodedStore
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import shards
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import Knowledge
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.models.answers import target_log_probs
from firstcli.stages.scoring import top_k_of
from firstcli.training.objective_forward import Objective
from firstcli.training.soft_targets import Positions, SoftTargets
from training.test_trainer import OBJECTIVES, K, V, fit, soft_targets_for


def drawn_turns(count: int, seed: int = 0) -> list[EncodedSample]:
    """Samples of 2 to 20 tokens, of which a random half is supervised; in each fourth, the end."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        ids = generator.integers(0, V, int(generator.integers(2, 21)), dtype=np.int32)
        chosen = generator.random(len(ids)) < 0.5
        if number % 4 == 0:
            chosen = np.arange(len(ids)) >= len(ids) // 2
        chosen[0], chosen[-1] = False, chosen[-1] or not chosen[1:].any()
        rows.append(EncodedSample.supervised_at(f"t{number}", ids, np.flatnonzero(chosen)))
    assert any(row.gaps for row in rows)
    return rows


def before_each_target(model: LlamaForCausalLM, row: EncodedSample) -> list[tuple[Tensor, int]]:
    """Return float64 log-probabilities before each supervised token, and that token."""
    ids = torch.from_numpy(row.input_ids).long()[None]
    log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    supervised = set(range(row.start, len(row.input_ids)))
    for first, end in row.gaps:
        supervised -= set(range(first, end))
    return [(log_probs[place - 1], int(row.input_ids[place])) for place in sorted(supervised)]


def naive_loss(
    model: LlamaForCausalLM,
    rows: list[EncodedSample],
    soft_targets: list[SoftTargets] | None,
    objective: Objective,
) -> Tensor:
    losses = []
    for number, row in enumerate(rows):
        for n, (log_q, target) in enumerate(before_each_target(model, row)):
            if soft_targets is None:
                losses.append(-log_q[target])
                continue
            soft = soft_targets[number]
            p = torch.from_numpy(soft.probabilities[n]).double()
            log_q = log_q[torch.from_numpy(soft.token_ids[n]).long()]
            if objective == "topk-renormalized":
                losses.append((p * (p.log() - log_q.log_softmax(-1))).sum())
                continue
            tail, rest = float(soft.tail[n]), (1 - log_q.exp().sum()).log()
            losses.append((p * (p.log() - log_q)).sum() + tail * (math.log(tail) - rest))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro", [8, 2, 1])
def test_loss_and_gradient_equal_the_naive_ones(
    tmp_path: Path, make_llama: MakeLlama, objective: Objective, micro: int
) -> None:
    rows = drawn_turns(8, seed=micro)
    soft_targets = soft_targets_for(objective, rows)
    reference = make_llama(V)
    loss = naive_loss(reference, rows, soft_targets, objective)
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    norm = torch.cat([gradient.ravel() for gradient in gradients]).norm()
    outcome = fit(
        make_llama(V),
        EncodedStore(rows, tmp_path),
        tmp_path,
        soft_targets=soft_targets,
        objective=objective,
        micro_batch_size=micro,
    )
    assert outcome.log[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.log[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert outcome.positions == sum(len(row.positions) for row in rows)


@pytest.mark.parametrize("tokens", [1, 50, 10_000])
@torch.inference_mode()
def test_knowledge_equals_the_naive_one_in_any_batch(make_llama: MakeLlama, tokens: int) -> None:
    model, rows = make_llama(V), drawn_turns(12)
    reader = readout.Reader(model)
    known: dict[str, TopK] = {}
    read: dict[str, npt.NDArray[np.float64]] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], tokens):
        known |= top_k_of(reader, [rows[i] for i in batch], K, V)
        read |= target_log_probs(reader, [rows[i] for i in batch])
    for row in rows:
        expected = before_each_target(model, row)
        found = known[row.id]
        assert len(found.token_ids) == len(expected) == len(read[row.id])
        for n, (log_p, target) in enumerate(expected):
            top = log_p.topk(K)
            assert found.token_ids[n].tolist() == top.indices.tolist()
            np.testing.assert_allclose(found.log_probs[n], top.values, atol=1e-5)
            np.testing.assert_allclose(
                np.exp(found.log_tail[n]), 1 - top.values.exp().sum(), atol=1e-5
            )
            assert read[row.id][n] == pytest.approx(float(log_p[target]), abs=1e-5)


@torch.inference_mode()
def test_stored_knowledge_belongs_to_the_same_turns(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = drawn_turns(12)
    known = top_k_of(readout.Reader(make_llama(V)), rows, K, V)
    shards.write_shard(
        shards.shard_path(tmp_path, 0),
        rows,
        [known[row.id] for row in rows],
        StoreFormat(K, "standard", "train", shards=1),
    )
    stored = Knowledge(tmp_path)
    stored.check(rows)
    positions = Positions.of(rows, [stored.of(row) for row in rows])
    assert positions.targets.tolist() == np.concatenate([row.targets for row in rows]).tolist()
    for row in rows:
        np.testing.assert_array_equal(stored.of(row).token_ids, known[row.id].token_ids)
    number = next(i for i, row in enumerate(rows) if row.gaps and row.gaps[0][0] > row.start + 1)
    (first, end), *others = rows[number].gaps
    moved = replace(rows[number], gaps=((first - 1, end - 1), *others))
    assert len(moved.targets) == len(rows[number].targets)
    with pytest.raises(UserError):
        stored.check([moved if row.id == moved.id else row for row in rows])
