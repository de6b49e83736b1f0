"""Weights that are not whole or not causal are reported by `plan`, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, PreTrainedModel

from checkpoints.test_causality import build
from firstcli.api import ModelRef
from firstcli.models import inference
from firstcli.stages import role_models, weights
from support import command_line
from support.checkpoints import edit
from support.command_line import Result, first

pytest_plugins = ["support.finished_runs"]

Change = Callable[[Path], object]


@pytest.fixture
def student(tmp_path: Path, pico_folder: Path) -> Path:
    """A sound checkpoint that a test may change."""
    return Path(shutil.copytree(pico_folder, tmp_path / "student"))


def write_recipe(folder: Path, teacher: Path, student: Path, **teacher_section: Any) -> Path:
    def model(checkpoint: Path) -> dict[str, Any]:
        return {"family": "causal-lm", "checkpoint": str(checkpoint)}

    return command_line.write_recipe(
        folder,
        teacher={"model": model(teacher), **teacher_section},
        student={"model": model(student), "training": command_line.TRAINING},
        arms={"distill": {"recalibrator": {"name": "none"}}},
    )


def plan(folder: Path, teacher: Path, student: Path, *args: object, **section: Any) -> Result:
    recipe = write_recipe(folder, teacher, student, **section)
    return first("plan", recipe, "--run-dir", folder / "run", *args)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda f: edit(f, num_hidden_layers=1), ("no place", "'model.layers.1.")),
        (lambda f: edit(f, attention_bias=True), ("are missing", "k_proj.bias")),
        (lambda f: edit(f, intermediate_size=56), ("different shape", "(32, 48)")),
        (
            lambda f: edit(f, is_causal=False),
            ("student (family causal-lm, checkpoint ", "LlamaForCausalLM", "it is not causal"),
        ),
        (
            lambda f: edit(f, quantization_config={"quant_method": "fp_quant"}),
            ("its weights are quantised (fp_quant)",),
        ),
        (lambda f: (f / "adapter_config.json").write_text("{}"), ("adapter", "merge")),
        (
            lambda f: (f / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\n"
            ),
            ("git lfs pull",),
        ),
    ],
)
def test_plan_names_a_faulty_student(
    tmp_path: Path, pico_folder: Path, student: Path, change: Change, parts: tuple[str, ...]
) -> None:
    """One message although several units need the student."""
    change(student)
    plan(tmp_path, pico_folder, student).mistake(str(student), *parts)
    plan(tmp_path, student, pico_folder).mistake(str(student), *parts[1:])


def test_quantised_weights_are_not_trained(
    tmp_path: Path, pico_folder: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with the library, which is not installed here."""
    monkeypatch.setattr("firstcli.stages.train_model.untrainable_method", lambda _: "gptq")
    result = plan(tmp_path, pico_folder, student)
    result.mistake("student", "its weights are quantised (gptq)", "cannot be trained")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roles whose starting weights are loaded, in order."""
    roles: list[str] = []
    load = role_models.starting_model

    def recorded(run: Any, role: Any, *args: Any) -> PreTrainedModel:
        roles.append(role)
        return load(run, role, *args)

    monkeypatch.setattr(role_models, "starting_model", recorded)
    return roles


def test_weights_are_checked_once_per_content(
    tmp_path: Path, pico_folder: Path, student: Path, loaded: list[str]
) -> None:
    (tmp_path / "run").mkdir()
    for _ in range(2):
        assert plan(tmp_path, pico_folder, student).code == 0
        assert sorted(loaded) == ["student", "teacher"]
    changed = {
        name: weight + 1 for name, weight in load_file(student / "model.safetensors").items()
    }
    save_file(changed, student / "model.safetensors", metadata={"format": "pt"})
    assert plan(tmp_path, pico_folder, student).code == 0
    assert loaded[2:] == ["student"]


def test_weights_that_do_not_fit_into_memory_are_not_loaded(
    tmp_path: Path,
    pico_folder: Path,
    student: Path,
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    result = plan(tmp_path, pico_folder, student)
    assert result.code == 0 and not loaded
    assert "checked when they are loaded" in result.out


def test_weights_that_would_be_downloaded_are_not_at_hand(tmp_path: Path) -> None:
    assert weights.are_at_hand(ModelRef(str(tmp_path))) and weights.are_at_hand(ModelRef(None))
    assert not weights.are_at_hand(ModelRef("nobody/nothing-of-this-name"))


def test_weights_in_the_hub_cache_are_at_hand(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shutil.copy(pico_folder / "config.json", tmp_path)
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_, **__: str(config))
    ref = ModelRef("someone/model", "v1")
    assert not weights.are_at_hand(ref)
    shutil.copy(pico_folder / "model.safetensors", tmp_path)
    assert weights.are_at_hand(ref)


def test_weights_that_were_not_at_hand_are_tried_out_before_the_first_batch(
    tmp_path: Path,
    pico_folder: Path,
    student: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: list[str],
) -> None:
    edit(student, is_causal=False)
    monkeypatch.setattr(weights, "are_at_hand", lambda _: False)
    recipe = write_recipe(tmp_path, pico_folder, student)
    result = first("distill", recipe, "--run-dir", tmp_path / "run")
    result.mistake("distill distill: student (", "it is not causal")
    assert not (tmp_path / "run" / "students" / "distill").exists()
    recipe = write_recipe(tmp_path, student, pico_folder)
    result = first("extract", recipe, "--run-dir", tmp_path / "other")
    result.mistake("extract train: teacher (", "it is not causal")
    assert work


def test_a_model_that_needs_a_gpu_is_not_blamed(
    tmp_path: Path, pico_folder: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> str:
        raise RuntimeError("no kernel for the CPU")

    monkeypatch.setattr(inference, "decoder_fault", fails)
    result = plan(tmp_path, pico_folder, student)
    assert result.code == 0
    assert "does not run on the CPU (no kernel for the CPU)" in result.out


def test_folders_that_are_read_back_are_whole(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checksums find later damage; this folder was wrong when it was saved."""
    save = PreTrainedModel.save_pretrained

    def saved(model: PreTrainedModel, folder: Path, **kwargs: Any) -> None:
        save(model, folder, **kwargs)
        edit(Path(folder), num_hidden_layers=1)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", saved)
    recipe, run = write_recipe(tmp_path, pico_folder, pico_folder), tmp_path / "run"
    message = first("eval", recipe, "--run-dir", run).mistake("no place in the model")
    assert f"checkpoint {run / 'students' / 'distill'}: " in message
    recipe = write_recipe(tmp_path, pico_folder, pico_folder, finetune=command_line.TRAINING)
    message = first("extract", recipe, "--run-dir", run).mistake("no place in the model")
    assert f"checkpoint {run / 'teacher'}: " in message


def test_plan_names_a_model_that_cannot_read_packed_batches(
    tmp_path: Path, pico_folder: Path
) -> None:
    """A state-space model carries its state from one sequence into the next."""
    mamba = tmp_path / "mamba"
    shutil.copytree(pico_folder, mamba)
    build(
        MambaConfig(vocab_size=330, hidden_size=16, state_size=4, num_hidden_layers=1)
    ).save_pretrained(mamba)
    assert plan(tmp_path, mamba, mamba).code == 0
    packed = ("--set", "student.training.batching=packed")
    parts = ("MambaForCausalLM cannot read packed batches", "set it to padded")
    plan(tmp_path, pico_folder, mamba, *packed).mistake("student.training.batching: ", *parts)
    plan(tmp_path, mamba, pico_folder, "--set", "knowledge.batching=packed").mistake(
        "knowledge.batching: ", *parts
    )
    override = ("--set", "arms.distill.training.batching=packed")
    plan(tmp_path, pico_folder, mamba, *override).mistake(
        "arms.distill.training.batching: ", *parts
    )
    assert plan(tmp_path, mamba, pico_folder, *packed).code == 0
