"""Students are saved in the dtype of their checkpoint, or in the one that the recipe states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from support import command_line
from support.checkpoints import edit
from support.command_line import first


@pytest.fixture
def checkpoint(tmp_path: Path, pico_folder: Path) -> Path:
    """The pico Llama with bfloat16 weights."""
    folder = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico_folder).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, checkpoint: Path) -> Path:
    return command_line.write_recipe(
        folder,
        student={
            "model": {"family": "causal-lm", "checkpoint": str(checkpoint)},
            "training": command_line.TRAINING,
        },
        arms={"labels": {"learn": "labels"}},
    )


def stored(run: Path) -> set[torch.dtype]:
    weights = load_file(run / "students" / "labels" / "model.safetensors")
    return {value.dtype for value in weights.values()}


def test_the_checkpoints_dtype_by_default(tmp_path: Path, checkpoint: Path) -> None:
    """Only rounding enters the fingerprint; the log is that of float32 training either way."""
    recipe, run = write_recipe(tmp_path, checkpoint), tmp_path / "run"
    command = ("distill", recipe, "--run-dir", run)
    result = first(*command)
    assert result.code == 0, result.err
    assert stored(run) == {torch.bfloat16}
    folder = run / "students" / "labels"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    log = (folder / "training_log.jsonl").read_bytes()
    read = json.loads((folder / "manifest.json").read_text())["reads"]
    assert read["student.training.save_dtype"] == "bfloat16"
    whole = ("--set", "student.training.save_dtype=float32")
    plan = first("plan", recipe, "--run-dir", run, *whole, "--json").json
    [unit] = [unit for unit in plan["units"] if unit["unit"] == "distill labels"]
    assert "save_dtype" in unit["reason"]
    assert first(*command, *whole).code == 0
    assert stored(run) == {torch.float32}
    assert (folder / "training_log.jsonl").read_bytes() == log
    reads = json.loads((folder / "manifest.json").read_text())["reads"]
    assert not [name for name in reads if "save_dtype" in name]  # as in earlier versions


@pytest.mark.parametrize("states_dtype", [False, True])
def test_a_float32_checkpoint_is_not_rounded(
    tmp_path: Path, pico_folder: Path, states_dtype: bool
) -> None:
    """Without a word in the configuration, the stored weights tell."""
    folder = tmp_path / "copy"
    AutoModelForCausalLM.from_pretrained(pico_folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pico_folder).save_pretrained(folder)
    if not states_dtype:
        edit(folder, dtype=None)
    result = first("distill", write_recipe(tmp_path, folder), "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    assert stored(tmp_path / "run") == {torch.float32}


def test_one_arm_may_state_its_own(tmp_path: Path, checkpoint: Path) -> None:
    recipe, run = write_recipe(tmp_path, checkpoint), tmp_path / "run"
    own = ("--set", "arms.labels.training.save_dtype=float16")
    assert first("distill", recipe, "--run-dir", run, *own).code == 0
    assert stored(run) == {torch.float16}


def test_disk_counts_the_saved_width(tmp_path: Path, checkpoint: Path) -> None:
    from firstcli.recipe.load import load_recipe
    from firstcli.runtime.console import Console
    from firstcli.stages.distill import DISTILL
    from firstcli.workspace.run import Run

    sizes = []
    for dtype in ("float32", "bfloat16"):
        recipe = load_recipe(
            write_recipe(tmp_path, checkpoint), [f"student.training.save_dtype={dtype}"]
        )
        run = Run(recipe, tmp_path / "run", Console(quiet=True))
        [unit] = DISTILL.units(recipe, run.folder)
        sizes.append(DISTILL.disk(run, unit))
    assert sizes[0] == 2 * sizes[1] > 0
