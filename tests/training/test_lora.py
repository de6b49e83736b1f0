"""Adapters: what is trained, what stays, and that nothing else about training changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from conftest import MakeLlama
from firstcli.checkpoints import adapters
from firstcli.checkpoints.adapters import Base
from firstcli.checkpoints.loading import load_complete
from firstcli.errors import UserError
from firstcli.models import readout
from firstcli.recipe.lora import Lora
from firstcli.runtime import distributed
from firstcli.runtime.console import Console
from firstcli.training import arguments, fused_objectives, lora, objective_forward, trainer
from firstcli.training.batches import TrainingBatches
from training.test_trainer import (
    CPU,
    OBJECTIVES,
    SAVING,
    Interrupted,
    Interrupting,
    V,
    distance,
    drawn_samples,
    drawn_soft_targets,
    naive_loss,
    settings,
    soft_targets_for,
)
from training.two_processes import run_in_two_processes

pytest.importorskip("peft")

IDS = torch.arange(24).reshape(2, 12)


def adapted(model: LlamaForCausalLM, section: Lora | None = None, **fields: Any) -> Any:
    args = arguments.arguments(Path("unused"), settings(), fields, 0, CPU)
    return lora.with_adapters(model, section or Lora(rank=4, alpha=8), 0, args)


def fit(model: Any, rows: Any, folder: Path, **options: Any) -> trainer.Outcome:
    """Train as `test_trainer.fit` does, with any model."""
    soft_targets = options.pop("soft_targets", None)
    objective, console = options.pop("objective", "labels"), options.pop("console", None)
    fields = {"logging_steps": 1, "save_strategy": "no"} | options.pop("fields", {})
    args = arguments.arguments(folder, settings(**options), fields, 0, CPU)
    console = console or Console(quiet=True)
    return trainer.train(model, rows, soft_targets, objective, args, console, "training")


def adapter_of(model: Any) -> Tensor:
    return torch.cat([v.detach().ravel() for v in model.parameters() if v.requires_grad])


def drawn(model: Any, seed: int = 3) -> Any:
    """Give all matrices B random values, so that the adapter has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


# Which layers.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", ["auto", ("q_proj", "v_proj"), ("layers.1.mlp.down_proj",)])
def test_trainable_counts_what_peft_trains(make_llama: MakeLlama, tied: bool, targets: Any) -> None:
    section = Lora(rank=3, targets=targets)
    with torch.device("meta"):
        empty = LlamaForCausalLM(make_llama(V, tie_word_embeddings=tied).config)
    model = adapted(make_llama(V, tie_word_embeddings=tied), section)
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    count = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert lora.trainable(empty, section) == count
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert len(names) == {"auto": 2 * 7 * 2, 2: 2 * 2 * 2, 1: 2}.get(
        targets if targets == "auto" else len(targets)
    )


def test_trainable_counts_the_transposed_layers_of_gpt2() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2))
    count = lora.trainable(model, Lora(rank=2))
    assert count == 2 * 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
    trained = adapted(model, Lora(rank=2))  # type: ignore[arg-type]
    assert count == sum(v.numel() for v in trained.parameters() if v.requires_grad)


