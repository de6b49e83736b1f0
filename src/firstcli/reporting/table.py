"""The results as tables: the paper's Table 1, differences between its rows, and every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from firstcli.reporting import BASELINES, Compared, ReportData

if TYPE_CHECKING:
    from firstcli.metrics.uncertainty import Interval

DASH = "–"  # where a model was not evaluated
INDISTINCT = "not distinguishable"
_ROUNDING = 1e-12  # metrics closer than this differ by rounding alone
_DELTAS = ("first", "fine-tune")  # the paper's last row is the former minus the latter


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

    def text(self, value: float | None, *, signed: bool = False) -> str:
        """Format a value; `signed` is for differences."""
        if value is None:
            return DASH
        if self.form == "count":
            return f"{value:.6g}"  # over seeds a mean
        shown, digits = (100 * value, 1) if self.form == "percent" else (value, 3)
        text = f"{shown:z.{digits}f}"
        if not float(text):  # a tiny share is not shown as 0.0, unless rounding made it
            return text if signed or abs(value) < _ROUNDING else f"{shown:.1g}"
        return f"+{text}" if signed and shown > 0 else text

    def range(self, interval: Interval, *, signed: bool = False) -> str:
        low, high = (self.text(end, signed=True) for end in interval)
        if not signed:
            low, high = low.removeprefix("+"), high.removeprefix("+")
        return f"[{low}, {high}]"


ECE = Column("ece", "ECE", "percent", "lower")
PAPER = (
    ECE,
    Column("accuracy", "Acc", "percent", "higher"),
    Column("trust", "Trust", "percent", "higher"),
)
KNOWN_TRUTH = (
    Column("ece_true", "ECE true", "percent", "lower"),
    Column("confidence_mae", "Conf. MAE", "percent", "lower"),
)
FAMILIES: dict[str, tuple[Column, ...]] = {
    "Calibration": (
        ECE,
        Column("ece_null", "Null", "percent"),
        Column("ece_p", "p", "decimal"),
        Column("ece_debiased", "Debiased", "percent", "lower"),
        Column("ece_mass", "Equal mass", "percent", "lower"),
        Column("ece_classwise", "Classwise", "percent", "lower"),
        Column("ece_smooth", "Smooth", "percent", "lower"),
        Column("mce", "Max.", "percent", "lower"),
        Column("over_confidence", "Over", "percent", "lower"),
        Column("under_confidence", "Under", "percent", "lower"),
    ),
    "Known truth": KNOWN_TRUTH,
    "Scores": (
        *PAPER[1:],
        Column("confidence", "Conf.", "percent"),
        Column("nll", "NLL", "decimal", "lower"),
        Column("brier", "Brier", "decimal", "lower"),
        Column("brier_top", "Brier top", "decimal", "lower"),
        Column("brier_miscalibration", "Miscal.", "decimal", "lower"),
        Column("brier_discrimination", "Discr.", "decimal", "higher"),
        Column("brier_uncertainty", "Uncert.", "decimal"),
    ),
    "Ranking": (
        Column("auroc", "AUROC", "decimal", "higher"),
        Column("aurc", "AURC", "decimal", "lower"),
        Column("accuracy_at_50", "Acc at 50 %", "percent", "higher"),
        Column("accuracy_at_80", "at 80 %", "percent", "higher"),
        Column("accuracy_at_90", "at 90 %", "percent", "higher"),
    ),
    "Counts": (
        Column("n", "n", "count"),
        Column("candidate_mass", "Mass", "percent"),
        Column("chance", "1 / n", "percent"),
        Column("ties", "Ties", "count"),
        Column("nll_floored", "Floored", "count"),
        Column("bins_used", "Bins used", "count"),
    ),
}
COMPARED = ("ece", "accuracy", "trust", "ece_true")
"""Metrics that have intervals, so that their differences can be judged."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A formatted value with its small print."""

    text: str
    marked: bool = False
    """Among the best students; as a difference: distinguishable from none."""
    interval: str = ""
    aside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A model, or the difference of two, with a tuple of cells a group."""

    name: str
    kind: Literal["teacher", "student", "difference"]
    groups: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Some columns of one evaluation."""

    title: str
    evaluation: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column groups and rows, ready to be written in any format."""

    title: str
    caption: str
    legend: str  # what a mark says; empty where nothing is marked
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]

    def by_group(self) -> list[Table]:
        """Return a table for each column group."""
        return [self._only(g, slice(None)) for g in range(len(self.groups))]

    def split(self) -> list[Table]:
        """Return narrower tables: one a group, or else both halves of the only group's columns."""
        if len(self.groups) != 1:
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
    groups = tuple(_group(data, evaluation, PAPER) for evaluation in data.judged)
    rows = [_row(data, row, groups, small_print=True) for row in data.rows]
    ours, theirs = _DELTAS
    if any(data.compared(evaluation, ours, theirs) for evaluation in data.judged):
        rows.append(_difference_row(data, ours, theirs, groups, f"{ours} to {theirs}"))
    seeds = "; ± standard deviation over seeds" if data.several_seeds else ""
    caption = f"{data.definition}; in percent, with 95 % intervals over questions{seeds}"
    legend = _legend(data, rows[-1].kind == "difference")
    return Table(f"Results of {data.run}", caption, legend, groups, tuple(rows))


