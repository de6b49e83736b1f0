"""`first plan --probe`: estimates are the number of batches times the cost of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firstcli.stages import probe
from firstcli.training import objective_forward
from support import command_line
from support.command_line import first


@pytest.fixture
def second_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch, and every update of the weights, takes one second."""

    def run_and_say_one(work: Any, device: Any) -> float:
        work()
        return 1.0

    monkeypatch.setattr(probe, "_seconds", run_and_say_one)


def estimates(tmp_path: Path, *args: object) -> Any:
    path = command_line.write_recipe(
        tmp_path,
        student={"model": command_line.MODEL, "training": {**command_line.TRAINING, "epochs": 3}},
    )
    result = first("plan", path, "--run-dir", tmp_path / "run", "--probe", "--json", *args)
    assert result.code == 0, result.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".checks.json"}
    return result.json["probe"]


@pytest.mark.usefixtures("second_a_batch")
def test_time_is_that_of_all_batches(tmp_path: Path) -> None:
    """66 samples in 5 batches of 16, two of which two processes share as 3 micro-batches of 8."""
    found = estimates(tmp_path)
    assert found["finetune"]["seconds"] == 5 + 5
    assert found["distill first"]["seconds"] == 3 * (5 + 5)
    assert found["extract train"]["seconds"] == found["eval shifted/first"]["seconds"] == 1
    assert found.keys().isdisjoint({"report", "calibrate first"})
    two = estimates(tmp_path, "--processes", 2)
    assert two["finetune"]["seconds"] == 5 + 5  # half as large, but as many
    assert two["finetune"]["sharded"] < two["finetune"]["memory"]
    assert found["finetune"]["sharded"] == found["finetune"]["memory"]


def test_training_is_probed_as_the_recipe_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optimizer and activation checkpointing; random numbers are left as they were."""
    stepped: list[type] = []
    recomputes: list[bool] = []
    sgd, forward = torch.optim.SGD.step, objective_forward.install_objective

    def step(self: torch.optim.SGD, *args: Any) -> Any:
        stepped.append(type(self))
        return sgd(self, *args)

    def install(model: Any, *args: Any, **options: Any) -> None:
        recomputes.append(model.is_activation_checkpointing)
        forward(model, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    path = command_line.write_recipe(
        tmp_path, trainer={"optim": "sgd", "activation_checkpointing": True}
    )
    plan = ("plan", path, "--run-dir", tmp_path / "run")
    assert first(*plan).code == 0
    stepped.clear()
    monkeypatch.setattr(objective_forward, "install_objective", install)
    before = torch.get_rng_state()
    result = first(*plan, "--probe")
    assert result.code == 0, result.err
    assert stepped and all(recomputes) and len(recomputes) >= 2
    assert torch.equal(torch.get_rng_state(), before)


def test_sizes_between_the_probed_ones_lie_between_their_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = np.array([10, 400, 30, 90, 200, 60, 50, 70, 300])
    timed: list[int] = []
    monkeypatch.setattr(probe, "_seconds", lambda work, device: float(work() or 0) + timed[-1] / 10)
    found = probe._interpolated(sizes, lambda index: timed.append(int(sizes[index])), None)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, sizes / 10)
    assert len(set(timed)) == probe.PROBED_BATCHES < len(sizes)


def test_the_table_has_a_sum(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    shown = first("plan", path, "--run-dir", tmp_path / "run", "--probe", "--processes", 4)
    assert shown.code == 0, shown.err
    assert "estimate for 4 processes" in shown.out
    assert "sharded" in shown.out and " all " in shown.out
