"""Fixture of a tiny run with a temperature, for files with `pytest_plugins` naming this module."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import command_line
from support.command_line import first

OVERCONFIDENT = {"epochs": 20, "learning_rate": 1e-2, "batch_size": 16}
"""So many epochs that the fitted temperature is far from 1."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluated run with `fine-tune + T`; tests must not change it."""
    home = tmp_path_factory.mktemp("with-temperature")
    temperature = {"posthoc": {"name": "logit-temperature"}}
    teacher = {"model": command_line.MODEL, "finetune": command_line.TRAINING, **temperature}
    path = command_line.write_recipe(
        home,
        teacher=teacher,
        student={"model": command_line.MODEL, "training": OVERCONFIDENT},
        arms={"fine-tune": {"learn": "labels", **temperature}, "plain": {"learn": "labels"}},
    )
    result = first("eval", path, "--run-dir", home / "run")
    assert result.code == 0, result.err
    return home / "run"
