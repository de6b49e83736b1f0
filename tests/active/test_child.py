"""The recipe of a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from firstcli.active.child import child_recipe
from firstcli.pipeline.plan import Request, open_run
from firstcli.recipe.active import STOP_EVALUATION
from firstcli.recipe.evaluations import Evaluation
from support import command_line
from support.command_line import MODEL, TRAINING, WORLD

STEPS = {"name": "known-steps", "options": {"train": 80, "test": 8, "shifted": 4, "pool": 60}}
WRITTEN = {"task": STEPS, "name": "written", "samples": 3, "max_new_tokens": 40}
TYPOS = {"typos": [0.3]}


def stop_evaluation(folder: Path, task: Any, evaluate: list[dict[str, Any]]) -> Evaluation:
    path = command_line.write_recipe(
        folder,
        train={"task": task, "validation": 0.2},
        evaluate=evaluate,
        teacher=None,
        student={"model": MODEL, "training": TRAINING},
        arms={"first": {"learn": "labels"}},
        active={
            "pool": {"split": "pool"} if task is STEPS else {"task": WORLD},
            "seed_samples": 5,
            "budget": {"samples": 4},
            "rounds": 1,
            "annotator": {"name": "label"},
            "stop": {},
        },
    )
    run = open_run(Request(path, run_dir=folder / "run", quiet=True))
    start = {"family": "causal-lm", "checkpoint": str(folder)}
    samples, held_out = folder / "samples.jsonl", folder / "held-out.jsonl"
    recipe = child_recipe(run, "first", 7, start, samples, held_out)
    found = recipe.evaluate[-1]
    assert (found.name, found.split) == (STOP_EVALUATION, "held-out")
    assert found.task == recipe.train.task
    return found


def test_held_out_questions_are_answered_as_in_an_evaluation_of_their_task(tmp_path: Path) -> None:
    other = {"task": WORLD, "answers": "scored"}
    found = stop_evaluation(tmp_path, STEPS, [other, WRITTEN])
    assert (found.answers, found.samples, found.max_new_tokens) == (None, 3, 40)


@pytest.mark.parametrize("shift", [None, TYPOS])
def test_other_evaluations_say_nothing_of_held_out_questions(
    tmp_path: Path, shift: dict[str, Any] | None
) -> None:
    shifted = {"task": WORLD, **({"shift": shift} if shift else {})}
    found = stop_evaluation(tmp_path, WORLD, [WRITTEN, shifted])
    assert (found.answers, found.samples, found.shift) == (None, None, None)
