"""The content of a report, which the other modules turn into tables, figures and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from firstcli.api import JSON, Curve, FloatArray, Sample
from firstcli.metrics import METRICS, EvalMetrics, summarize, uncertainty
from firstcli.metrics.groups import GroupScores, group_scores
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import Difference, Estimate
from firstcli.recalibration.diagnostics import RankCalibration
from firstcli.recipe.sections import MetricsSettings
from firstcli.recipe.shift import Shift

TEACHER = "teacher"  # reserved: no arm has this name
PLUS_T = " + T"  # suffix of a row with a post-hoc temperature
METHODS = ("first", "first-logit")
"""The arm of the paper's method, and the one that stands for it in the starters."""
BASELINES = ("fine-tune", "fine-tune + T", "distill", "distill + T")
"""Rows with which all other students are compared, if the recipe has them."""
ALL_FIGURES = 40
"""Number of rows times evaluations up to which every evaluation has figures."""
FIRST_FIGURES = 16
"""Beyond it, the number of rows times evaluations with figures; they take 40 kB and .2 s each."""
COMPARED = ("ece", "accuracy", "trust", "ece_true")
"""Metrics with intervals, whose differences can therefore be assessed."""


class ComparisonTest(NamedTuple):
    """The question whether two rows differ in a metric."""

    evaluation: str
    rows: frozenset[str]
    metric: str


class TeacherPart(NamedTuple):
    """The teacher's accuracy and confidence on one part of its training data."""

    part: str
    confidence: float
    accuracy: float
    rows: int


class FittedRecalibrator(NamedTuple):
    """What a fitted recalibrator shows on its validation rows."""

    ranks: Sequence[RankCalibration]
    curves: Mapping[str, Curve]
    """Criteria over the fitted parameter, by the criterion's name."""
    criterion: str | None
    """The criterion that selects the parameter."""


class ArmFacts(NamedTuple):
    """Facts about an arm that learns from knowledge, for the studies of temperature and k."""

    kind: str
    """Recalibrator, objective, mass and so on: arms of the same kind are joined by a line."""
    temperature: float | None
    """None unless the recipe fixes it."""
    top_k: int
    mass: float | None
    """P: the teacher's mean total probability of the k tokens."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The difference of a metric between two rows, over the same questions and over seeds."""

    questions: Difference
    seeds: Difference | None
    """None with a single seed."""

    @property
    def distinguishable(self) -> bool:
        """Whether neither the choice of questions nor the seeds explain the difference."""
        return self.questions.distinguishable and (not self.seeds or self.seeds.distinguishable)

    @property
    def p_value(self) -> float:
        """The p-value that neither questions nor seeds explain the difference."""
        tests = (self.questions, *((self.seeds,) if self.seeds else ()))
        p_value: float = max(test.p_value for test in tests)
        return p_value


