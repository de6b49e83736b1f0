"""What an arm has chosen, bought and spent: in a round, and in all rounds so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from firstcli.active.spending import Spent
from firstcli.api import JSON, Annotation
from firstcli.data.annotations import read_annotations
from firstcli.workspace.run import Run


@dataclass
class Purchase:
    """What a round has chosen and bought."""

    ids: list[str] = field(default_factory=list)
    """The chosen questions, those that could not be annotated included."""
    annotations: list[Annotation] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    failures: int = 0
    contradictions: int = 0
    retried: int = 0
    parts: list[list[str]] = field(default_factory=list)
    """The same ids as they were bought together."""

    @classmethod
    def finished(cls, facts: Mapping[str, JSON], path: Path) -> Purchase:
        """Return what was bought, given `facts` of it and the file of the annotations."""
        own = {each.name: facts[each.name] for each in fields(cls) if each.name in facts}
        spent = Spent(**facts["spent"])
        return cls(**{**own, "spent": spent, "annotations": list(read_annotations(path))})

    @property
    def facts(self) -> dict[str, JSON]:
        """All but the annotations."""
        facts = asdict(replace(self, annotations=[]))
        del facts["annotations"]
        return facts


@dataclass
class Progress:
    """What an arm has chosen, bought and spent so far."""

    ids: list[str] = field(default_factory=list)
    annotations: list[Annotation] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    latest: Purchase = field(default_factory=Purchase)
    """What the latest round has bought."""
    key: str = ""
    """What all this depends on."""
    student: Run | None = None
    """The run of the latest student."""
    student_content: str = ""
    calibration: str = ""
    """The content of the recalibrator with which the selector sees it, if there is one."""
    rounds: list[dict[str, JSON]] = field(default_factory=list)
    """The facts of every round."""

    def add(self, bought: Purchase) -> None:
        """Take in what a round has chosen and bought."""
        self.spent += bought.spent
        self.ids += bought.ids
        self.annotations += bought.annotations
        self.latest = bought

    def finish(self, student: Run, facts: dict[str, JSON]) -> None:
        """Take in a finished round.

        Args:
            student: the run of its student.
            facts: what it has cost and brought.
        """
        self.student = student
        self.student_content = str(facts["student"])
        self.calibration = str(facts.get("calibration", ""))
        self.rounds.append(facts)