def difference_tables(data: ReportData) -> list[Table]:
    """Return, for each baseline that a recipe has, every other student minus it."""
    return [
        Table(
            title=f"Each student minus {theirs}",
            caption=f"{data.definition}; percentage points, with paired 95 % intervals",
            legend="distinguishable from no difference",
            groups=(groups := tuple(_group(data, one, PAPER, plain=True) for one in data.judged)),
            rows=tuple(
                _difference_row(data, ours, theirs, groups, ours)
                for ours in data.students
                if ours != theirs
            ),
        )
        for theirs in BASELINES
        if theirs in data.rows and len(data.students) > 1 and data.judged
    ]


def full_tables(data: ReportData) -> list[Table]:
    """Return every metric of every row, a table an evaluation."""
    mean = "; means over seeds, of p the largest" if data.several_seeds else ""
    caption = f"{data.definition}; in percent, but scores and areas as they are{mean}"
    return [
        Table(
            title=f"All metrics on {evaluation}",
            caption=caption,
            legend=_legend(data),
            groups=(groups := _families(data, evaluation)),
            rows=tuple(_row(data, row, groups, small_print=False) for row in data.rows),
        )
        for evaluation in data.evaluations
    ]


def _families(data: ReportData, evaluation: str) -> tuple[Group, ...]:
    """Return the families of metrics, without those that no row has."""
    known = {
        column.key
        for columns in FAMILIES.values()
        for column in columns
        if any(data.values(evaluation, row, column.key) for row in data.rows)
    }
    kept = {name: tuple(c for c in cs if c.key in known) for name, cs in FAMILIES.items()}
    return tuple(Group(name, evaluation, columns) for name, columns in kept.items() if columns)


def best_students(data: ReportData, evaluation: str, column: Column) -> frozenset[str]:
    """Return the student with the best value and all that are not distinguishable from it.

    None where nothing competes, or nothing is known of the metric's uncertainty.
    """
    found = {
        row: value
        for row in data.students
        if (value := data.mean(evaluation, row, column.key)) is not None
    }
    if column.key not in COMPARED or len(found) < 2:
        return frozenset()
    best = (min if column.better == "lower" else max)(found, key=lambda row: found[row])
    return frozenset(
        row
        for row, value in found.items()
        if abs(value - found[best]) <= _ROUNDING or _alike(data, evaluation, row, best, column.key)
    )


