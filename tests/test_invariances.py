"""Invariances of a whole model; docs/invariances.md lists all invariances and their tests."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from conftest import MakeLlama
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.stages.scoring import top_k_of
from firstcli.training import batches, fused_objectives, objective_forward
from support.paths import DOCS, TESTS
from training import test_trainer as training_tests
from training.test_trainer import V, drawn_samples, soft_targets_for

DOCUMENT = DOCS / "invariances.md"


def step(
    model: LlamaForCausalLM, rows: Sequence[EncodedSample], objective: objective_forward.Objective
) -> tuple[float, Tensor]:
    """Return the loss and the gradient of one batch, through the installed objective."""
    objective_forward.install_objective(model, objective)
    batch = batches.TrainingBatches(rows, soft_targets_for(objective, rows))[range(len(rows))]
    del batch["samples"]
    output = model(**batch)
    loss = output["loss"] / output["positions"]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    flat = [gradient.ravel().float() for gradient in gradients]
    return float(loss.detach()), torch.cat(flat)


@torch.inference_mode()
def extracted(
    model: LlamaForCausalLM, rows: Sequence[EncodedSample], tokens: int = 10_000
) -> list[TopK]:
    reader = readout.Reader(model)
    known: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], tokens):
        known |= top_k_of(reader, [rows[i] for i in batch], 5, V)
    return [known[row.id] for row in rows]


@pytest.mark.parametrize("objective", training_tests.OBJECTIVES)
def test_the_chunk_size_does_not_change_a_step(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, objective: objective_forward.Objective
) -> None:
    rows = drawn_samples(8)
    loss, gradient = step(make_llama(V), rows, objective)
    for size in (1, 7, 64):
        monkeypatch.setitem(fused_objectives.CHUNK_ROWS, "cpu", size)
        chunked_loss, chunked_gradient = step(make_llama(V), rows, objective)
        assert chunked_loss == pytest.approx(loss, rel=1e-6)
        assert training_tests.distance(chunked_gradient, gradient) < 1e-6


def test_neither_chunk_size_nor_batch_composition_changes_knowledge(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_llama(V), drawn_samples(12)
    alone = extracted(model, rows, tokens=1)
    monkeypatch.setattr(readout, "CHUNK_ROWS", 3)
    for batched, single in zip(extracted(model, rows), alone, strict=True):
        assert batched.token_ids.tolist() == single.token_ids.tolist()
        assert abs(batched.log_probs - single.log_probs).max() < 1e-5
        assert abs(batched.log_tail - single.log_tail).max() < 1e-5


def test_weights_stored_in_bfloat16_change_results_little(make_llama: MakeLlama) -> None:
    """Each weight keeps eight bits: probabilities stay within 0.05, the loss within 2 %."""
    rows = drawn_samples(16)
    whole = make_llama(V, initializer_range=0.1)
    half = make_llama(V, initializer_range=0.1)
    half.to(torch.bfloat16)  # type: ignore[arg-type]  # a decorator hides its signature
    for ours, exact in zip(extracted(half, rows), extracted(whole, rows), strict=True):
        same = ours.token_ids == exact.token_ids
        errors = torch.tensor(ours.log_probs).exp() - torch.tensor(exact.log_probs).exp()
        assert float(errors[torch.tensor(same)].abs().max()) < 0.05
        tail_errors = torch.tensor(ours.log_tail).exp() - torch.tensor(exact.log_tail).exp()
        assert float(tail_errors.abs().max()) < 0.05
    loss, gradient = step(whole, rows, "topk-tail")
    half_loss, half_gradient = step(half, rows, "topk-tail")
    assert half_loss == pytest.approx(loss, rel=0.02)
    assert training_tests.distance(half_gradient, gradient) < 0.1


def test_the_document_names_tests_that_exist() -> None:
    named = set(re.findall(r"`([\w/]+)::(test_\w+)`", DOCUMENT.read_text("utf-8")))
    assert len(named) > 20
    for file, name in named:
        source = (TESTS / f"{file}.py").read_text("utf-8")
        assert f"def {name}(" in source, f"{file}::{name}"
