"""Where the rounds of a run are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstcli.api import JSON
from firstcli.runtime.files import atomic_write

ROUNDS = "rounds"
"""Folder of all rounds, in the run folder. Names in it that begin with a dot are no arms."""
HELD_OUT = ".held-out.jsonl"
"""File of the held-out samples, in the folder of all rounds."""
ANSWERS = ".answers"
"""Folder of the answers of remote teachers, by teacher, in the folder of all rounds."""
STARTS = ".start"
"""Folder of the models with which students start, by seed, in the folder of all rounds."""


@dataclass(frozen=True, slots=True)
class ArmFolder:
    """The rounds of one arm and seed."""

    path: Path

    def round(self, number: int) -> RoundFolder:
        return RoundFolder(self.path / str(number))


@dataclass(frozen=True, slots=True)
class RoundFolder:
    """What a round is made of; `facts` is written last."""

    path: Path

    @property
    def scores(self) -> Path:
        """The score of every question that could be chosen."""
        return self.path / "scores.parquet"

    @property
    def chosen(self) -> Path:
        """The ids of the chosen questions."""
        return self.path / "chosen.json"

    @property
    def said(self) -> Path:
        """What the student said of them, if the annotator or the selector reads its words."""
        return self.path / "student.jsonl"

    @property
    def annotations(self) -> Path:
        """What was bought of them, in the same order."""
        return self.path / "annotations.jsonl"

    @property
    def samples(self) -> Path:
        """What the student of this round learns: the first samples and all annotated ones."""
        return self.path / "train.jsonl"

    @property
    def run(self) -> Path:
        """The run folder of this round's student."""
        return self.path / "run"

    @property
    def facts(self) -> Path:
        """What the round has cost and brought."""
        return self.path / "round.json"

    def read_facts(self, fingerprint: str) -> dict[str, JSON] | None:
        """Return the facts if the round is complete and has the fingerprint, else None."""
        facts = read_json(self.facts)
        return facts if facts is not None and facts.get("fingerprint") == fingerprint else None


def read_json(path: Path) -> dict[str, JSON] | None:
    """Return the content of a JSON file; None if there is none, or if it is damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_changed(path: Path, content: bytes) -> None:
    """Write a file, unless it has the content already."""
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)


def as_lines(rows: list[Mapping[str, JSON]]) -> bytes:
    """Return the content of a file in JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
