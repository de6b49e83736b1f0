"""What a report is made of; the modules in here turn it into what people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from firstcli.metrics import uncertainty
from firstcli.metrics.summary import EvalMetrics, summarize
from firstcli.metrics.uncertainty import Difference, Estimate

if TYPE_CHECKING:
    from firstcli.api import JSON, FloatArray, Sample
    from firstcli.metrics.records import EvalRecords
    from firstcli.recipe.schema import MetricsSettings

TEACHER = "teacher"  # the name that no arm can have
PLUS_T = " + T"  # a row whose model is followed by its own temperature
BASELINES = ("fine-tune", "fine-tune + T", "distill", "distill + T")
"""Rows that all other students are compared with, where a recipe has them."""


class TeacherPart(NamedTuple):
    """How right the teacher is on one part of its training data, and how sure."""

    part: str
    confidence: float
    accuracy: float
    rows: int


class ArmFacts(NamedTuple):
    """What the studies of temperature and of k need to know of an arm that learns knowledge."""

    kind: str
    """What it has in common with the arms of the same line: recalibrator, objective, mass."""
    temperature: float | None
    """Where the recipe fixes it."""
    top_k: int
    mass: float | None
    """P: the teacher's probability of the k tokens, on average."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How a metric of two rows differs over the same questions, and from seed to seed."""

    questions: Difference
    seeds: Difference | None
    """None with one seed."""

    @property
    def distinguishable(self) -> bool:
        """Whether neither the questions nor the seeds explain the difference."""
        return self.questions.distinguishable and (not self.seeds or self.seeds.distinguishable)


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows of one run."""

    run: str
    recipe: str
    """The recipe's text."""
    members: Mapping[str, Sequence[str]]
    """The rows in order, each with its models, one a seed: teacher, then arms, each `+ T`."""
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
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each unit of work took, by key."""
    seeds: Sequence[int] = ()
    """The recipe's, where it names several."""
    calibrations: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    """calibration/<name>.json by row."""
    concentration: Mapping[str, JSON] | None = None
    """concentration.json of the knowledge that students learn from."""
    arms: Mapping[str, ArmFacts] = field(default_factory=dict)
    """Facts of the arms that learn knowledge."""
    top_k: int = 5
    """The recipe's."""
    teacher_parts: Sequence[TeacherPart] = ()
    questions: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """The questions to print, by evaluation."""

    @cached_property
    def metrics(self) -> dict[tuple[str, str], EvalMetrics]:
        """Metrics of every (evaluation, model) that has records."""
        return {
            key: summarize(records, self.settings.confidence, self.settings.bins)
            for key, records in self.records.items()
        }

    @property
    def rows(self) -> list[str]:
        """The tables' rows."""
        return list(self.members)

    @property
    def students(self) -> list[str]:
        """The rows that compete with one another."""
        return [row for row in self.members if row not in (TEACHER, TEACHER + PLUS_T)]

    @property
    def several_seeds(self) -> bool:
        return any(len(models) > 1 for models in self.members.values())

    @property
    def definition(self) -> str:
        """Which confidence the numbers are about."""
        return f"confidence: {self.settings.confidence}, {self.settings.bins} bins"

    @property
    def judged(self) -> list[str]:
        """Evaluations in which a candidate is right."""
        return [name for name in self.evaluations if self._answerable(name)]

    @property
    def unanswerable(self) -> list[str]:
        """Evaluations in which no candidate is right."""
        return [name for name in self.evaluations if not self._answerable(name)]

    def _answerable(self, evaluation: str) -> bool:
        return all(one.answerable for (name, _), one in self.records.items() if name == evaluation)

    def models(self, evaluation: str, row: str) -> list[str]:
        """Return a row's models that have records of an evaluation."""
        models = self.members.get(row, ())
        return [model for model in models if (evaluation, model) in self.records]

    def records_of(self, evaluation: str, row: str) -> list[EvalRecords]:
        """Return what a row's models answered, one a seed."""
        return [self.records[evaluation, model] for model in self.models(evaluation, row)]

    def first_of(self, evaluation: str) -> dict[str, EvalRecords]:
        """Return each row's answers at its first seed: what is drawn of single questions."""
        found = {row: self.records_of(evaluation, row) for row in self.members}
        return {row: records[0] for row, records in found.items() if records}

    def shown_of(self, evaluation: str) -> dict[str, tuple[EvalRecords, FloatArray]]:
        """Return `first_of` with the confidence that the report is about, where there is one."""
        found = {
            row: (records, records.shown(self.settings.confidence))
            for row, records in self.first_of(evaluation).items()
        }
        return {row: (records, c) for row, (records, c) in found.items() if c is not None}

    def values(self, evaluation: str, row: str, key: str) -> list[float]:
        """Return a metric at each seed; empty where it is not defined."""
        found = [
            getattr(self.metrics[evaluation, model], key) for model in self.models(evaluation, row)
        ]
        return [value for value in found if value is not None]

    def mean(self, evaluation: str, row: str, key: str) -> float | None:
        """Return a metric's mean over the seeds; of p-values, whose mean is none, the largest."""
        values = self.values(evaluation, row, key)
        if not values:
            return None
        if key == "ece_p" or len(set(values)) == 1:  # a count of questions stays a whole number
            return max(values)
        return fmean(values)

    def spread(self, evaluation: str, row: str, key: str) -> float | None:
        """Return a metric's standard deviation over the seeds, where there are several."""
        values = self.values(evaluation, row, key)
        return stdev(values) if len(values) > 1 else None

    def estimates(self, evaluation: str, row: str) -> Mapping[str, Estimate]:
        """Return the metrics that have an interval."""
        key = (evaluation, row)
        if key not in self._estimates:
            records = self.records_of(evaluation, row)
            answerable = bool(records) and self._answerable(evaluation)
            self._estimates[key] = (
                uncertainty.intervals(records, self.settings.confidence, self.settings.bins)
                if answerable
                else {}
            )
        return self._estimates[key]

    def compared(self, evaluation: str, ours: str, theirs: str) -> Mapping[str, Compared]:
        """Return, by metric, `ours` minus `theirs`; empty where they did not answer the same."""
        key = (evaluation, ours, theirs)
        if key not in self._compared:
            self._compared[key] = self._compare(*key)
        return self._compared[key]

    def _compare(self, evaluation: str, ours: str, theirs: str) -> dict[str, Compared]:
        if not {ours, theirs} <= self.members.keys() or not self._answerable(evaluation):
            return {}
        mine, other = (self.records_of(evaluation, row) for row in (ours, theirs))
        same = len({one.ids for one in (*mine, *other)}) == 1
        if not mine or len(mine) != len(other) or not same:
            return {}
        kind, bins = self.settings.confidence, self.settings.bins
        found = uncertainty.differences(mine, other, kind, bins)
        return {
            key: Compared(one, self._over_seeds(evaluation, ours, theirs, key))
            for key, one in found.items()
        }

    def _over_seeds(self, evaluation: str, ours: str, theirs: str, key: str) -> Difference | None:
        mine, other = (self.values(evaluation, row, key) for row in (ours, theirs))
        return uncertainty.over_seeds(mine, other) if len(mine) > 1 else None

    @cached_property
    def _estimates(self) -> dict[tuple[str, str], Mapping[str, Estimate]]:
        return {}

    @cached_property
    def _compared(self) -> dict[tuple[str, str, str], Mapping[str, Compared]]:
        return {}
