"""What other runs and commands read of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

STUDENTS = "students"
"""Name of the folder of all students."""
RUN_RECIPE = "recipe.yaml"
"""The file of the resolved recipe, as run."""
MANIFEST = "manifest.json"
"""The file that an artifact's folder has once it is complete."""
DECISION = Path("report/decision.json")
"""What the report recommends."""


class Recommended(NamedTuple):
    """The model that a report recommends."""

    name: str
    """Name of its folder: an arm, `ARM@SEED`, or `teacher`."""
    posthoc: bool
    """Whether it is recommended with its post-hoc recalibrator."""


def recommended(run: Path) -> Recommended | None:
    """Return the model that the report of a run recommends, if there is a report and it does."""
    try:
        ship = json.loads((run / DECISION).read_text("utf-8"))["ship"]
        return Recommended(Path(str(ship["folder"])).name, bool(ship["posthoc"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def default_folder(name: str) -> Path:
    """Return the folder of a run, unless `--run-dir` names a different one."""
    return Path("runs") / name


def of_rounds(run: Path, name: str | None = None) -> str:
    """Say where `first select` has left students in a run folder; empty if it has not.

    Args:
        run: the run folder.
        name: the student that is looked for: an arm or `ARM@SEED`; None for any.
    """
    rounds = (file.parent for file in run.glob("rounds/*/*/round.json"))
    finished = [folder for folder in rounds if name in (None, folder.parent.name)]
    numbered = [folder for folder in finished if folder.name.isdecimal()]
    if not numbered:
        return ""
    latest = max(numbered, key=lambda folder: (int(folder.name), folder.parent.name))
    return f"; `first select` leaves its students in {run / 'rounds'}, such as {latest / 'run'}"
