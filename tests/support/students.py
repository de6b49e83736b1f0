"""Fixtures of trained students, for test files with `pytest_plugins = ["support.students"]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstcli.student.load import TrainedStudent, load_student
from support import command_line
from support.command_line import first, write_rows
from support.tickets import TrainedRun, tickets

SMALL = command_line.MODEL | {
    "options": command_line.MODEL["options"] | {"context": 64}  # type: ignore[operator]
}


def _trained(folder: Path, task: Any, stage: str, **sections: Any) -> TrainedRun:
    arm = sections.pop("arm", {})
    recipe = command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.3},
        teacher=None,
        student={"model": SMALL, "training": command_line.TRAINING | {"epochs": 4}},
        arms={"plain": {"learn": "labels", **arm}},
        **sections,
    )
    result = first(stage, recipe, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return TrainedRun(recipe, folder / "run", folder / "run" / "students" / "plain")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A student that classifies tickets, with a temperature and one evaluation."""
    folder = tmp_path_factory.mktemp("classifier")
    write_rows(folder / "data" / "train.jsonl", tickets(90))
    write_rows(folder / "data" / "test.jsonl", tickets(30, 90))
    task = {"name": "classification", "options": {"path": str(folder / "data")}}
    arm = {"posthoc": {"name": "logit-temperature"}}
    return _trained(folder, task, "eval", evaluate=[{"task": task, "name": "tickets"}], arm=arm)


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A student that writes text."""
    folder = tmp_path_factory.mktemp("writer")
    rows = [{"prompt": f"Say {i}.", "response": f" word{i % 3} ünd"} for i in range(60)]
    write_rows(folder / "train.jsonl", rows)
    task = {"name": "instruction", "options": {"path": str(folder / "train.jsonl")}}
    questions = [{"task": command_line.WORLD}]
    return _trained(folder, task, "distill", evaluate=questions)


@pytest.fixture(scope="session")
def student(classifier: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> TrainedStudent:
    """The classifier, loaded from a folder that was moved away from its run."""
    return load_student(classifier.alone(tmp_path_factory.mktemp("alone") / "student"))
