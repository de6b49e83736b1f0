"""Averages of weights over the steps, and interpolation with the weights at the start."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.runtime.console import Console
from firstcli.training import arguments, averaging, trainer
from firstcli.training.averaging import Averaging, StartingWeights, WeightAverage
from training.test_trainer import (
    CPU,
    SAVING,
    Interrupted,
    Interrupting,
    V,
    distance,
    drawn_samples,
    drawn_soft_targets,
    settings,
)
from training.two_processes import run_in_two_processes

DECAY = 0.8


def fit(model: Any, folder: Path, averaged: Averaging, **changes: Any) -> trainer.Outcome:
    """Train on 21 samples for three epochs of three steps."""
    fields = {"logging_steps": 1} | changes.pop("fields", SAVING)
    console = changes.pop("console", Console(quiet=True))
    args = arguments.arguments(folder, settings(epochs=3, **changes), fields, 0, CPU)
    rows = drawn_samples(21)
    soft_targets = drawn_soft_targets(rows)
    return trainer.train(
        model, rows, soft_targets, "topk-tail", args, console, "training", averaged=averaged
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().ravel().double() for value in model.parameters()])


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Note the weights after every step."""
    steps: list[Tensor] = []
    update = WeightAverage.update

    def recording(self: WeightAverage) -> None:
        steps.append(weights(self._model))
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(WeightAverage, "update", recording)
        yield steps


def expected_average(steps: list[Tensor], decay: float) -> Tensor:
    """The definition in float64."""
    shares = torch.tensor([decay ** (len(steps) - i) for i in range(1, len(steps) + 1)])
    return (shares.double()[:, None] * torch.stack(steps)).sum(0) / shares.double().sum()


# The formula.