@dataclass(frozen=True)
class ReportData:
    """Everything that the report of a run shows."""

    run: str
    recipe: str
    """The text of the recipe."""
    members: Mapping[str, Sequence[str]]
    """The models of each row, one per seed; the order is teacher, then arms, each with `+ T`."""
    evaluations: Sequence[str]
    """Names of the evaluations in the recipe's order."""
    records: Mapping[tuple[str, str], EvalRecords]
    """Records by (evaluation, model), those of shifted questions under the name of the shifted
    evaluation; missing ones are shown as a dash."""
    settings: MetricsSettings
    """The kind of confidence and the number of bins; `records` are already those of
    `settings.candidates`."""
    shifts: Mapping[str, Mapping[str, Shift]] = field(default_factory=dict)
    """The shifts of each evaluation that has some, by the names of the shifted evaluations."""
    changed: Mapping[str, float] = field(default_factory=dict)
    """The share of prompts that a shift changes, by the names of the shifted evaluations."""
    validation: Mapping[str, EvalRecords] = field(default_factory=dict)
    """Answers to the validation questions by model, for thresholds and prediction sets."""
    other_answers: frozenset[str] = frozenset()
    """The evaluations whose answers are made otherwise than those to the validation questions."""
    notes: Sequence[tuple[str, str]] = ()
    """Labelled facts below the tables, such as fitted temperatures."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package versions, shown at the end of the page."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Duration of each unit of work, by its key."""
    seeds: Sequence[int] = ()
    """The recipe's seeds, if it names several."""
    calibrations: Mapping[str, FittedRecalibrator] = field(default_factory=dict)
    """What was fitted, by row."""
    concentration: Mapping[str, JSON] | None = None
    """Content of concentration.json of the knowledge from which the students learn."""
    arms: Mapping[str, ArmFacts] = field(default_factory=dict)
    """The arms that learn from knowledge."""
    top_k: int = 5
    """The recipe's `knowledge.top_k`."""
    labels_only: frozenset[str] = frozenset()
    """The arms that learn from labels alone and need no teacher."""
    location: str | None = "RUN"
    """What the commands that the report offers call the run folder; None if there is no run."""
    setup: Sequence[str] = ()
    """What was run, in a few phrases: models, rows, seeds, date, version."""
    teacher_parts: Sequence[TeacherPart] = ()
    questions: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """The questions to show, by evaluation."""
    _estimates: dict[str, dict[str, dict[str, Estimate]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _compared: dict[tuple[str, str, str], dict[str, Compared]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def metrics(self) -> dict[tuple[str, str], EvalMetrics]:
        """Metrics of each (evaluation, model) with records."""
        return {
            key: summarize(records, self.settings.confidence, self.settings.bins)
            for key, records in self.records.items()
        }

    @cached_property
    def group_scores(self) -> dict[tuple[str, str], GroupScores]:
        """Metrics by group of each (evaluation, model) whose questions have groups."""
        kind, bins = self.settings.confidence, self.settings.bins
        scores = {key: group_scores(records, kind, bins) for key, records in self.records.items()}
        return {key: by_group for key, by_group in scores.items() if by_group is not None}

    @property
    def rows(self) -> list[str]:
        """The tables' rows."""
        return list(self.members)

    @property
    def students(self) -> list[str]:
        """The rows that are ranked against one another."""
        return [row for row in self.members if row not in (TEACHER, TEACHER + PLUS_T)]

    @property
    def method(self) -> str:
        """The row of the paper's method or, if the run lacks it, of the starters' arm for it."""
        return next((row for row in METHODS if row in self.members), METHODS[0])

    @property
    def several_seeds(self) -> bool:
        return any(len(models) > 1 for models in self.members.values())

    @property
    def definition(self) -> str:
        """The kind of confidence, what is scored, and the number of bins, in words."""
        return self.settings.definition

    @property
    def by_agreement(self) -> str:
        """The rows whose T was fitted without labels, as the end of a caption."""
        rows = [row for row, each in self.calibrations.items() if each.criterion == "agreement"]
        return f"; T by agreement with the teacher: {', '.join(rows)}" if rows else ""

    @property
    def judged(self) -> list[str]:
        """Evaluations whose questions have a right candidate."""
        return [name for name in self.evaluations if self._answerable(name)]

    @property
    def promised(self) -> list[str]:
        """Judged evaluations about which the validation questions can promise something."""
        return [name for name in self.judged if name not in self.other_answers]

    @property
    def unanswerable(self) -> list[str]:
        """Evaluations whose questions have no right candidate."""
        return [name for name in self.evaluations if not self._answerable(name)]

    @property
    def grouped(self) -> list[str]:
        """Evaluations with a right candidate whose questions have groups."""
        names = {evaluation for evaluation, _ in self.group_scores}
        return [name for name in self.judged if name in names]

    @property
    def illustrated(self) -> list[str]:
        """Evaluations that are shown with figures and single questions: all, or the first few."""
        rows, evaluations = max(1, len(self.members)), list(self.evaluations)
        if rows * len(evaluations) <= ALL_FIGURES:
            return evaluations
        return evaluations[: max(1, FIRST_FIGURES // rows)]

    def _answerable(self, evaluation: str) -> bool:
        return all(r.answerable for (name, _), r in self.records.items() if name == evaluation)

    def models(self, evaluation: str, row: str) -> list[str]:
        """Return the models of a row that have records of an evaluation."""
        models = self.members.get(row, ())
        return [model for model in models if (evaluation, model) in self.records]

    def records_of(self, evaluation: str, row: str) -> list[EvalRecords]:
        """Return the records of a row's models, one per seed."""
        return [self.records[evaluation, model] for model in self.models(evaluation, row)]

    def first_of(self, evaluation: str) -> dict[str, EvalRecords]:
        """Return each row's records at its first seed, which figures of single questions show."""
        by_row = {row: self.records_of(evaluation, row) for row in self.members}
        return {row: records[0] for row, records in by_row.items() if records}

    def shown(self, evaluation: str, row: str) -> list[tuple[EvalRecords, FloatArray]]:
        """Return the records of a row's models with their confidence, where it is known."""
        pairs = [(r, r.shown(self.settings.confidence)) for r in self.records_of(evaluation, row)]
        return [(records, confidence) for records, confidence in pairs if confidence is not None]

    def values(self, evaluation: str, row: str, key: str) -> list[float]:
        """Return a metric at each seed where it is defined."""
        metrics = [self.metrics[evaluation, model] for model in self.models(evaluation, row)]
        return [value for m in metrics if (value := getattr(m, key)) is not None]

    def mean(self, evaluation: str, row: str, key: str) -> float | None:
        """Return a metric's mean over the seeds, or the largest of the p-values."""
        values = self.values(evaluation, row, key)
        if not values:
            return None
        if key == "ece_p" or len(set(values)) == 1:  # equal counts stay whole numbers
            return max(values)
        return fmean(values)

    def spread(self, evaluation: str, row: str, key: str) -> float | None:
        """Return a metric's standard deviation over several seeds."""
        values = self.values(evaluation, row, key)
        return stdev(values) if len(values) > 1 else None

    def estimates(self, evaluation: str, row: str) -> Mapping[str, Estimate]:
        """Return the metrics that have an interval, by name."""
        return self._assessed(evaluation).get(row, {})

    def _assessed(self, evaluation: str) -> dict[str, dict[str, Estimate]]:
        """Return the estimates of all rows on one evaluation, and compare them with the baselines.

        All is done at once because the draws of a limited number of models are cached.
        """
        if evaluation not in self._estimates:
            kind, bins = self.settings.confidence, self.settings.bins
            self._estimates[evaluation] = {
                row: uncertainty.intervals(records, kind, bins)
                for row in (self.rows if self._answerable(evaluation) else ())
                if (records := self.records_of(evaluation, row))
            }
            is_shifted = evaluation not in self.evaluations  # on these, nothing is tested
            for theirs in (row for row in BASELINES if row in self.members and not is_shifted):
                for ours in self.students:
                    if ours != theirs:
                        self.compared(evaluation, ours, theirs)
        return self._estimates[evaluation]

    def compared(self, evaluation: str, ours: str, theirs: str) -> Mapping[str, Compared]:
        """Return `ours` minus `theirs` by metric; empty unless both answered the same questions."""
        self._assessed(evaluation)
        key = (evaluation, ours, theirs)
        if key not in self._compared:
            self._compared[key] = self._compare(*key)
        return self._compared[key]

    def _compare(self, evaluation: str, ours: str, theirs: str) -> dict[str, Compared]:
        mine, other = (self.records_of(evaluation, row) for row in (ours, theirs))
        same = len({r.ids for r in (*mine, *other)}) == 1
        if not mine or len(mine) != len(other) or not same or not self._answerable(evaluation):
            return {}
        kind, bins = self.settings.confidence, self.settings.bins
        compared = {}
        for key, difference in uncertainty.differences(mine, other, kind, bins).items():
            if key == "accuracy" and self.same_answers(evaluation, ours, theirs):
                continue
            values = [self.values(evaluation, row, key) for row in (ours, theirs)]
            seeds = uncertainty.over_seeds(*values) if len(values[0]) > 1 else None
            compared[key] = Compared(difference, seeds)
        return compared

    def same_answers(self, evaluation: str, ours: str, theirs: str) -> bool:
        """Return whether two rows are one model whose temperature changes no answer.

        Their accuracies are equal by construction, so there is nothing to test.
        """
        if ours.removesuffix(PLUS_T) != theirs.removesuffix(PLUS_T):
            return False
        mine, other = (self.records_of(evaluation, row) for row in (ours, theirs))
        return len(mine) == len(other) > 0 and all(
            a.ids == b.ids and np.array_equal(a.correct, b.correct)
            for a, b in zip(mine, other, strict=True)
        )

    def best(self, evaluation: str, key: str) -> str | None:
        """Return the student with the best mean of a metric; None if fewer than two have one."""
        means = {row: self.mean(evaluation, row, key) for row in self.students}
        values = {row: mean for row, mean in means.items() if mean is not None}
        if key not in COMPARED or len(values) < 2:
            return None
        choose = min if METRICS[key].better == "lower" else max
        return choose(values, key=lambda row: values[row])

    @cached_property
    def p_values(self) -> dict[ComparisonTest, float]:
        """The p-value of each test of the report, corrected as the recipe says."""
        found = {
            ComparisonTest(evaluation, frozenset((ours, theirs)), key): compared.p_value
            for evaluation, ours, theirs, keys in self._compared_rows()
            for key, compared in self.compared(evaluation, ours, theirs).items()
            if key in keys
        }
        if self.settings.correction == "none":
            return found
        return dict(zip(found, uncertainty.holm(list(found.values())), strict=True))

    def _compared_rows(self) -> Iterator[tuple[str, str, str, Sequence[str]]]:
        """Yield each evaluation, pair of rows and the metrics in which the report tests them."""
        for evaluation in self.judged:
            for theirs in (row for row in BASELINES if row in self.rows):
                yield from ((evaluation, o, theirs, COMPARED) for o in self.students if o != theirs)
            for key in COMPARED:
                if best := self.best(evaluation, key):
                    rows = (row for row in self.students if row != best)
                    yield from ((evaluation, row, best, (key,)) for row in rows)

    def distinguishable(self, evaluation: str, ours: str, theirs: str, key: str) -> bool:
        """Return whether two rows differ in a metric, after the recipe's correction.

        A pair that is none of the report's tests, such as the chosen student and another one in a
        metric in which neither is best, is corrected as if it were the least of them.

        Args:
            evaluation: the evaluation's name.
            ours: one row.
            theirs: the other row.
            key: the metric.
        """
        compared = self.compared(evaluation, ours, theirs).get(key)
        test = ComparisonTest(evaluation, frozenset((ours, theirs)), key)
        if compared is None or not compared.distinguishable:
            return False
        corrections = len(self.p_values) if self.settings.correction == "holm" else 1
        return self.p_values.get(test, corrections * compared.p_value) < uncertainty.LEVEL

    @property
    def tests(self) -> str:
        """The number of tests behind the marks, and whether they are corrected, in words."""
        count = len(self.p_values)
        if not count:
            return "no tests"
        if self.settings.correction == "holm":
            return f"marks are Holm-corrected for {count} tests"
        return (
            f"marks come from {count} tests at the 95 % level without correction: about "
            f"{uncertainty.LEVEL * count:.2g} false ones are expected if no models differ"
        )
