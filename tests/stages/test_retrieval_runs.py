"""A run whose teacher reads passages that the student does not, and the other way round."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.recipe.load import load_recipe
from firstcli.runtime.console import Console
from firstcli.stages import encoded, inputs
from firstcli.workspace.run import Run
from firstcli.workspace.units import Role
from support.command_line import MODEL, of_files, report, sums, write_recipe, write_rows
from support.command_line import first as command

pytestmark = pytest.mark.skipif(find_spec("bm25s") is None, reason="bm25s is not installed")


def retrieval(folder: Path, reader: str, **options: Any) -> dict[str, Any]:
    write_rows(folder / "data" / "train.jsonl", sums(40, 10))
    write_rows(folder / "data" / "test.jsonl", sums(8, 60))
    passages = [f"Twice {i} is {2 * i}." for i in range(10, 70)]
    (folder / "corpus.txt").write_text("\n\n".join(passages), "utf-8")
    given = {"task": of_files(folder / "data"), "corpus": "corpus.txt", "k": 1, **options}
    return {"name": "retrieval", "options": {**given, "for": reader}}


def recipe(folder: Path, reader: str, **sections: Any) -> Path:
    task = retrieval(folder, reader)
    arms = {"distill": {"recalibrator": {"name": "none"}}}
    options: Any = MODEL["options"]
    small = {**MODEL, "options": {**options, "vocabulary": 270, "context": 256}}
    training = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8}
    return write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        evaluate=[{}],
        arms=arms,
        teacher={"model": small, "finetune": training},
        student={"model": small, "training": training},
        **sections,
    )


@pytest.mark.parametrize(("reader", "longer"), [("teacher", "teacher"), ("student", "student")])
def test_only_the_reader_sees_passages_and_knowledge_fits_the_responses(
    tmp_path: Path, reader: str, longer: Role
) -> None:
    path = recipe(tmp_path, reader)
    result = report(path, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    roles: tuple[Role, ...] = ("teacher", "student")
    rows = {role: inputs.training_rows(run, role, "train") for role in roles}
    questions = {role: inputs.questions(run, role, "retrieval") for role in rows}
    shorter: Role = "student" if longer == "teacher" else "teacher"
    for one, other in zip(rows[longer], rows[shorter], strict=True):
        assert one.id == other.id
        assert len(one.input_ids) > len(other.input_ids)
        assert np.array_equal(one.targets, other.targets)
    for asked, plain in zip(questions[longer], questions[shorter], strict=True):
        assert len(asked.input_ids) > len(plain.input_ids)
        assert asked.candidate_ids == plain.candidate_ids
    tokenizer = run.tokenizers.of(longer)
    texts = [tokenizer.decode(row.input_ids) for row in rows[longer]]
    assert all("Twice" in text for text in texts)


def test_both_read_the_same_tokens(tmp_path: Path) -> None:
    path = recipe(tmp_path, "both")
    run = Run(load_recipe(path), tmp_path / "run", Console(quiet=True))
    roles: tuple[Role, ...] = ("teacher", "student")
    teacher, student = (encoded.training_part(run, role, "train", role) for role in roles)
    assert teacher is student  # encoded once


def test_a_path_is_relative_to_the_recipe_and_a_missing_corpus_is_one_sentence(
    tmp_path: Path,
) -> None:
    path = recipe(tmp_path, "both")
    (tmp_path / "corpus.txt").unlink()
    result = command("plan", path, "--run-dir", tmp_path / "run")
    result.mistake(f"{tmp_path / 'corpus.txt'}: there is no such file")


def test_another_corpus_makes_the_knowledge_stale(tmp_path: Path) -> None:
    path = recipe(tmp_path, "teacher")
    before = Run(load_recipe(path), tmp_path / "run", Console(quiet=True)).part_content("train")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(corpus.read_text("utf-8").replace("Twice", "Two times"), "utf-8")
    after = Run(load_recipe(path), tmp_path / "run", Console(quiet=True)).part_content("train")
    assert before != after


def test_copies_of_samples_with_two_prompts_are_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, "teacher")
    result = command(
        *("plan", path, "--run-dir", tmp_path / "run"),
        *("--set", "arms.distill.augment=true"),
    )
    result.mistake("train.augment: the teacher reads other prompts than the student")


def test_a_mistake_in_an_option_names_its_key(tmp_path: Path) -> None:
    path = recipe(tmp_path, "somebody")
    result = command("plan", path, "--run-dir", tmp_path / "run")
    result.mistake("train.task.options.for: found 'somebody', expected 'both' or 'teacher'")
