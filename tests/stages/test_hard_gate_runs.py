"""A run with the objective `hard-gate`: plan, facts, card, report and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

from support import command_line
from support.command_line import first

NONE = {"name": "none"}


def test_a_student_says_how_often_it_learned_the_label(tmp_path: Path) -> None:
    """Unlabelled rows have none: the share is lower with them, and nothing else is refused."""
    rows = command_line.sums(60)
    without = [{**row, "answer": ""} for row in command_line.sums(60, first=60)]
    command_line.write_rows(tmp_path / "data" / "train.jsonl", [*rows, *without])
    command_line.write_rows(tmp_path / "data" / "test.jsonl", command_line.sums(8, first=200))
    task = command_line.of_files(tmp_path / "data")
    arms = {"gate": {"recalibrator": NONE, "objective": "hard-gate"}}
    run, shares = tmp_path / "run", []
    for limit in (None, 0):
        train = {"task": task, "validation": 0.3, "unlabelled": {"limit": limit}}
        path = command_line.write_recipe(
            tmp_path, train=train, evaluate=[{"task": task}], arms=arms
        )
        result = first("report", path, "--run-dir", run)
        assert result.code == 0, result.err
        manifest = json.loads((run / "students" / "gate" / "manifest.json").read_text("utf-8"))
        assert manifest["reads"]["arms.gate.objective"] == "hard-gate"
        shares.append(manifest["facts"]["from_label"])
        assert " of positions learned the label in the end" in " ".join(result.out.split())
        last = json.loads(
            (run / "students" / "gate" / "training_log.jsonl").read_text("utf-8").splitlines()[-1]
        )
        assert last["from_label"] == shares[-1]
    with_unlabelled, labelled_only = shares
    assert 0 <= with_unlabelled < labelled_only <= 1
    card = " ".join((run / "students" / "gate" / "README.md").read_text("utf-8").split())
    assert "recalibrated by `none`, and the label where it is less sure of it than these" in card


def test_labels_have_no_gate(tmp_path: Path) -> None:
    arms = {"a": {"learn": "labels", "objective": "hard-gate"}}
    path = command_line.write_recipe(tmp_path, arms=arms)
    first("plan", path).mistake("arms.a.objective", "no effect with 'learn: labels'")
