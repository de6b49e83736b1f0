"""Packed batches: the same losses, gradients and knowledge as padded ones, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from conftest import MakeLlama
from firstcli.data.encoding import EncodedSample
from firstcli.models import inference, readout
from firstcli.models.inference import Batching
from firstcli.stages.scoring import top_k_of
from firstcli.training import batches, objective_forward
from firstcli.training.objective_forward import Objective
from support.checkpoints import SHAPE as TINY
from training.test_trainer import (
    OBJECTIVES,
    K,
    V,
    distance,
    drawn_samples,
    fit,
    naive_loss,
    soft_targets_for,
    weights,
)

SHAPE = {**TINY, "vocab_size": V, "initializer_range": 0.3}
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "gpt2": GPT2Config(
        vocab_size=V,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    ),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, num_key_value_heads=1, head_dim=8),
    # All logits at once, because of soft-capping, and a sliding window.
    "gemma2": Gemma2Config(**SHAPE, num_key_value_heads=1, head_dim=8, sliding_window=3),
}


def build(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    model.eval()
    return model


def step(
    name: str,
    rows: Sequence[EncodedSample],
    objective: Objective,
    batching: Batching,
    parts: Sequence[Sequence[int]],
) -> tuple[float, Tensor]:
    """Return the loss of all samples and its gradient, one micro-batch after the other."""
    model = build(name)
    collated = batches.TrainingBatches(rows, soft_targets_for(objective, rows), batching)
    objective_forward.install_objective(model, objective)
    count = sum(len(row.targets) for row in rows)
    total = 0.0
    for part in parts:
        batch = collated[part]
        del batch["samples"]
        loss = model(**batch)["loss"] / count
        loss.backward()
        total += loss.item()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    return total, torch.cat([gradient.ravel() for gradient in gradients])


def test_a_packed_batch_is_one_row_with_restarting_positions() -> None:
    rows = [
        EncodedSample("a", np.array([1, 2, 3, 4], np.int32), start=2, answer_position=2),
        EncodedSample("b", np.array([5, 6, 7], np.int32), start=1, answer_position=1),
        EncodedSample("c", np.array([8, 9], np.int32), start=1, answer_position=1),
    ]
    batch = batches.TrainingBatches(rows, None, "packed")[[2, 0, 1]]
    assert "attention_mask" not in batch
    assert batch["input_ids"].tolist() == [[8, 9, 1, 2, 3, 4, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert batch["rows"].tolist() == [0, 0, 0, 0, 0]
    assert batch["columns"].tolist() == [0, 3, 4, 6, 7]
    assert batch["targets"].tolist() == [9, 3, 4, 6, 7]
    assert batch["samples"].tolist() == [2, 0, 1]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradient_equal_those_of_a_padded_batch(name: str, objective: Objective) -> None:
    rows = drawn_samples(8)
    loss, gradient = step(name, rows, objective, "padded", [range(8)])
    for parts in ([range(8)], [range(4), range(4, 8)], [[i] for i in range(8)]):
        packed_loss, packed_gradient = step(name, rows, objective, "packed", parts)
        assert packed_loss == pytest.approx(loss, rel=1e-6)
        assert distance(packed_gradient, gradient) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_equals_the_naive_one(make_llama: MakeLlama, objective: Objective) -> None:
    """An ordinary forward pass, padded on the left, and explicit sums in float64."""
    rows = drawn_samples(8)
    soft_targets = soft_targets_for(objective, rows)
    expected = naive_loss(make_llama(V), rows, soft_targets, objective)
    model = make_llama(V)
    objective_forward.install_objective(model, objective)
    batch = batches.TrainingBatches(rows, soft_targets, "packed")[range(8)]
    del batch["samples"]
    output = model(**batch)
    loss = float((output["loss"] / output["positions"]).detach())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_knowledge_equals_that_of_padded_batches(name: str) -> None:
    rows = drawn_samples(12)
    reader = readout.Reader(build(name))
    padded = top_k_of(reader, rows, K, V)
    for parts in ([rows], [rows[:5], rows[5:]], [[row] for row in rows]):
        packed = {
            id: top for part in parts for id, top in top_k_of(reader, part, K, V, "packed").items()
        }
        assert packed.keys() == padded.keys()
        for id, top in padded.items():
            np.testing.assert_array_equal(packed[id].token_ids, top.token_ids)
            np.testing.assert_allclose(packed[id].log_probs, top.log_probs, atol=1e-5)
            np.testing.assert_allclose(packed[id].log_tail, top.log_tail, atol=1e-5)


@torch.inference_mode()
def test_no_sequence_sees_another(make_llama: MakeLlama) -> None:
    """To the last bit: what is hidden has exactly no weight."""
    rows = drawn_samples(3)
    changed = EncodedSample("s0", (rows[0].input_ids + 1) % V, rows[0].start, None)
    reader = readout.Reader(make_llama(V))
    before = top_k_of(reader, rows, K, V, "packed")
    after = top_k_of(reader, [changed, *rows[1:]], K, V, "packed")
    for id in ("s1", "s2"):
        np.testing.assert_array_equal(before[id].log_probs, after[id].log_probs)
    assert abs(before["s0"].log_probs - after["s0"].log_probs).max() > 0.1


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_ends_with_the_same_weights(
    tmp_path: Path, make_llama: MakeLlama, micro: int, checkpointing: bool
) -> None:
    """Also with an incomplete last batch, and with gradient checkpointing."""
    rows = drawn_samples(20)
    soft_targets = soft_targets_for("topk-tail", rows)
    padded, packed = make_llama(V), make_llama(V)
    common: dict[str, Any] = {"soft_targets": soft_targets, "objective": "topk-tail", "epochs": 2}
    reference = fit(padded, rows, tmp_path / "padded", micro_batch_size=8, **common)
    fields = {"activation_checkpointing": checkpointing}
    outcome = fit(
        packed,
        rows,
        tmp_path / "packed",
        micro_batch_size=micro,
        fields=fields,
        batching="packed",
        **common,
    )
    assert distance(weights(packed), weights(padded)) < 1e-5
    assert outcome.positions == reference.positions and outcome.steps == reference.steps
    assert outcome.loss == pytest.approx(reference.loss, rel=1e-4)
    assert outcome.padding == 0 < reference.padding


def test_a_process_without_samples_gets_a_packed_batch_that_does_not_count(
    make_llama: MakeLlama,
) -> None:
    model, rows = make_llama(V), drawn_samples(2)
    batch = batches.TrainingBatches(rows, None, "packed")[[~1]]
    del batch["samples"]
    objective_forward.install_objective(model, "labels")
    output = model(**batch)
    output["loss"].backward()
    assert output["loss"] == 0 and output["positions"] == 0
    assert all(not value.grad.any() for value in model.parameters() if value.grad is not None)


def test_positions_of_packed_sequences_of_one_token() -> None:
    ids, positions = inference.pack([np.array([3], np.int32), np.array([4], np.int32)])
    assert ids.tolist() == [[3, 4]] and positions.tolist() == [[0, 0]]


def test_adapters_learn_the_same_from_packed_batches(tmp_path: Path, make_llama: MakeLlama) -> None:
    peft = pytest.importorskip("peft")
    rows = drawn_samples(16)
    trained = []
    for batching in ("padded", "packed"):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(make_llama(V), config)
        fit(model, rows, tmp_path / batching, micro_batch_size=4, batching=batching)
        trained.append(
            torch.cat([v.detach().ravel() for v in model.parameters() if v.requires_grad])
        )
    assert distance(trained[1], trained[0]) < 1e-5
