"""A teacher and a student whose tokenizers differ in their end-of-sequence token only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from support import command_line
from support.command_line import first

PAD, EOS = 0, 1
"""The byte tokenizer's special tokens `<pad>` and `</s>`; here both end a response."""


@pytest.fixture
def ending(tmp_path: Path, pico_folder: Path) -> Callable[..., Path]:
    """Copy the pico model, with a given EOS, and with the weights of two tokens exchanged."""

    def make(name: str, eos: str, *, exchanged: bool = False) -> Path:
        folder = tmp_path / name
        shutil.copytree(pico_folder, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.eos_token = eos
        tokenizer.save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder)
        model.config.eos_token_id = tokenizer.eos_token_id
        if exchanged:
            with torch.no_grad():
                layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
                for layer in layers:
                    layer.weight[[PAD, EOS]] = layer.weight[[EOS, PAD]].clone()
        model.save_pretrained(folder)
        return folder

    return make


def recipe(folder: Path, teacher: Path, student: Path, **sections: Any) -> Path:
    def model(checkpoint: Path) -> dict[str, Any]:
        return {"model": {"family": "causal-lm", "checkpoint": str(checkpoint)}}

    # Prompts and responses are short, because the pico model's context is.
    world: dict[str, Any] = command_line.WORLD
    task = {**world, "options": {**world["options"], "train": 40}}
    return command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=[{"task": task}],
        teacher=model(teacher),
        student={**model(student), "training": command_line.TRAINING, **sections},
        arms={"distill": {}},
    )


def distilled(path: Path, run: Path) -> dict[str, Any]:
    result = first("distill", path, "--run-dir", run, "--json")
    assert result.code == 0, result.err
    manifest = json.loads((run / "students/distill/manifest.json").read_text("utf-8"))
    facts: dict[str, Any] = manifest["facts"]
    return facts


def test_the_teacher_s_end_is_learned_as_the_student_s(
    tmp_path: Path, ending: Callable[..., Path]
) -> None:
    """As if the two names had been exchanged in the teacher: a permutation changes no divergence.

    If the teacher's probability of its end stayed under its own id, the student's end would have
    the teacher's probability of another token, and the loss would differ.
    """
    student = ending("student", "</s>")
    path = recipe(tmp_path, ending("instruct", "<pad>"), student)
    different = distilled(path, tmp_path / "different")
    renamed = recipe(tmp_path, ending("renamed", "</s>", exchanged=True), student)
    same = distilled(renamed, tmp_path / "same")
    assert different["loss"] == pytest.approx(same["loss"], abs=1e-5)
    assert different["P"] == pytest.approx(same["P"], abs=1e-4)
    assert different["Q"] == pytest.approx(same["Q"], abs=1e-5)
    plain = distilled(recipe(tmp_path, ending("plain", "</s>"), student), tmp_path / "plain")
    assert abs(different["loss"] - plain["loss"]) > 1e-3  # the names do matter


def test_the_plan_says_how_the_ends_are_matched(
    tmp_path: Path, ending: Callable[..., Path]
) -> None:
    path = recipe(tmp_path, ending("instruct", "<pad>"), ending("student", "</s>"))
    result = first("plan", path)
    assert result.code == 0
    [line] = [line for line in result.err.splitlines() if "end responses" in line]
    assert "'<pad>' and '</s>'" in line and "student.eos: teacher" in line


def test_the_student_can_end_like_the_teacher(tmp_path: Path, ending: Callable[..., Path]) -> None:
    instruct, student = ending("instruct", "<pad>"), ending("student", "</s>")
    path = recipe(tmp_path, instruct, student, eos="teacher")
    distilled(path, tmp_path / "run")
    folder = tmp_path / "run" / "students" / "distill"
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<pad>"
    assert AutoConfig.from_pretrained(folder).eos_token_id == PAD
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == PAD
    assert not command_line.pending(path, "--run-dir", tmp_path / "run") & {"distill distill"}
    own = ("--run-dir", tmp_path / "run", "--set", "student.eos=student")
    pending = command_line.pending(path, *own)
    assert "distill distill" in pending and "extract train" not in pending


def test_the_first_difference_is_shown(tmp_path: Path, ending: Callable[..., Path]) -> None:
    """Here the student's tokenizer reads another mark at the end of the question."""
    other = ending("student", "</s>")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["normalizer"] = {
        "type": "Replace",
        "pattern": {"String": "?"},
        "content": "!",
    }
    file.write_text(json.dumps(content), "utf-8")
    path = recipe(tmp_path, ending("instruct", "<pad>"), other)
    message = first("plan", path).mistake("differently: token ", "is the first that differs")
    assert "'?'" in message and "'!'" in message and len(message) < 300


@pytest.mark.parametrize(
    ("eos", "choice"), [(None, "student.eos: teacher"), ("new", "tokens 0 to")]
)
def test_ends_that_cannot_be_matched(
    tmp_path: Path, ending: Callable[..., Path], eos: str | None, choice: str
) -> None:
    student, teacher = ending("student", "</s>"), ending("teacher", "</s>")
    changed = student if eos is None else teacher
    tokenizer = AutoTokenizer.from_pretrained(changed)
    if eos is None:
        tokenizer.eos_token = None
    else:
        tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer.save_pretrained(changed)
    first("plan", recipe(tmp_path, teacher, student)).mistake(
        "different end-of-sequence tokens", choice
    )
    if eos is not None:
        first("plan", recipe(tmp_path, teacher, student, eos="teacher")).mistake(
            "student.eos: the teacher's end-of-sequence token is '<|end|>' (330)"
        )


def test_the_teacher_s_end_needs_a_teacher(tmp_path: Path) -> None:
    path = command_line.write_recipe(
        tmp_path,
        teacher=None,
        student={"model": command_line.MODEL, "eos": "teacher"},
        arms={"fine-tune": {"learn": "labels"}},
    )
    first("plan", path).mistake("student.eos", "the recipe has no teacher")


def test_another_end_of_the_teacher_makes_students_stale_that_end_like_it(
    tmp_path: Path, ending: Callable[..., Path]
) -> None:
    student, run = ending("student", "</s>"), ("--run-dir", tmp_path / "run")
    teachers = ending("pad", "<pad>"), ending("same", "</s>")

    def path(teacher: Path) -> Path:
        written = recipe(tmp_path, teacher, student, eos="teacher")
        content = yaml.safe_load(written.read_text("utf-8")) | {
            "arms": {"fine-tune": {"learn": "labels"}}
        }
        written.write_text(yaml.safe_dump(content), "utf-8")
        return written

    assert first("distill", path(teachers[0]), *run).code == 0
    assert "distill fine-tune" not in command_line.pending(path(teachers[0]), *run)
    assert "distill fine-tune" in command_line.pending(path(teachers[1]), *run)
