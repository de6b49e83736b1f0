"""What the plan says about memory: the estimate in words, and which keys make a training fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firstcli.models import memory
from firstcli.stages import training_memory
from firstcli.training import memory_estimate
from support.command_line import first, write_recipe

SIZES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def in_bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * SIZES[unit]


def plan(tmp_path: Path, *sets: str) -> str:
    """Return the estimate of the teacher's training in words."""
    path = write_recipe(tmp_path)
    options = [f"--set={each}" for each in sets]
    result = first("plan", path, "--run-dir", tmp_path / "run", "--json", *options)
    assert result.code == 0, result.err
    units = {unit["unit"]: unit["estimate"] for unit in result.json["units"]}
    return str(units["finetune"])


def total_of(estimate: str) -> float:
    match = re.search(r"([\d.e+]+ \w?B) of memory", estimate)
    assert match
    return in_bytes(match[1])


def test_the_plan_states_the_parts_and_the_advice_their_sum_with_a_key_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(tmp_path)
    parts = re.findall(r"(?:weights|gradients|optimizer|activations) ([\d.e+]+ \w?B)", whole)
    assert len(parts) == 4
    assert sum(map(in_bytes, parts)) == pytest.approx(total_of(whole), rel=0.01)
    smaller = plan(tmp_path, "teacher.finetune.micro_batch_size=1")
    room = int(total_of(smaller) * 1.02)
    assert room < total_of(whole)
    monkeypatch.setattr(training_memory, "available", lambda device: room)
    result = first("plan", write_recipe(tmp_path), "--run-dir", tmp_path / "other")
    assert result.code == 0, result.err  # training halves micro-batches, so it may begin
    said = " ".join(result.err.split())
    assert "the teacher's training needs" in said
    stated = re.search(r"teacher.finetune.micro_batch_size: 1 needs ([\d.e+]+ \w?B)", said)
    assert stated and in_bytes(stated[1]) == total_of(smaller)


def test_weights_that_do_not_fit_are_refused_with_the_keys_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's weights, gradients and AdamW take 125 kB in float32, half in bfloat16."""
    monkeypatch.setattr(training_memory, "_ESTIMATED", {})
    monkeypatch.setattr(memory_estimate, "peak_of_a_pass", lambda *_: 0)
    monkeypatch.setattr(memory, "capacity", lambda device: 110_000)
    result = first("plan", write_recipe(tmp_path), "--run-dir", tmp_path / "run")
    assert result.code == 2  # one mistake for each role
    said = " ".join(result.err.split())
    assert "need 125 kB, but cpu has 110 kB; smaller batches do not help: what would fit: " in said
    assert re.search(r"teacher\.finetune\.lora: \{rank: 16\} needs 107 kB", said)
    assert re.search(r"teacher\.finetune\.dtype: bfloat16 \(loses small updates\) needs 62", said)


def test_the_advice_names_the_section_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that an arm states is changed there; the others in the student's section."""
    monkeypatch.setattr(training_memory, "_ESTIMATED", {})
    monkeypatch.setattr(memory_estimate, "peak_of_a_pass", lambda *_: 0)
    monkeypatch.setattr(memory, "capacity", lambda device: 110_000)
    own = ("--set", "arms.first.training={dtype: float32}")
    result = first("plan", write_recipe(tmp_path), "--run-dir", tmp_path / "run", *own)
    assert result.code == 2
    said = " ".join(result.err.split())
    assert "arms.first.training.dtype: bfloat16" in said
    assert "student.training.lora: {rank: 16}" in said
