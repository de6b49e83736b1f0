"""Sharded training whose weights only the first process has loaded equals training in one process.

Accelerate shards weights only on GPUs, but PyTorch can on CPUs: the processes pretend to have GPUs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import MakeLlama
from firstcli.runtime import distributed
from firstcli.training import arguments, sharding, trainer
from training.test_trainer import (
    CPU,
    V,
    distance,
    drawn_samples,
    drawn_soft_targets,
    fit,
    settings,
)
from training.two_processes import run_in_two_processes

LAUNCHED = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


def stretch(model: Any) -> None:
    """Change a buffer that is not saved: whoever computes it anew has another one."""
    model.model.rotary_emb.inv_freq.mul_(1.7)


def train_sharded(folder: Path) -> None:
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ |= LAUNCHED
    state: Any = PartialState
    choose = state._prepare_backend
    state._prepare_backend = lambda *args: (choose(*args)[0], DistributedType.MULTI_GPU)
    distributed.wait()  # joins the other process
    args = arguments.arguments(folder, settings(batch_size=8, micro_batch_size=2), {}, 0, CPU)
    assert sharding.first_loads(args)
    loaded: list[LlamaForCausalLM] = []

    def load() -> sharding.WholeModel:
        loaded.append(LlamaForCausalLM.from_pretrained(folder / "start"))
        stretch(loaded[0])
        return sharding.WholeModel.of(loaded[0])

    whole = distributed.by_first(load)
    assert not whole.saved_buffers
    if loaded:
        model = loaded[0]
    else:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder / "start"))
        whole.complete(model)
    samples = drawn_samples(21)
    outcome = fit(
        model,
        samples,
        folder / "run",
        micro_batch_size=2,
        soft_targets=drawn_soft_targets(samples),
        objective="topk-tail",
    )
    assert isinstance(model, FSDPModule)
    ours = sum(value.to_local().numel() for value in model.parameters())  # type: ignore[attr-defined]
    total = sum(value.numel() for value in model.parameters())
    assert 0.3 < ours / total < 0.7
    frequencies = model.model.rotary_emb.inv_freq
    assert all(torch.equal(frequencies, other) for other in distributed.gathered(frequencies))
    if distributed.is_first():
        assert outcome.weights is not None
        torch.save((outcome.weights, outcome.log), folder / "result.pt")
    distributed.leave()


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_the_first_process_train_like_those_of_one(
    tmp_path: Path, make_llama: MakeLlama, tied: bool
) -> None:
    model, samples = make_llama(V, tie_word_embeddings=tied), drawn_samples(21)
    model.save_pretrained(tmp_path / "start")
    stretch(model)
    soft_targets = drawn_soft_targets(samples)
    outcome = fit(model, samples, tmp_path, soft_targets=soft_targets, objective="topk-tail")
    run_in_two_processes(train_sharded, tmp_path)
    found, log = torch.load(tmp_path / "result.pt")
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert distance(found[name], value) < 1e-5, name
    if tied:
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    for entry, other in zip(log, outcome.log, strict=True):
        for name in ("loss", "grad_norm", "P", "Q"):
            assert entry[name] == pytest.approx(other[name], rel=1e-4)


def test_the_other_processes_hold_no_weights(make_llama: MakeLlama) -> None:
    """But each weight has its own address, and tied ones share theirs."""
    whole = sharding.WholeModel.of(make_llama(V, tie_word_embeddings=True))
    with torch.device("meta"):
        model = make_llama(V, tie_word_embeddings=True)
        large = make_llama(2_000_000)  # 512 MB
    whole.complete(model)
    addresses = [value.data_ptr() for value in model.parameters()]
    assert 0 not in addresses and len({*addresses}) == len(addresses)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = psutil.Process().memory_info().rss
    dtypes = {name: value.dtype for name, value in large.named_parameters()}
    sharding.WholeModel(dtypes, whole.buffers, None, ()).complete(large)
    assert sum(value.nbytes for value in large.parameters()) > 500e6
    assert psutil.Process().memory_info().rss - before < 100e6


# Who loads.


def test_only_fsdp_2_loads_in_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)

    def loads(processes: str = "2", **env: str) -> bool:
        for name, value in (LAUNCHED | env).items():
            monkeypatch.setenv(name, value)
        args = arguments.arguments(tmp_path, settings(), {}, 0, CPU)
        monkeypatch.setenv("WORLD_SIZE", processes)
        found = sharding.first_loads(args)
        monkeypatch.delenv("WORLD_SIZE")
        return found

    assert loads()
    assert not loads(FSDP_VERSION="1")
    assert not loads(FSDP_CPU_RAM_EFFICIENT_LOADING="false")
    assert not loads(ACCELERATE_USE_FSDP="false")
    assert not loads(processes="1")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, True),
        ({"version": 1}, False),
        ({"fsdp_version": 1}, False),
        ({"cpu_ram_efficient_loading": False}, False),
        ({"fsdp_cpu_ram_efficient_loading": False}, False),
    ],
)
def test_the_recipes_own_fsdp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], expected: bool
) -> None:
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    fields = {"fsdp": "full_shard", "fsdp_config": config}
    args = arguments.arguments(tmp_path, settings(), fields, 0, CPU)
    assert trainer.is_sharded(args)
    assert args.fsdp_plugin_args["cpu_ram_efficient_loading"] is expected
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sharding.first_loads(args) is expected
    sharding.load_in_all(args)
    assert args.fsdp_plugin_args["cpu_ram_efficient_loading"] is False
    assert not sharding.first_loads(args)


def test_buffers_that_are_saved_are_named(make_llama: MakeLlama) -> None:
    """Accelerate cannot shard them, so every process loads the whole model then."""
    model: Any = make_llama(V)
    model.model.register_buffer("bias", torch.ones(2))
    assert sharding.WholeModel.of(model).saved_buffers == ("model.bias",)
    other = make_llama(V, num_hidden_layers=1)
    with pytest.raises(RuntimeError, match="different weights"):
        sharding.WholeModel.of(model).complete(other)
