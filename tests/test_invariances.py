"""What must not change a result, for a whole model: the rest stands in docs/invariances.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from conftest import MakeLlama
from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.top_k import TopK
from firstcli.models import inference, readout
from firstcli.stages.extract import top_k_of
from firstcli.training import collate, fused_objectives, trainer
from training import test_trainer as training_tests
from training.test_trainer import V, case, some_rows

DOCUMENT = Path(__file__).parents[1] / "docs" / "invariances.md"


def step(
    model: LlamaForCausalLM, rows: Sequence[EncodedSample], objective: trainer.Objective
) -> tuple[float, Tensor]:
    """Return the loss and the gradient of one batch, through the installed objective."""
    trainer.install_objective(model, objective)
    batch = collate.Collate(rows, case(objective, rows))(range(len(rows)))
    del batch["samples"]
    output = model(**batch)
    loss = output["loss"] / output["positions"]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return float(loss.detach()), torch.cat([one.ravel().float() for one in gradients])


@torch.inference_mode()
def known(
    model: LlamaForCausalLM, rows: Sequence[EncodedSample], tokens: int = 10_000
) -> list[TopK]:
    reader = readout.Reader(model)
    found: dict[str, TopK] = {}
    for batch in inference.batches([len(row.input_ids) for row in rows], tokens):
        found |= top_k_of(reader, [rows[i] for i in batch], 5, V)
    return [found[row.id] for row in rows]


@pytest.mark.parametrize("objective", training_tests.OBJECTIVES)
def test_the_rows_in_flight_change_no_step(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch, objective: trainer.Objective
) -> None:
    rows = some_rows(8)
    loss, gradient = step(make_llama(V), rows, objective)
    for size in (1, 7, 64):
        monkeypatch.setitem(fused_objectives.ROWS, "cpu", size)
        other, found = step(make_llama(V), rows, objective)
        assert other == pytest.approx(loss, rel=1e-6)
        assert training_tests.distance(found, gradient) < 1e-6


def test_neither_rows_in_flight_nor_company_change_knowledge(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make_llama(V), some_rows(12)
    alone = known(model, rows, tokens=1)
    monkeypatch.setattr(readout, "READ_ROWS", 3)
    for one, other in zip(known(model, rows), alone, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert abs(one.log_probs - other.log_probs).max() < 1e-5
        assert abs(one.log_tail - other.log_tail).max() < 1e-5


def test_weights_stored_in_bfloat16_change_little(make_llama: MakeLlama) -> None:
    """Eight bits of each weight are left: probabilities within 0.05, the loss within 2 %."""
    rows = some_rows(16)
    whole = make_llama(V, initializer_range=0.1)
    half = make_llama(V, initializer_range=0.1)
    half.to(torch.bfloat16)  # type: ignore[arg-type]  # a decorator hides its signature
    for one, other in zip(known(half, rows), known(whole, rows), strict=True):
        same = one.token_ids == other.token_ids
        off = abs(torch.tensor(one.log_probs).exp() - torch.tensor(other.log_probs).exp())
        assert float(off[torch.tensor(same)].max()) < 0.05
        tails = torch.tensor(one.log_tail).exp() - torch.tensor(other.log_tail).exp()
        assert float(tails.abs().max()) < 0.05
    loss, gradient = step(whole, rows, "topk-tail")
    other_loss, found = step(half, rows, "topk-tail")
    assert other_loss == pytest.approx(loss, rel=0.02)
    assert training_tests.distance(found, gradient) < 0.1


def test_the_document_names_tests_that_exist() -> None:
    named = set(re.findall(r"`([\w/]+)::(test_\w+)`", DOCUMENT.read_text("utf-8")))
    assert len(named) > 20
    for file, name in named:
        source = (Path(__file__).parent / f"{file}.py").read_text("utf-8")
        assert f"def {name}(" in source, f"{file}::{name}"
