"""Batches that do not fit into memory are halved; this is reported and changes no result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from firstcli.knowledge.store import Knowledge
from firstcli.models import memory, readout
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

ERRORS: dict[str, Callable[[], Exception]] = {
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."),
    "python": MemoryError,
}


class Memory:
    """Simulates a device that only fits batches of `most` samples."""

    def __init__(self, patch: pytest.MonkeyPatch, most: int, error: str, after: int = 0) -> None:
        self.refused = 0
        self.left = after  # this many calls fit, whatever their size
        self.accepted: list[int] = []
        real = readout.Reader.__call__

        def call(reader: readout.Reader, input_ids: torch.Tensor, *args: Any) -> torch.Tensor:
            self.left -= 1
            if len(input_ids) > most and self.left < 0:
                self.refused += 1
                raise ERRORS[error]()
            self.accepted.append(len(input_ids))
            return real(reader, input_ids, *args)

        patch.setattr(readout.Reader, "__call__", call)


def manifest(run: Path, unit: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / unit).read_text("utf-8"))
    return found


@pytest.mark.parametrize("error", ERRORS)
def test_extraction_halves_batches_and_reports_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    run = finished.copied_to(tmp_path)
    with monkeypatch.context() as patch:
        memory = Memory(patch, 20, error)
        result = first("extract", finished.recipe, "--run-dir", run, "--force")
    assert result.code == 0, result.err
    assert "extract train: out of memory on a batch of 66 samples" in result.err
    # Training rows twice: for the k that are stored, and for the concentration of more ranks.
    assert max(memory.accepted) <= 20 and sum(memory.accepted) == 2 * 66 + 30
    facts = manifest(run, "knowledge/train/manifest.json")["facts"]
    assert facts["batches_halved"] >= 3
    assert_close(run, finished.run)


def assert_close(run: Path, undisturbed: Path) -> None:
    """Compare the training part's knowledge, except for rounding that depends on batches."""
    found, expected = (Knowledge(folder / "knowledge" / "train") for folder in (run, undisturbed))
    assert (found._keys == expected._keys).all()
    records = [
        np.concatenate([np.frombuffer(one._spool[i], one._record) for i in range(len(one))])
        for one in (found, expected)
    ]
    ours, theirs = (np.exp(one["log_probs"]) for one in records)
    assert np.abs(ours - theirs).max() < 1e-3


def test_batches_of_a_size_that_failed_are_not_tried_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.copied_to(tmp_path)
    monkeypatch.setattr("firstcli.knowledge.store.SHARD_POSITIONS", 32)  # batches of 16 samples
    with monkeypatch.context() as patch:
        memory = Memory(patch, 8, "cpu")
        result = first("extract", finished.recipe, "--run-dir", run, "--force")
    assert result.code == 0, result.err
    assert memory.refused == 2  # one in each part
    assert result.err.count("out of memory") == 2
    assert manifest(run, "knowledge/train/manifest.json")["facts"]["batches_halved"] >= 4


