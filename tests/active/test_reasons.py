"""Whether a student is right for the right reasons, against explanations that are made wrong."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from firstcli.active.reading import Said
from firstcli.active.reasons import corrected, right_for_wrong_reasons
from firstcli.api import Annotation
from firstcli.plugins import calls
from firstcli.tasks.known_steps import KnownSteps, KnownStepsOptions
from firstcli.tasks.known_world import KnownWorldOptions
from support.command_line import MODEL, TRAINING, first, write_recipe

TASK = KnownSteps(KnownStepsOptions(train=8, pool=8, test=8, shifted=8))
SMALL: Any = MODEL["options"]
QUESTIONS = list(islice(TASK.load("pool").samples, 5))


def words(number: int, *, right: bool, steps: tuple[str, ...]) -> Said:
    question = QUESTIONS[number]
    answer = TASK.true_answer(question)
    return Said(str(question.id), "", steps, answer if right else str((int(answer) + 1) % 10))


def test_right_answers_after_a_wrong_step_are_counted() -> None:
    chains = [TASK.true_steps(question) for question in QUESTIONS]
    said = {
        each.id: each
        for each in (
            words(0, right=True, steps=(*chains[0][:-1], "1 plus 1 is 7.")),  # the only one
            words(1, right=True, steps=chains[1]),
            words(2, right=True, steps=chains[2][:-1]),  # incomplete, but nothing is wrong
            words(3, right=False, steps=("1 plus 1 is 7.",)),
        )
    }
    assert right_for_wrong_reasons(TASK, QUESTIONS, said) == 1
    assert right_for_wrong_reasons(TASK, QUESTIONS[1:], said) == 0
    checked = calls.task("known-steps", TASK.options)  # as the loop has it
    assert right_for_wrong_reasons(checked, QUESTIONS, said) == 1


def test_nothing_is_known_without_words_or_without_a_task_that_checks_them() -> None:
    said = {str(QUESTIONS[0].id): words(0, right=True, steps=("no",))}
    assert right_for_wrong_reasons(TASK, QUESTIONS, {}) is None
    assert right_for_wrong_reasons(TASK, [], said) is None
    other = calls.task("known-world", KnownWorldOptions())
    assert right_for_wrong_reasons(other, QUESTIONS, said) is None


def test_a_step_that_is_only_added_corrects_nothing() -> None:
    said = {id: Said(id, "", ("one", "two"), "5") for id in "abc"}
    flaws = {"a": None, "b": 1, "c": 2}
    annotations = [Annotation(id, ("one",), "5", first_flaw=flaw) for id, flaw in flaws.items()]
    assert corrected(annotations, said) == 1


def test_the_student_is_heard_where_the_selector_reads_its_words(tmp_path: Path) -> None:
    """The annotator does not read them; they are shown, and checked by the task."""
    sizes: dict[str, Any] = {
        "train": 24,
        "pool": 12,
        "test": 4,
        "shifted": 4,
        "most_steps": 2,
        "shifted_steps": 3,
    }
    task = {"name": "known-steps", "options": sizes}
    model: dict[str, Any] = {**MODEL, "options": {**SMALL, "context": 256}}
    path = write_recipe(
        tmp_path,
        train={"task": task, "validation": 0},
        evaluate=[{"task": task}],
        teacher=None,
        student={"model": model, "training": TRAINING},
        arms={"heard": {"learn": "labels"}},
        active={
            "pool": {"split": "pool"},
            "seed_samples": 8,
            "budget": {"samples": 4},
            "rounds": 1,
            "selector": {"name": "explanation-uncertainty"},
            "annotator": {"name": "label"},
            "confidence": "raw",
            "max_new_tokens": 24,
        },
    )
    result = first("select", path, "--run-dir", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    folder = tmp_path / "run" / "rounds" / "heard" / "1"
    chosen = json.loads((folder / "chosen.json").read_text())["ids"]
    said = [json.loads(line) for line in (folder / "student.jsonl").read_text().splitlines()]
    assert [each["id"] for each in said] == chosen
    before, after = result.json["arms"]["heard"]
    assert before["right_for_wrong_reasons"] is None
    assert 0 <= after["right_for_wrong_reasons"] <= 4
    assert after["flawed"] is None  # the annotator corrects nothing
    page = (tmp_path / "run" / "curves" / "index.html").read_text("utf-8")
    assert page.count("<p>The student:</p>") == 3