def best_keys(data: ReportData, evaluation: str, row: str) -> list[str]:
    """Return the metrics in which no student is distinguishably better."""
    columns = (*PAPER, *KNOWN_TRUTH)
    return [c.key for c in columns if row in best_students(data, evaluation, c)]


def _alike(data: ReportData, evaluation: str, row: str, best: str, key: str) -> bool:
    compared = data.compared(evaluation, row, best).get(key)
    return compared is not None and not compared.distinguishable


def _legend(data: ReportData, deltas: bool = False) -> str:
    best = "the best student and all that are not distinguishable from it"
    more = "; of a difference: distinguishable from none" if deltas else ""
    return best + more if len(data.students) > 1 else ""


def _group(
    data: ReportData, evaluation: str, columns: tuple[Column, ...], *, plain: bool = False
) -> Group:
    """Choose columns; `plain` leaves out those whose differences cannot be judged."""
    models = [model for row in data.rows for model in data.models(evaluation, row)]
    found = [data.metrics[evaluation, model] for model in models]
    sizes = sorted({metrics.n for metrics in found})
    title = f"{evaluation} (n = {' or '.join(map(str, sizes)) or 0})"
    known = any(metrics.ece_true is not None for metrics in found)
    columns = (*columns, *KNOWN_TRUTH) if known else columns
    kept = tuple(c for c in columns if c.key in COMPARED) if plain else columns
    return Group(title, evaluation, kept)


def _row(data: ReportData, row: str, groups: Sequence[Group], *, small_print: bool) -> Row:
    cells = tuple(
        tuple(_cell(data, group.evaluation, row, column, small_print) for column in group.columns)
        for group in groups
    )
    return Row(row, "student" if row in data.students else "teacher", cells)


def _cell(data: ReportData, evaluation: str, row: str, column: Column, small_print: bool) -> Cell:
    text = column.text(data.mean(evaluation, row, column.key))
    marked = row in best_students(data, evaluation, column)
    if not small_print:
        return Cell(text, marked)
    spread = data.spread(evaluation, row, column.key)
    if spread is not None:
        text = f"{text} ± {column.text(spread)}"
    estimate = data.estimates(evaluation, row).get(column.key)
    interval = column.range(estimate.interval) if estimate else ""
    return Cell(text, marked, interval, _null(data, evaluation, row) if column == ECE else ())


def _null(data: ReportData, evaluation: str, row: str) -> tuple[str, ...]:
    """Say what ECE a perfectly calibrated model would show, and how odd this one would be."""
    null, p_value = (data.mean(evaluation, row, key) for key in ("ece_null", "ece_p"))
    if null is None or p_value is None:
        return ()
    return (f"null {ECE.text(null)}, {p_text(p_value)}",)


def p_text(p: float) -> str:
    """Format a p-value; what is below a thousandth is not told apart."""
    return "p < .001" if p < 0.001 else f"p = {f'{p:.3f}'.removeprefix('0')}"


def _difference_row(
    data: ReportData, ours: str, theirs: str, groups: Sequence[Group], name: str
) -> Row:
    cells = tuple(
        tuple(
            _difference_cell(data.compared(group.evaluation, ours, theirs), column)
            for column in group.columns
        )
        for group in groups
    )
    return Row(name, "difference", cells)


def _difference_cell(compared: Mapping[str, Compared], column: Column) -> Cell:
    found = compared.get(column.key)
    if found is None:
        return Cell(DASH)
    value = found.questions.value
    better = (value > 0) == (column.better == "higher")
    verdict = ("better" if better else "worse") if found.distinguishable else INDISTINCT
    p_value = found.seeds.p_value if found.seeds else None
    seeds = () if p_value is None else (f"seeds {p_text(p_value)}",)
    return Cell(
        text=column.text(value, signed=True),
        marked=found.distinguishable,
        interval=column.range(found.questions.interval, signed=True),
        aside=(*seeds, verdict),
    )