@pytest.mark.parametrize("decay", [1e-6, 0.5, 0.99, 0.999999])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_the_average_is_that_of_the_definition(decay: float, count: int) -> None:
    """A decay near 0 keeps the last weights, one near 1 the plain mean; the start never counts."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2)
    average, steps = WeightAverage(model, decay), []
    for _ in range(count):
        for value in model.parameters():
            value.data = torch.randn(value.shape, generator=generator)
        steps.append(weights(model))
        average.update()
    average.apply()
    torch.testing.assert_close(weights(model), expected_average(steps, decay), rtol=1e-5, atol=1e-6)


def test_without_a_step_nothing_changes() -> None:
    model = nn.Linear(3, 2)
    before = weights(model)
    WeightAverage(model, DECAY).apply()
    assert torch.equal(weights(model), before)


def test_frozen_weights_stay_and_tied_ones_count_once(make_llama: MakeLlama) -> None:
    model = make_llama(V, tie_word_embeddings=True)
    model.model.norm.weight.requires_grad_(False)
    average = WeightAverage(model, DECAY)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    average.update()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    average.update()
    average.apply()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    start = make_llama(V, tie_word_embeddings=True)
    moved = (1 / (1 + DECAY)) * torch.ones(())
    expected = dict(start.named_parameters())["model.embed_tokens.weight"] + moved
    torch.testing.assert_close(model.get_input_embeddings().weight, expected)
    frozen, before = (dict(each.named_parameters())["model.norm.weight"] for each in (model, start))
    torch.testing.assert_close(frozen, before + 2)


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """Steps that bfloat16 weights take are averaged without rounding in between."""
    model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    average, steps = WeightAverage(model, 0.99), []
    for _ in range(20):
        model.weight.data = torch.randn(64, 64).bfloat16()
        steps.append(weights(model))
        average.update()
    expected = expected_average(steps, 0.99)
    average.apply()
    assert model.weight.dtype == torch.bfloat16
    torch.testing.assert_close(weights(model), expected.bfloat16().double(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_interpolation_is_a_share_of_the_way(share: float) -> None:
    model = nn.Linear(3, 2)
    start, before = StartingWeights(model), weights(model)
    for value in model.parameters():
        value.data = torch.randn(value.shape)
    after = weights(model)
    start.interpolate(share)
    torch.testing.assert_close(weights(model), before + share * (after - before))


# Training.


def test_training_ends_with_the_average(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps themselves are those without an average, and so is the log."""
    plain, averaged = make_llama(V), make_llama(V)
    without = fit(plain, tmp_path / "plain", Averaging())
    with recorded(monkeypatch) as steps:
        outcome = fit(averaged, tmp_path / "averaged", Averaging(ema=DECAY), micro_batch_size=4)
    assert len(steps) == outcome.steps == 9
    assert distance(steps[-1], weights(plain)) < 1e-6  # micro-batches change only the rounding
    assert distance(weights(averaged), expected_average(steps, DECAY)) < 1e-6
    assert distance(weights(averaged), weights(plain)) > 1e-4
    for entry, expected in zip(outcome.log, without.log, strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_autocast_averages_the_float32_weights(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_llama(V)
    with recorded(monkeypatch) as steps:
        fit(model, tmp_path, Averaging(ema=DECAY), fields={"bf16": True, "save_strategy": "no"})
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert distance(weights(model), expected_average(steps, DECAY)) < 1e-6


@pytest.mark.parametrize(
    "averaged", [Averaging(ema=DECAY), Averaging(interpolate=0.5), Averaging(DECAY, 0.5)]
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, make_llama: MakeLlama, averaged: Averaging
) -> None:
    """Bit for bit: killed in the third epoch, resumed from the end of the second."""
    whole, resumed = make_llama(V), make_llama(V)
    fit(whole, tmp_path / "whole", averaged)
    with pytest.raises(Interrupted):
        fit(make_llama(V), tmp_path / "killed", averaged, console=Interrupting(8))
    fit(resumed, tmp_path / "killed", averaged)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_training_killed_after_its_last_step_keeps_its_average(
    tmp_path: Path, make_llama: MakeLlama
) -> None:
    """The checkpoint holds the weights of the last step, and the average beside them."""
    model, again = make_llama(V), make_llama(V)
    fit(model, tmp_path, Averaging(ema=DECAY))
    fit(again, tmp_path, Averaging(ema=DECAY))
    assert torch.equal(weights(again), weights(model))


def test_both_interpolate_the_average(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_llama(V)
    start = weights(model)
    with recorded(monkeypatch) as steps:
        fit(model, tmp_path, Averaging(DECAY, 0.25))
    expected = start + 0.25 * (expected_average(steps, DECAY) - start)
    assert distance(weights(model), expected) < 1e-6


def test_a_checkpoint_without_its_average_is_refused(tmp_path: Path, make_llama: MakeLlama) -> None:
    with pytest.raises(Interrupted):
        fit(make_llama(V), tmp_path, Averaging(ema=DECAY), console=Interrupting(8))
    checkpoint = trainer.last_checkpoint(tmp_path)
    assert checkpoint
    path = checkpoint / averaging.FILE
    for damage in (path.unlink, lambda: path.write_bytes(b"\x00" * 100)):
        damage()
        with pytest.raises(UserError, match="average of the weights cannot be continued; delete"):
            fit(make_llama(V), tmp_path, Averaging(ema=DECAY))


def test_the_average_of_other_weights_is_refused(tmp_path: Path) -> None:
    WeightAverage(nn.Linear(3, 2), DECAY).save(tmp_path)
    for other in (nn.Linear(2, 2), nn.Linear(3, 2, bias=False)):
        with pytest.raises(UserError, match="cannot be continued"):
            WeightAverage(other, DECAY).load(tmp_path)


# Adapters.


def effective(model: Any) -> Tensor:
    """The weights with the adapter merged."""
    return weights(copy.deepcopy(model).merge_and_unload())


def test_adapters_are_averaged_and_interpolated(tmp_path: Path, make_llama: MakeLlama) -> None:
    """Half of the way is half of BA, not a quarter; checkpoints hold adapters only."""
    pytest.importorskip("peft")
    from firstcli.recipe.lora import Lora
    from firstcli.training import lora

    def adapted() -> Any:
        args = arguments.arguments(tmp_path, settings(), {}, 0, CPU)
        return lora.with_adapters(make_llama(V), Lora(rank=2, alpha=4), 0, args)

    start, plain, half, average = weights(make_llama(V)), adapted(), adapted(), adapted()
    fit(plain, tmp_path / "plain", Averaging())
    fit(half, tmp_path / "half", Averaging(interpolate=0.5))
    fit(average, tmp_path / "average", Averaging(ema=DECAY))
    assert distance(effective(half), start + 0.5 * (effective(plain) - start)) < 1e-6
    assert distance(effective(average), effective(plain)) > 1e-6
    checkpoint = trainer.last_checkpoint(tmp_path / "average")
    assert checkpoint
    trained = sum(value.numel() for value in average.parameters() if value.requires_grad)
    assert (checkpoint / averaging.FILE).stat().st_size < 4 * trained + 10_000


# Several processes.


def train_shared(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "start")
    fit(model, folder / "run", Averaging(ema=DECAY), micro_batch_size=2)
    if distributed.is_first():
        torch.save(weights(model), folder / "result.pt")
    distributed.leave()


def test_two_processes_save_the_average_of_one(tmp_path: Path, make_llama: MakeLlama) -> None:
    model = make_llama(V)
    model.save_pretrained(tmp_path / "start")
    fit(model, tmp_path / "alone", Averaging(ema=DECAY))
    run_in_two_processes(train_shared, tmp_path)
    assert distance(torch.load(tmp_path / "result.pt"), weights(model)) < 1e-6
    checkpoint = trainer.last_checkpoint(tmp_path / "run")
    assert checkpoint and (checkpoint / averaging.FILE).exists()