def test_evaluation_halves_batches(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstcli.metrics.records import EvalRecords

    run = finished.copied_to(tmp_path)
    command = ("eval", finished.recipe, "--run-dir", run, "--arm", "first", "--force")
    with monkeypatch.context() as patch:
        memory = Memory(patch, 5, "cuda")
        result = first(*command)
    assert result.code == 0, result.err
    assert "eval known-world/first: out of memory on a batch of 24 samples" in result.err
    assert sum(memory.accepted) == 48
    found, expected = (
        EvalRecords.load(folder / "eval" / "shifted" / "first.parquet")
        for folder in (run, finished.run)
    )
    assert found.ids == expected.ids
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("stage", ["extract", "eval"])
def test_a_sample_too_large_alone_is_named(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    run = finished.copied_to(tmp_path)
    with monkeypatch.context() as patch:
        Memory(patch, 0, "cpu")
        result = first(stage, finished.recipe, "--run-dir", run, "--force")
    result.mistake(stage, "out of memory on sample '", "tokens alone", "free memory")


def test_training_resumes_from_its_last_checkpoint_with_half_a_micro_batch(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in the second of three epochs; the steps stay the same."""
    from safetensors.torch import load_file

    run, whole = finished.copied_to(tmp_path), tmp_path / "whole"
    command_line.copy_run(run, whole)
    options = ("--arm", "first", "--set", "student.training.epochs=3")
    command = ("distill", finished.recipe, *options, "--run-dir")
    assert first(*command, whole).code == 0
    with monkeypatch.context() as patch:
        memory = Memory(patch, 4, "cpu", after=7)
        result = first(*command, run)
    assert result.code == 0, result.err
    assert memory.refused == 2  # 16, then 8 samples at a time
    for micro, half in ((16, 8), (8, 4)):
        line = f"out of memory with micro_batch_size {micro}; resuming with micro_batch_size {half}"
        assert f"distilling first: {line}" in result.err
    assert result.out.count("distilling first: resuming after step 5") == 2
    found, expected = (
        load_file(folder / "students" / "first" / "model.safetensors") for folder in (run, whole)
    )
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=2e-5), name
    log, expected_log = (
        (folder / "students" / "first" / "training_log.jsonl").read_text("utf-8").splitlines()
        for folder in (run, whole)
    )
    losses = [json.loads(line)["loss"] for line in log]
    expected_losses = [json.loads(line)["loss"] for line in expected_log]
    assert losses == pytest.approx(expected_losses, rel=1e-2, abs=1e-6)


def test_plan_compares_the_need_with_the_memory_of_the_device(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "capacity", lambda device: 10_000)
    result = first("plan", finished.recipe, "--run-dir", tmp_path / "run")
    assert result.code == 2 and "Traceback" not in result.err
    training, *reading = result.errors
    for part in ("optimizer's state need", "but cpu has 10", "smaller batches do not help"):
        assert part in training
    assert len(reading) == 2  # once for each role
    assert all("its weights need" in line and "but cpu has 10" in line for line in reading)
    assert "no key of the recipe makes it fit" in result.err


def test_a_model_that_does_not_fit_at_any_batch_size_is_loaded_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstcli.stages import role_models

    run, loaded, real = finished.copied_to(tmp_path), list[str](), role_models.starting_model
    empty = torch.empty

    def refuse_large(*shape: Any, dtype: Any = None, **options: Any) -> torch.Tensor:
        if dtype == torch.uint8 and shape[0] > 50_000:
            raise ERRORS["cuda"]()
        return empty(*shape, dtype=dtype, **options)

    def load(*args: Any) -> Any:
        loaded.append("model")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", refuse_large)
        patch.setattr(role_models, "starting_model", load)
        result = first("distill", finished.recipe, "--run-dir", run, "--arm", "first", "--force")
    result.mistake("distill first: out of memory: weights, gradients and", "need", "cpu has")
    assert loaded == ["model"]


def test_training_that_does_not_fit_at_all_is_reported(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.copied_to(tmp_path)
    with monkeypatch.context() as patch:
        Memory(patch, 0, "cpu")
        result = first("distill", finished.recipe, "--run-dir", run, "--force")
    result.mistake("distill fine-tune", "out of memory with micro_batch_size 1", "free memory")


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.copied_to(tmp_path)
    monkeypatch.setitem(ERRORS, "bug", lambda: RuntimeError("mat1 and mat2 do not fit"))
    with monkeypatch.context() as patch:
        Memory(patch, 0, "bug")
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            first("extract", finished.recipe, "--run-dir", run, "--force")


LITTLE_MEMORY = """
import resource, sys
from firstcli import cli
from firstcli.models import memory, readout

real = readout.Reader.__call__
MORE = 12 << 20  # not enough for the whole batch, but for a part of it


def call(reader, *args):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE, -1))
    try:
        return real(reader, *args)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))


readout.Reader.__call__ = call
sys.exit(cli.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    """The system refuses memory to a model that is large enough to need it."""
    options: Any = command_line.MODEL["options"]
    large = {"family": "scratch", "options": {**options, "hidden_size": 512}}
    path = command_line.write_recipe(tmp_path, teacher={"model": large}, arms={"distill": {}})
    run, whole = tmp_path / "run", tmp_path / "whole"
    result = command_line.finish(
        command_line.python(LITTLE_MEMORY, "extract", path, "--run-dir", run)
    )
    assert result.code == 0, result.err
    assert "out of memory on a batch of 66 samples" in result.err
    assert manifest(run, "knowledge/train/manifest.json")["facts"]["batches_halved"] >= 1
    assert first("extract", path, "--run-dir", whole).code == 0
    assert_close(run, whole)


def test_one_of_several_processes_names_the_micro_batch_size_to_set(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot halve its share alone, because the other processes wait for it."""
    from firstcli.stages import train_model

    run = finished.copied_to(tmp_path)
    several = SimpleNamespace(count=lambda: 2, is_first=lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(train_model, "distributed", several)
        Memory(patch, 8, "cuda")
        result = first("distill", finished.recipe, "--run-dir", run, "--force")
    result.mistake("out of memory with micro_batch_size 16; set micro_batch_size: 8")
