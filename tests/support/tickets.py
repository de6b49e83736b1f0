"""Invented support tickets, and the run of a student that was trained on them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = ("billing", "delivery", "refund")
WORDS = {"billing": "charged twice", "delivery": "parcel late", "refund": "money back"}


def tickets(count: int, first_number: int = 0) -> list[dict[str, Any]]:
    """Return rows of a table to classify: the text, its label, and a third column."""
    numbers = range(first_number, first_number + count)
    return [
        {
            "text": f"{WORDS[LABELS[i % 3]]} {'please ' * (i % 7)}{i}",
            "label": LABELS[i % 3],
            "no": i,
        }
        for i in numbers
    ]


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with one student."""

    recipe: Path
    run: Path
    folder: Path

    def alone(self, target: Path) -> Path:
        """Copy the student's folder to a place where nothing else of the run is."""
        shutil.copytree(self.folder, target)
        return target


def sidecar(folder: Path) -> Any:
    """Return the content of a folder's `firstcli.json`."""
    return json.loads((folder / "firstcli.json").read_text("utf-8"))
