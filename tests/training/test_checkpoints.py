"""Where an interrupted training goes on."""

from __future__ import annotations

import json
from pathlib import Path

from firstcli.training import checkpoints


def checkpoint(folder: Path, step: int, state: str, *, complete: bool = True) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state, "utf-8")
    if complete:
        (path / checkpoints.COMPLETE_MARK).touch()


def test_the_last_complete_checkpoint_counts(tmp_path: Path) -> None:
    assert checkpoints.resumption(tmp_path / "absent") == ""
    state = json.dumps({"max_steps": 840})
    checkpoint(tmp_path, 1000, state, complete=False)
    assert checkpoints.resumption(tmp_path) == ""
    checkpoint(tmp_path, 90, state)
    checkpoint(tmp_path, 140, state)
    assert checkpoints.resumption(tmp_path) == "step 140 of 840"


def test_a_damaged_state_hides_the_number_of_steps_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path, 7, "{")
    assert checkpoints.resumption(tmp_path) == "step 7"
