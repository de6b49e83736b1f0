"""Recipes with `ema` and `interpolate`: students, fingerprints, plans, cards and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support import command_line
from support.command_line import first

TRAINING = command_line.TRAINING


def write_recipe(folder: Path, pico_folder: Path, **arms: Any) -> Path:
    """A recipe whose arms differ only in the weights that they save."""
    return command_line.write_recipe(
        folder,
        student={
            "model": {"family": "causal-lm", "checkpoint": str(pico_folder)},
            "training": TRAINING,
        },
        arms={"last": {"learn": "labels"}}
        | {name: {"learn": "labels", "training": value} for name, value in arms.items()},
    )


def test_arms_save_averages_and_interpolations(tmp_path: Path, pico_folder: Path) -> None:
    path = write_recipe(tmp_path, pico_folder, average={"ema": 0.5}, half={"interpolate": 0.5})
    run = tmp_path / "run"
    plan = first("plan", path, "--run-dir", run)
    assert plan.code == 0, plan.err
    result = first("distill", path, "--run-dir", run)
    assert result.code == 0, result.err
    saved = {
        name: load_file(run / "students" / name / "model.safetensors")
        for name in ("last", "average", "half")
    }
    start = load_file(pico_folder / "model.safetensors")
    for name, value in start.items():
        expected = value + 0.5 * (saved["last"][name] - value)
        torch.testing.assert_close(saved["half"][name], expected)
    moved = [not torch.equal(saved["last"][name], saved["average"][name]) for name in start]
    assert any(moved)
    reads = {
        name: json.loads((run / "students" / name / "manifest.json").read_text("utf-8"))["reads"]
        for name in saved
    }
    assert reads["average"]["student.training.ema"] == "0.5"
    assert reads["half"]["student.training.interpolate"] == "0.5"
    assert not [key for key in reads["last"] if "ema" in key or "interpolate" in key]
    card = " ".join((run / "students" / "average" / "README.md").read_text("utf-8").split())
    assert "**Weights**: the moving average of the weights (decay 0.5)." in card
    card = (run / "students" / "half" / "README.md").read_text("utf-8")
    assert "**Weights**: the weights at 0.5 of the way from the start." in card
    assert "**Weights**" not in (run / "students" / "last" / "README.md").read_text("utf-8")
    checks = first("plan", path, "--run-dir", run, "--set", "seed=8").out
    assert "saves the" in checks


def test_a_later_key_leaves_finished_arms_up_to_date(tmp_path: Path, pico_folder: Path) -> None:
    path, run = write_recipe(tmp_path, pico_folder), tmp_path / "run"
    assert first("distill", path, "--run-dir", run).code == 0
    more = write_recipe(tmp_path, pico_folder, average={"ema": 0.9})
    assert "distill last" not in command_line.pending(more, "--run-dir", run)


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-0.1", "high"])
@pytest.mark.parametrize("key", ["ema", "interpolate"])
def test_a_share_outside_its_range_is_refused(
    tmp_path: Path, pico_folder: Path, key: str, value: str
) -> None:
    path = write_recipe(tmp_path, pico_folder)
    result = first("plan", path, "--set", f"student.training.{key}={value}")
    result.mistake(f"student.training.{key}", value)


def test_new_weights_are_not_interpolated(tmp_path: Path) -> None:
    path = command_line.write_recipe(
        tmp_path, arms={"a": {"learn": "labels", "training": {"interpolate": 0.5}}}
    )
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("arms.a.training.interpolate", "family 'scratch'", "leave it out")


def test_shards_are_not_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    path = command_line.write_recipe(
        tmp_path,
        student={"model": command_line.MODEL, "training": TRAINING | {"ema": 0.9}},
        arms={"a": {"learn": "labels"}},
    )
    result = first("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("student.training.ema", "no process has the whole weights", "leave it out")
