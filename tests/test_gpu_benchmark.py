"""`benchmarks/gpu.py`, on a CPU with a tiny shape: what it measures, and what it writes where."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from support.paths import ROOT

DOCUMENT = "# Performance\n\n## On one GPU\n\nNo figures yet.\n\n## Chunk size\n\nA table.\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def tiny(gpu: Any, out: Path) -> int:
    code: int = gpu.main(
        ["--device", "cpu", "--shape", "tiny", "--repeats", "1", "--out", str(out)]
    )
    return code


def test_the_table_replaces_the_section(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "performance.md"
    path.write_text(DOCUMENT)
    assert tiny(gpu, path) == 0
    text = path.read_text()
    before, after = text.split("## On one GPU\n\n")
    body, rest = after.split("\n\n## ")
    assert before == "# Performance\n\n" and rest == "Chunk size\n\nA table.\n"
    assert body.startswith("the CPU, torch ") and body in capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    assert [cells[0] for cells in lines[2:]] == [
        *("extraction, tiny, questions", "time of a step, tiny, 2 questions"),
        *("peak memory of a step, tiny, 2 questions", "extraction, tiny, instructions"),
        *("time of a step, tiny, 2 instructions", "peak memory of a step, tiny, 2 instructions"),
    ]
    assert [cells[1] for cells in lines[2:5]] == [
        *("bare forward pass", "hard labels, Trainer", "the estimate of `first plan`"),
    ]
    assert [cells[2] for cells in lines[2:5]] == ["≥ 0.9", "≤ 1.02", "≤ 1.25"]


def test_what_does_not_fit_is_left_out_with_its_need(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.memory, "capacity", lambda _: 1000)
    path = tmp_path / "new.md"
    assert tiny(gpu, path) == 0
    text = path.read_text()
    assert text.startswith("## On one GPU\n\n") and "time of a step" not in text
    assert "Left out: a step of tiny with questions does not fit: it needs " in text
    assert "extraction, tiny, instructions" in text


def test_the_estimate_is_that_of_the_weights_dtype(gpu: Any) -> None:
    place = gpu.Place(torch.device("cpu"), "bfloat16")
    setting = gpu.steps.Setting(gpu.SCALES["tiny"].model, gpu.QUESTION, 2, place=place)
    model = setting.make()
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    estimate = gpu.estimated(setting)
    assert estimate.gradients == 2 * sum(value.numel() for value in model.parameters())
    assert estimate.total > 4 * estimate.gradients  # weights, two moments, activations


def test_without_a_gpu_it_says_so(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "none.md")]) == 2
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == f"{gpu.NO_GPU}\n"
