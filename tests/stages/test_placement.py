"""A teacher that fits into no memory is spread over memory and disk, and gives the same results."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from firstcli.stages import reading_memory, role_models
from support import command_line
from support.command_line import Result, first

OFFLOADED = {"device_map": "auto", "max_memory": {"cpu": "60KB"}}


def write_recipe(
    folder: Path, teacher: Path, *, finetune: dict[str, Any] | None = None, **options: Any
) -> Path:
    def model(**options: Any) -> dict[str, Any]:
        return {"family": "causal-lm", "checkpoint": str(teacher), "options": options}

    return command_line.write_recipe(
        folder,
        teacher={"model": model(**options), "finetune": finetune},
        student={"model": model(), "training": command_line.TRAINING},
        arms={"distill": {"recalibrator": {"name": "none"}}},
    )


def run(folder: Path, teacher: Path, *command: object, **options: Any) -> Result:
    return first(*command, write_recipe(folder, teacher, **options), "--run-dir", folder / "run")


def test_offloaded_weights_give_the_same_knowledge_and_answers(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leave nothing behind; where a model runs makes no result stale."""
    seen = []
    original = role_models.for_inference

    def for_inference(*args: Any) -> Any:
        model = original(*args)
        seen.append(any(value.is_meta for value in model.parameters()))
        return model

    monkeypatch.setattr(role_models, "for_inference", for_inference)
    found = {}
    for name, options in {"plain": {}, "offloaded": OFFLOADED}.items():
        folder = tmp_path / name
        folder.mkdir()
        for command in (("extract",), ("eval", "--arm", "teacher")):
            result = run(folder, pico_folder, *command, **options)
            assert result.code == 0, result.err
        assert all(seen) if options else not any(seen)
        seen.clear()
        found[name] = command_line.contents(folder / "run", but=["manifest.json"])
        gc.collect()  # hooks and models refer to each other
        assert not list((folder / "run").glob(".offload*"))
    parquet = [name for name in found["plain"] if name.endswith(".parquet")]
    assert any("knowledge" in name for name in parquet) and any("eval" in name for name in parquet)
    for name in parquet:
        assert found["offloaded"][name] == found["plain"][name], name
    plan = run(tmp_path / "offloaded", pico_folder, "plan", "--json").json  # without the options
    fresh = {unit["unit"] for unit in plan["units"] if unit["up_to_date"]}
    assert fresh == {"extract train", "eval known-world/teacher", "eval shifted/teacher"}


def test_training_cannot_be_spread(tmp_path: Path, pico_folder: Path) -> None:
    options: dict[str, Any] = {"finetune": command_line.TRAINING, "device_map": "auto"}
    refused = run(tmp_path, pico_folder, "plan", **options)
    refused.mistake("teacher.model.options.device_map", "trainer.fsdp")


def test_a_map_to_the_disk_alone_spreads_the_model_too(tmp_path: Path, pico_folder: Path) -> None:
    options: dict[str, Any] = {"finetune": command_line.TRAINING, "device_map": {"": "disk"}}
    refused = run(tmp_path, pico_folder, "plan", **options)
    refused.mistake("teacher.model.options.device_map", "trainer.fsdp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says that there is no GPU")
def test_quantising_needs_a_gpu(tmp_path: Path, pico_folder: Path) -> None:
    refused = run(tmp_path, pico_folder, "plan", quantization={"load_in": "nf4"})
    refused.mistake("model.options.quantization: load_in: nf4 needs a GPU")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"device_map": "best"}, ("teacher.model.options.device_map",)),
        ({"max_memory": {"cpu": "1GB"}}, ("no effect without device_map",)),
        ({"device_map": "auto", "max_memory": {"cpu": "1"}}, ("max_memory", "'1'", "20GB")),
        ({"device_map": "auto", "device": "cpu"}, ("device has no effect beside device_map",)),
        (
            {"device_map": {"": 0}},
            ("teacher.model.options", "the whole model on one device; set device: cuda:0 instead"),
        ),
        ({"device_map": {"model": "cpu", "lm_head": "cpu"}}, ("set device: cpu instead",)),
        ({"device_map": {}}, ("device_map", "names no part")),
        ({"quantization": {"load_in": "int4"}}, ("quantization.load_in", "'nf4'")),
        ({"quantization": {"load_in": "int8", "double_quant": True}}, ("no effect with load_in",)),
    ],
)
def test_mistakes_in_the_options(
    tmp_path: Path, pico_folder: Path, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused = run(tmp_path, pico_folder, "plan", **options)
    assert refused.code == 2 and "Traceback" not in refused.err
    for part in parts:
        assert part in refused.err


def test_the_number_of_a_gpu_survives_json() -> None:
    from firstcli.families.causal_lm import CausalLMOptions

    options = CausalLMOptions.model_validate(
        {"device_map": "auto", "max_memory": {0: "20GB", "cpu": "60GB"}}
    )
    again = CausalLMOptions.model_validate(json.loads(options.model_dump_json()))
    assert again == options and again.max_memory == {0: "20GB", "cpu": "60GB"}


def test_plan_states_the_memory_and_refuses_weights_that_do_not_fit(
    tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_memory, "memory", SimpleNamespace(capacity=lambda _: 100_000))
    refused = run(tmp_path, pico_folder, "plan")
    error, *_ = (error for error in refused.errors if "error: teacher (family" in error)
    for part in (
        "has 100 kB",
        "teacher.model.options.dtype: bfloat16",
        "teacher.model.options.device_map: auto",
    ):
        assert refused.code == 2 and part in error
    assert "quantization" not in error  # it needs a GPU
    spread = run(tmp_path, pico_folder, "plan", **OFFLOADED)
    assert not [error for error in spread.errors if "error: teacher" in error]
    monkeypatch.undo()
    assert "of memory" in run(tmp_path, pico_folder, "plan").out


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ({"": "cpu", "model.layer": "disk"}, "the model has no part named 'model.layer'"),
        ({"model": 99, "lm_head": "cpu"}, "'model' is to be on GPU 99, but this machine has"),
        ({"model": "cpu", "lm_head": "cpuu"}, "'lm_head': 'cpuu' is no device"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_in_the_plan(
    tmp_path: Path, pico_folder: Path, places: dict[str, int | str], sentence: str
) -> None:
    refused = run(tmp_path, pico_folder, "plan", device_map=places)
    assert refused.code == 2
    assert all(f"model.options.device_map: {sentence}" in error for error in refused.errors)
