"""What a report is made of; the modules in here turn it into what people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from firstcli.metrics import EvalMetrics, summarize

if TYPE_CHECKING:
    from firstcli.recipe import MetricsSettings
    from firstcli.records import EvalRecords

TEACHER = "teacher"  # the name that no arm can have


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows of one run."""

    run: str
    recipe: str
    """The recipe's text."""
    models: Sequence[str]
    """The rows, in order: the teacher, then the arms in the recipe's order."""
    evaluations: Sequence[str]
    """The column groups, in the recipe's order."""
    records: Mapping[tuple[str, str], EvalRecords]
    """What (evaluation, model) answered; what is missing shows as a dash."""
    settings: MetricsSettings
    """Which confidence is shown, and in how many bins."""
    notes: Sequence[tuple[str, str]] = ()
    """Labelled facts to print below the tables, such as fitted temperatures."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions to print at the end of the page."""

    @cached_property
    def metrics(self) -> dict[tuple[str, str], EvalMetrics]:
        """Metrics of every (evaluation, model) that has records."""
        return {
            key: summarize(records, self.settings.confidence, self.settings.bins)
            for key, records in self.records.items()
        }

    @property
    def students(self) -> list[str]:
        """The models that compete with one another."""
        return [model for model in self.models if model != TEACHER]

    @property
    def definition(self) -> str:
        """Which confidence the numbers are about."""
        return f"confidence: {self.settings.confidence}, {self.settings.bins} bins"

    def results(self, evaluation: str) -> list[tuple[str, EvalMetrics, EvalRecords]]:
        """Return the models that have records of an evaluation, in order."""
        return [
            (model, self.metrics[evaluation, model], self.records[evaluation, model])
            for model in self.models
            if (evaluation, model) in self.records
        ]
