"""Two processes compute the gradients, losses and weights of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from conftest import MakeLlama
from firstcli.runtime import distributed
from firstcli.training import objective_forward
from training.test_copies import common as with_choice
from training.test_copies import rows_and_copies
from training.test_trainer import OBJECTIVES, V, distance, drawn_samples, drawn_soft_targets, fit
from training.test_trainer import weights as flat_weights
from training.two_processes import run_in_two_processes


def train_shared(folder: Path) -> None:
    model, samples = LlamaForCausalLM.from_pretrained(folder / "start"), drawn_samples(21)
    outcome = fit(
        model,
        samples,
        folder / "run",
        micro_batch_size=2,
        soft_targets=drawn_soft_targets(samples),
        objective="topk-tail",
    )
    if distributed.is_first():
        torch.save((flat_weights(model), outcome.log), folder / "result.pt")
    distributed.leave()


def test_two_processes_train_the_same_weights(tmp_path: Path, make_llama: MakeLlama) -> None:
    """They share each batch, sum their positions, and log the masses of both.

    The last batch has 5 samples, so one process has none for its micro-batch of 2.
    """
    model, samples = make_llama(V), drawn_samples(21)
    model.save_pretrained(tmp_path / "start")
    soft_targets = drawn_soft_targets(samples)
    outcome = fit(model, samples, tmp_path, soft_targets=soft_targets, objective="topk-tail")
    run_in_two_processes(train_shared, tmp_path)
    shared, log = torch.load(tmp_path / "result.pt")
    assert distance(shared, flat_weights(model)) < 1e-6
    assert len(log) == len(outcome.log) == 3
    for entry, expected in zip(log, outcome.log, strict=True):
        for name in ("loss", "grad_norm", "P", "Q"):
            assert entry[name] == pytest.approx(expected[name], rel=1e-4)


def train_shared_with_copies(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder / "start")
    rows, choice = rows_and_copies()
    fit(model, rows, folder / "run", micro_batch_size=2, **with_choice(rows, choice))
    if distributed.is_first():
        torch.save(flat_weights(model), folder / "result.pt")
    distributed.leave()


def test_two_processes_choose_the_same_copies(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    model.save_pretrained(tmp_path / "start")
    rows, choice = rows_and_copies()
    fit(model, rows, tmp_path / "one", **with_choice(rows, choice))
    run_in_two_processes(train_shared_with_copies, tmp_path)
    assert distance(torch.load(tmp_path / "result.pt"), flat_weights(model)) < 1e-5


def fused_model(objective: objective_forward.Objective) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    messages: list[str] = []
    objective_forward.install_objective(model, objective, messages.append)
    assert not messages, messages  # the fused path
    return model


def batch_of(seed: int) -> dict[str, Tensor]:
    vocabulary, k, count = 61, 3, 5
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(vocabulary, generator=generator)[:k] for _ in range(count)]
    return {
        "input_ids": torch.randint(0, vocabulary, (2, 7), generator=generator),
        "attention_mask": torch.ones(2, 7, dtype=torch.long),
        "rows": torch.tensor([0, 0, 1, 1, 1]),
        "columns": torch.tensor([2, 4, 1, 3, 5]),
        "targets": torch.randint(0, vocabulary, (count,), generator=generator),
        "token_ids": torch.stack(ids),
        "probabilities": torch.full((count, k), 0.3),
        "tail": torch.full((count,), 0.1),
        "teacher_mass": torch.full((count,), 0.9),
    }


def compare_sharded_gradients() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for objective in OBJECTIVES:
        whole = fused_model(objective)
        (sum(whole(**batch_of(seed))["loss"] for seed in range(2)) / 2).backward()
        expected = {name: value.grad for name, value in whole.named_parameters()}

        sharded = fused_model(objective)
        mesh = init_device_mesh("cpu", (2,))
        for part in (*sharded.model.layers, sharded.lm_head, sharded):  # the head is its own group
            fully_shard(part, mesh=mesh)
        sharded(**batch_of(rank))["loss"].backward()
        for name, value in sharded.named_parameters():
            gradient = value.grad.full_tensor()
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)

        for parts in ({LlamaDecoderLayer}, {LlamaDecoderLayer, torch.nn.Linear}):
            wrapped = FullyShardedDataParallel(
                fused_model(objective),
                auto_wrap_policy=ModuleWrapPolicy(parts),
                use_orig_params=True,
                device_id=torch.device("cpu"),
            )
            wrapped(**batch_of(rank))["loss"].backward()
            with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
                pairs = zip(wrapped.named_parameters(), expected.values(), strict=True)
                for (_, value), gradient in pairs:
                    torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()


def test_sharded_weights_get_the_gradients_of_one_process() -> None:
    """FSDP 1 and 2, with the output layer's weight sharded over two processes."""
    run_in_two_processes(compare_sharded_gradients)