@pytest.mark.parametrize(
    "target, parts",
    [
        ("q_prj", ("no linear layer named 'q_prj'", "did you mean 'q_proj'", "'down_proj'")),
        ("lm_head", ("'lm_head' is the output layer", "'q_proj'")),
        ("embed_tokens", ("'embed_tokens' is the embedding",)),
        ("proj", ("no linear layer named 'proj'",)),
        ("input_layernorm", ("no linear layer named 'input_layernorm'",)),
    ],
)
def test_a_wrong_target_is_explained(
    make_llama: MakeLlama, target: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        lora.trainable(make_llama(V), Lora(targets=("v_proj", target)))
    for part in ("lora.targets: ", *parts):
        assert part in str(caught.value)


# Training.


def test_an_adapter_begins_without_effect_and_leaves_the_seed_alone(make_llama: MakeLlama) -> None:
    expected = make_llama(V)(IDS).logits
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = adapted(make_llama(V)), adapted(make_llama(V))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(input_ids=IDS).logits, expected)
    assert torch.equal(adapter_of(first), adapter_of(second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_do_not_change_by_a_bit(
    tmp_path: Path, make_llama: MakeLlama, dtype: torch.dtype
) -> None:
    """In float32 and beside bfloat16 weights, where adapters are float32."""
    rows, model = drawn_samples(16), make_llama(V)
    model.to(dtype=dtype)  # type: ignore[call-arg]  # a decorator hides its signature
    before = copy.deepcopy(model.state_dict())
    trained = adapted(model)
    start = adapter_of(trained)
    fit(trained, rows, tmp_path, soft_targets=drawn_soft_targets(rows), objective="topk-tail")
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert adapter_of(trained).dtype == torch.float32
    assert not torch.equal(adapter_of(trained), start)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_those_of_a_dense_float64_reference(
    make_llama: MakeLlama, objective: objective_forward.Objective, tied: bool
) -> None:
    """Logits of all tokens, the objective in float64 and autograd; no fused sum."""
    rows = drawn_samples(8)
    soft_targets = soft_targets_for(objective, rows)
    reference = drawn(adapted(make_llama(V, tie_word_embeddings=tied))).double()
    loss = naive_loss(reference.get_base_model(), rows, soft_targets, objective)
    wanted = [value for value in reference.parameters() if value.requires_grad]
    expected = torch.autograd.grad(loss, wanted)

    model = drawn(adapted(make_llama(V, tie_word_embeddings=tied)))
    messages: list[str] = []
    objective_forward.install_objective(model.get_base_model(), objective, messages.append)
    assert messages == []  # the fused path
    batch = TrainingBatches(rows, soft_targets)[range(8)]
    del batch["samples"]
    output = model(**batch)
    (output["loss"] / output["positions"]).backward()
    found = [value.grad for value in model.parameters() if value.requires_grad]
    for gradient, reference_gradient in zip(found, expected, strict=True):
        assert distance(gradient.double(), reference_gradient) < 1e-5
    assert all(value.grad is None for value in model.parameters() if not value.requires_grad)


def test_the_gradient_of_the_frozen_output_layer_is_not_computed(
    make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[bool]] = []
    compute = fused_objectives._sums_and_gradients

    def noted(layer: readout.Layer, needed: list[bool], *others: Any) -> Any:
        asked.append(needed)
        return compute(layer, needed, *others)

    monkeypatch.setattr(fused_objectives, "_sums_and_gradients", noted)
    model = adapted(make_llama(V))
    objective_forward.install_objective(model.get_base_model(), "labels")
    batch = TrainingBatches(drawn_samples(4), None)[range(4)]
    del batch["samples"]
    model(**batch)["loss"].backward()
    assert asked == [[True, False, False]]


def test_full_rank_on_one_layer_reaches_the_loss_of_full_training(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    """An adapter of rank 32 can make any change of a layer of 48 by 32."""
    rows = drawn_samples(4)
    common: dict[str, Any] = {
        "soft_targets": drawn_soft_targets(rows),
        "objective": "topk-tail",
        "epochs": 200,
        "learning_rate": 2e-2,
    }
    full = make_llama(V).requires_grad_(False)
    full.model.layers[1].mlp.up_proj.requires_grad_(True)
    whole = fit(full, rows, tmp_path / "full", **common)
    section = Lora(rank=32, alpha=32, targets=("layers.1.mlp.up_proj",))
    low = fit(adapted(make_llama(V), section), rows, tmp_path / "lora", **common)
    assert low.steps == whole.steps == 200
    (start, reached), (same, wanted) = ((o.log[0]["loss"], o.loss) for o in (low, whole))
    assert start == pytest.approx(same)
    assert wanted < 0.5 * start
    assert reached < wanted + 0.02 * start


def test_micro_batches_change_nothing(tmp_path: Path, make_llama: MakeLlama) -> None:
    rows = drawn_samples(21)
    results = []
    for micro in (8, 2, 1):
        model = adapted(make_llama(V))
        options = {"soft_targets": drawn_soft_targets(rows), "objective": "topk-tail"}
        fit(model, rows, tmp_path / str(micro), micro_batch_size=micro, **options)
        results.append(adapter_of(model))
    assert all(distance(result, results[0]) < 1e-5 for result in results[1:])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, make_llama: MakeLlama, dropout: float
) -> None:
    """Bit for bit; the checkpoint holds the adapter and not the model."""
    rows, section = drawn_samples(21), Lora(rank=4, dropout=dropout)
    common: dict[str, Any] = {"soft_targets": drawn_soft_targets(rows), "objective": "topk-tail"}
    common |= {"epochs": 3, "fields": SAVING}
    uninterrupted = adapted(make_llama(V), section)
    whole = fit(uninterrupted, rows, tmp_path / "whole", **common)
    with pytest.raises(Interrupted):
        killed = adapted(make_llama(V), section)
        fit(killed, rows, tmp_path / "killed", console=Interrupting(8), **common)
    checkpoint = trainer.last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.name == "checkpoint-6"
    assert not list(checkpoint.glob("model*"))
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 40_000
    resumed = adapted(make_llama(V), section)
    with torch.no_grad():  # its adapter comes from the checkpoint
        for value in resumed.parameters():
            if value.requires_grad:
                value.add_(1)
    rest = fit(resumed, rows, tmp_path / "killed", **common)
    assert torch.equal(adapter_of(resumed), adapter_of(uninterrupted))
    assert [entry["loss"] for entry in rest.log] == [entry["loss"] for entry in whole.log]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_give_the_same_adapter(
    tmp_path: Path, make_llama: MakeLlama, reentrant: bool
) -> None:
    rows = drawn_samples(8)
    plain = adapted(make_llama(V))
    fields: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    saving = adapted(make_llama(V), **fields)
    fit(plain, rows, tmp_path / "plain")
    fit(saving, rows, tmp_path / "saving", fields=fields)
    assert distance(adapter_of(saving), adapter_of(plain)) < 1e-6


# Several processes.


def train_shared(folder: Path) -> None:
    model = adapted(LlamaForCausalLM.from_pretrained(folder / "start"))
    samples = drawn_samples(21)
    options = {"soft_targets": drawn_soft_targets(samples), "objective": "topk-tail"}
    fit(model, samples, folder / "run", micro_batch_size=2, **options)
    if distributed.is_first():
        torch.save(adapter_of(model), folder / "result.pt")
    distributed.leave()


def test_two_processes_train_the_same_adapter(tmp_path: Path, make_llama: MakeLlama) -> None:
    make_llama(V).save_pretrained(tmp_path / "start")
    samples, model = drawn_samples(21), adapted(make_llama(V))
    options = {"soft_targets": drawn_soft_targets(samples), "objective": "topk-tail"}
    fit(model, samples, tmp_path, **options)
    run_in_two_processes(train_shared, tmp_path)
    assert distance(torch.load(tmp_path / "result.pt"), adapter_of(model)) < 1e-5


def compare_sharded_gradients(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    rows = drawn_samples(8)
    parts = TrainingBatches(rows, soft_targets_for("topk-tail", rows))

    def batch(which: int) -> dict[str, Tensor]:
        found = parts[range(4 * which, 4 * which + 4)]
        return {name: value for name, value in found.items() if name != "samples"}

    def model() -> Any:
        whole = drawn(adapted(LlamaForCausalLM.from_pretrained(folder)))
        objective_forward.install_objective(whole.get_base_model(), "topk-tail")
        return whole

    whole = model()
    (sum(whole(**batch(which))["loss"] for which in range(2)) / 2).backward()
    expected = {name: value.grad for name, value in whole.named_parameters()}
    sharded = model()
    mesh = init_device_mesh("cpu", (2,))
    base = sharded.get_base_model()
    for part in (*base.model.layers, base.lm_head, sharded):
        fully_shard(part, mesh=mesh)
    sharded(**batch(rank))["loss"].backward()
    for name, value in sharded.named_parameters():
        if value.requires_grad:
            found = value.grad.full_tensor()
            torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
        else:
            assert value.grad is None
    torch.distributed.destroy_process_group()


def test_sharded_adapters_get_the_gradients_of_one_process(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    """FSDP 2, with the frozen output layer sharded over two processes."""
    make_llama(V).save_pretrained(tmp_path)
    run_in_two_processes(compare_sharded_gradients, tmp_path)


# What is saved.


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_merged_and_unmerged_give_the_same_logits(
    tmp_path: Path, make_llama: MakeLlama, kind: str
) -> None:
    """The trained model, the merged one, and the adapter loaded and merged again."""
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2))
    else:
        model = make_llama(V, tie_word_embeddings=kind == "tied")
    model.save_pretrained(tmp_path / "base")
    trained = drawn(adapted(model)).eval()
    unmerged = trained(input_ids=IDS).logits
    lora.save_adapter(trained, tmp_path / "adapter", Base(str(tmp_path / "base")))
    merged = trained.merge_and_unload()
    loaded = load_complete(tmp_path / "adapter", dtype=torch.float32)
    plain = load_complete(tmp_path / "base", dtype=torch.float32)
    scale = unmerged.abs().max()
    for other in (merged, loaded):
        assert (other(input_ids=IDS).logits - unmerged).abs().max() < 1e-5 * scale
    assert (plain(input_ids=IDS).logits - unmerged).abs().max() > 1e-2 * scale
    assert type(loaded) is type(plain)
    assert all(value.requires_grad for value in loaded.parameters())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in loaded.named_parameters()] == names


def test_a_gathered_adapter_is_saved_like_a_whole_one(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    model = drawn(adapted(make_llama(V)))
    lora.save_adapter(model, tmp_path / "own", Base("owner/base", "v1"))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    lora.save_adapter(model, tmp_path / "given", Base("owner/base", "v1"), weights)
    own, given = ((tmp_path / n / adapters.ADAPTER_WEIGHTS).read_bytes() for n in ("own", "given"))
    assert own == given
    assert adapters.base_of(tmp_path / "own") == Base("owner/base", "v1")
