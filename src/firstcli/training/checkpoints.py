"""The checkpoints in the folder of a training. Needs no PyTorch, so a plan can name the step."""

from __future__ import annotations

import json
from pathlib import Path

COMPLETE_MARK = "complete"  # written last, so that an unfinished checkpoint is never resumed from


def checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints, finished or not, in the order of their steps."""
    return sorted(folder.glob("checkpoint-*"), key=step_of)


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE_MARK).exists()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def resumption(folder: Path) -> str:
    """Return at which step a training goes on, in words; empty if it starts anew."""
    complete = [path for path in checkpoints(folder) if is_complete(path)]
    if not complete:
        return ""
    try:  # as the Trainer saves it
        state = json.loads((complete[-1] / "trainer_state.json").read_text("utf-8"))
        total = f" of {int(state['max_steps'])}"
    except (OSError, ValueError, LookupError, TypeError):
        total = ""
    return f"step {step_of(complete[-1])}{total}"
