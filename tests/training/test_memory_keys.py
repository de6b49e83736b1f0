"""The keys that save memory, with the fused objective: what they change and what they do not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeLlama
from firstcli.errors import UserError
from firstcli.runtime.console import Console
from firstcli.training import tracking, trainer, trainer_fields, trial
from support.small_training import V, fit, training_arguments

SAVING: dict[str, dict[str, Any]] = {
    "activation checkpointing": {"activation_checkpointing": True},
    "its older name": {"gradient_checkpointing": True},
    "every second layer": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"every_n_layers": 2},
    },
    "reentrant": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    },
    "emptied cache": {"torch_empty_cache_steps": 1},
}


@pytest.mark.parametrize("how", SAVING)
def test_saving_activations_changes_no_step(
    how: str, tmp_path: Path, make_llama: MakeLlama
) -> None:
    plain, saving = make_llama(V), make_llama(V)
    expected = fit(plain, tmp_path / "a")
    found = fit(saving, tmp_path / "b", **SAVING[how])
    for entry, other in zip(found.log, expected.log, strict=True):
        assert entry["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert entry["loss"] == pytest.approx(other["loss"], rel=1e-6)
    for value, same in zip(saving.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(value, same, rtol=1e-4, atol=1e-6)
    assert SAVING[how].keys() <= trainer_fields.HARMLESS


def test_optimizers_enter_fingerprints() -> None:
    assert not {"optim", "optim_args", "optim_target_modules"} & trainer_fields.HARMLESS


class Interrupted(Exception):
    pass


class Interrupting(Console):
    """A console that kills a run after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self._left = steps

    def progress(self, *_: Any, **__: Any) -> Any:
        def advance(count: int) -> None:
            self._left -= count
            if self._left <= 0:
                raise Interrupted

        return nullcontext(advance)


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"]
)
def test_each_optimizer_learns_and_resumes(
    optim: str, tmp_path: Path, make_llama: MakeLlama
) -> None:
    fields: dict[str, Any] = {"optim": optim, "save_strategy": "epoch"}
    whole = make_llama(V)
    outcome = fit(whole, tmp_path / "whole", **fields)
    assert outcome.log[-1]["loss"] < outcome.log[0]["loss"]
    with pytest.raises(Interrupted):
        fit(make_llama(V), tmp_path / "killed", Interrupting(5), **fields)
    resumed = make_llama(V, seed=9)
    rest = fit(resumed, tmp_path / "killed", **fields)
    assert rest.log == outcome.log
    for value, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_an_optimizer_of_bitsandbytes_names_its_extra(
    optim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(trial, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"trainer.optim: '{optim}' .*firstcli\[bitsandbytes\]"):
        trial.check(training_arguments(optim=optim))


def test_offloading_needs_a_gpu() -> None:
    offload = {"offload": True}
    given: dict[str, Any] = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": offload,
    }
    with pytest.raises(UserError, match=r"kwargs\.offload: .*runs on the CPU; leave it out"):
        trial.check(training_arguments(**given))


def test_a_resumed_run_tells_trackers_the_same_entropy(
    tmp_path: Path, make_llama: MakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    real = trainer.PositionTrainer.values_for_trackers

    def values(each: trainer.PositionTrainer) -> dict[str, float]:
        found = real(each)
        told.extend([found["entropy"]] if found else [])
        return found

    monkeypatch.setattr(trainer.PositionTrainer, "values_for_trackers", values)
    fields: dict[str, Any] = {
        "save_strategy": "epoch",
        "logging_steps": 2,
        "report_to": "tensorboard",
    }
    with tracking.inside(tmp_path, "run", "training"):
        fit(make_llama(V), tmp_path / "whole", **fields)
        whole = list(told)
        told.clear()
        with pytest.raises(Interrupted):
            fit(make_llama(V), tmp_path / "killed", Interrupting(5), **fields)
        told.clear()
        fit(make_llama(V, seed=9), tmp_path / "killed", **fields)
    assert told and told == pytest.approx(whole[-len(told) :], rel=1e-6)
