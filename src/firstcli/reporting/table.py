"""The results as tables: the paper's Table 1, and every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from firstcli.metrics import EvalMetrics
from firstcli.reporting import TEACHER, ReportData

DASH = "–"  # where a model was not evaluated
_ROUNDING = 1e-12  # metrics closer than this differ by rounding alone
DIFFERENCE = "first to fine-tune"
_COMPARED = ("first", "fine-tune")  # the last row is the former minus the latter


@dataclass(frozen=True, slots=True)
class Column:
    """One metric as a column."""

    key: str  # a field of EvalMetrics
    title: str
    form: Literal["percent", "decimal", "count"]
    better: Literal["lower", "higher"] | None = None

    @property
    def heading(self) -> str:
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[self.better]
        return self.title + arrow

    def value(self, metrics: EvalMetrics) -> float | None:
        found: float | None = getattr(metrics, self.key)
        return found

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """Format a value; `signed` is for differences."""
        if value is None:
            return DASH
        if self.form == "count":
            return f"{value:d}"
        shown, digits = (100 * value, 1) if self.form == "percent" else (value, 3)
        text = f"{shown:z.{digits}f}"
        if not float(text):  # a tiny share is not shown as 0.0, unless rounding made it
            return text if signed or abs(value) < _ROUNDING else f"{shown:.1g}"
        return f"+{text}" if signed and shown > 0 else text


PAPER = (
    Column("ece", "ECE", "percent", "lower"),
    Column("accuracy", "Acc", "percent", "higher"),
    Column("trust", "Trust", "percent", "higher"),
)
KNOWN_TRUTH = (
    Column("ece_true", "ECE true", "percent", "lower"),
    Column("confidence_mae", "Conf. MAE", "percent", "lower"),
)
EVERYTHING = (
    Column("n", "n", "count"),
    *PAPER,
    Column("confidence", "Conf.", "percent"),
    Column("nll", "NLL", "decimal", "lower"),
    Column("brier", "Brier", "decimal", "lower"),
    Column("brier_top", "Brier top", "decimal", "lower"),
    Column("candidate_mass", "Mass", "percent"),
    Column("ties", "Ties", "count"),
    Column("nll_floored", "Floored", "count"),
    Column("bins_used", "Bins used", "count"),
)
_COMPARABLE = tuple(c for c in (*EVERYTHING, *KNOWN_TRUTH) if c.form != "count")


@dataclass(frozen=True, slots=True)
class Cell:
    """A formatted value; `best` marks the best of the students."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A model, or the difference of two, with a tuple of cells a group."""

    name: str
    kind: Literal["teacher", "student", "difference"]
    groups: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The columns of one evaluation."""

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column groups and rows, ready to be written in any format."""

    title: str
    caption: str
    competing: bool  # whether there are several students, so that the best are marked
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]

    def by_group(self) -> list[Table]:
        """Return a table for each column group."""
        return [self._only(g, slice(None)) for g in range(len(self.groups))]

    def split(self) -> list[Table]:
        """Return narrower tables: one a group, or else both halves of the only group's columns."""
        if len(self.groups) > 1:
            return self.by_group()
        half = (len(self.groups[0].columns) + 1) // 2
        parts = [self._only(0, slice(half)), self._only(0, slice(half, None))]
        return [part for part in parts if part.groups[0].columns]

    def _only(self, g: int, columns: slice) -> Table:
        group = replace(self.groups[g], columns=self.groups[g].columns[columns])
        rows = tuple(replace(row, groups=(row.groups[g][columns],)) for row in self.rows)
        return replace(self, groups=(group,), rows=rows)


def paper_table(data: ReportData) -> Table:
    """Return the paper's Table 1 for a run: a row a model, a column group an evaluation."""
    groups = tuple(_group(data, evaluation, PAPER) for evaluation in data.evaluations)
    rows = [_row(data, model, groups) for model in data.models]
    if differences(data):
        rows.append(_difference_row(data, groups))
    caption = f"{data.definition}; in percent; differences in percentage points"
    title = f"Results of {data.run}"
    return Table(title, caption, len(data.students) > 1, groups, tuple(rows))


def full_table(data: ReportData) -> Table:
    """Return every metric of every model on every evaluation."""
    groups = tuple(_group(data, evaluation, EVERYTHING) for evaluation in data.evaluations)
    rows = tuple(_row(data, model, groups) for model in data.models)
    caption = f"{data.definition}; in percent, but NLL and Brier scores as they are"
    title = f"All metrics of {data.run}"
    return Table(title, caption, len(data.students) > 1, groups, rows)


def best_students(data: ReportData, evaluation: str, column: Column) -> frozenset[str]:
    """Return the students with the best value, equals included; none where nothing competes."""
    found = {
        model: value
        for model in data.students
        if (evaluation, model) in data.metrics
        and (value := column.value(data.metrics[evaluation, model])) is not None
    }
    if column.better is None or len(found) < 2:
        return frozenset()
    best = min(found.values()) if column.better == "lower" else max(found.values())
    return frozenset(model for model, value in found.items() if abs(value - best) <= _ROUNDING)


def best_keys(data: ReportData, evaluation: str, model: str) -> list[str]:
    """Return the metrics in which a student is the best of all."""
    return [c.key for c in _COMPARABLE if model in best_students(data, evaluation, c)]


def differences(data: ReportData) -> dict[str, dict[str, float | None]]:
    """Return `first` minus `fine-tune`, metric by metric, for each evaluation that both have."""
    found: dict[str, dict[str, float | None]] = {}
    for evaluation in data.evaluations:
        ours, theirs = (data.metrics.get((evaluation, model)) for model in _COMPARED)
        if ours is not None and theirs is not None:
            pairs = {c.key: (c.value(ours), c.value(theirs)) for c in _COMPARABLE}
            found[evaluation] = {
                key: None if a is None or b is None else a - b for key, (a, b) in pairs.items()
            }
    return found


def _group(data: ReportData, evaluation: str, columns: tuple[Column, ...]) -> Group:
    found = [metrics for _, metrics, _ in data.results(evaluation)]
    sizes = sorted({metrics.n for metrics in found})
    title = f"{evaluation} (n = {' or '.join(map(str, sizes)) or 0})"
    known = any(metrics.ece_true is not None for metrics in found)
    return Group(title, columns + KNOWN_TRUTH if known else columns)


def _row(data: ReportData, model: str, groups: Sequence[Group]) -> Row:
    def cell(evaluation: str, column: Column) -> Cell:
        metrics = data.metrics.get((evaluation, model))
        text = column.text(None if metrics is None else column.value(metrics))
        return Cell(text, model in best_students(data, evaluation, column))

    cells = tuple(
        tuple(cell(evaluation, column) for column in group.columns)
        for evaluation, group in zip(data.evaluations, groups, strict=True)
    )
    return Row(model, "teacher" if model == TEACHER else "student", cells)


def _difference_row(data: ReportData, groups: Sequence[Group]) -> Row:
    found = differences(data)
    cells = tuple(
        tuple(
            Cell(column.text(found.get(evaluation, {}).get(column.key), signed=True))
            for column in group.columns
        )
        for evaluation, group in zip(data.evaluations, groups, strict=True)
    )
    return Row(DIFFERENCE, "difference", cells)
