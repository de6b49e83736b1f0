"""The results as tables: the paper's Table 1, differences between its rows, and all metrics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from firstcli.metrics import METRICS, Metric
from firstcli.metrics.summary import DASH, ROUNDING
from firstcli.metrics.uncertainty import Estimate, Interval
from firstcli.reporting import groups as question_groups
from firstcli.reporting.data import BASELINES, COMPARED, ReportData
from firstcli.reporting.terminal import INDISTINCT, Cell, Group, ReportRow, RowKind, Table

ECE = METRICS["ece"]
PAPER = (ECE, METRICS["accuracy"], METRICS["trust"])
NARROW = (METRICS["accuracy"], ECE, METRICS["trust"])
KNOWN_TRUTH = (METRICS["ece_true"], METRICS["confidence_mae"])
FAMILIES = {
    "Calibration": (
        *("ece", "ece_null", "ece_p", "ece_debiased", "ece_mass", "ece_classwise", "ece_smooth"),
        *("mce", "over_confidence", "under_confidence"),
    ),
    "Known truth": ("ece_true", "confidence_mae"),
    "Scores": (
        *("accuracy", "trust", "confidence", "nll", "brier", "brier_top"),
        *("brier_miscalibration", "brier_discrimination", "brier_uncertainty"),
    ),
    "Ranking": ("auroc", "aurc", "accuracy_at_50", "accuracy_at_80", "accuracy_at_90"),
    "Counts": ("n", "candidate_mass", "chance", "ties", "nll_floored", "bins_used"),
}
"""The metrics of the full tables, by column group."""


def paper_table(data: ReportData) -> Table:
    """Return the paper's Table 1 of a run: one row per model, one column group per evaluation."""
    groups = tuple(group for name in data.judged for group in _paper_groups(data, name))
    rows = _rows(data, groups, annotated=True)
    ours, theirs = data.method, "fine-tune"  # the paper's last row is their difference
    if any(data.compared(evaluation, ours, theirs) for evaluation in data.judged):
        rows.append(_difference_row(data, ours, theirs, groups, f"{ours} to {theirs}"))
    seeds = "; ± standard deviation over seeds" if data.several_seeds else ""
    intervals = f"in percent, with 95 % intervals over questions{seeds}"
    caption = f"{data.definition}; {intervals}; {data.tests}{data.by_agreement}"
    legend = _legend(data, rows[-1].kind == "difference")
    return Table(f"Results of {data.run}", caption, legend, groups, tuple(rows))


def narrow_table(data: ReportData, shipped: Collection[str], evaluation: str) -> Table:
    """Return accuracy, ECE and Trust on one evaluation, each with half the width of its interval.

    Args:
        data: the report.
        shipped: the rows to point out.
        evaluation: the evaluation's name.
    """
    names = [metric.name for metric in NARROW]
    group = replace(_paper_group(data, evaluation), metrics=tuple(names))
    group = replace(group, headings=tuple(metric.heading for metric in NARROW))
    best = {metric: best_students(data, evaluation, metric) for metric in NARROW}
    rows = []
    for row in data.rows:
        estimates = data.estimates(evaluation, row)
        cells = []
        for metric in NARROW:
            text = metric.text(data.mean(evaluation, row, metric.name))
            estimate = estimates.get(metric.name)
            cells.append(Cell(text, row in best[metric], _half(estimate) if estimate else ""))
        kind: RowKind = "student" if row in data.students else "teacher"
        rows.append(ReportRow(row, "shipped" if row in shipped else kind, (tuple(cells),)))
    title = f"Accuracy, ECE and Trust on {evaluation}"
    caption = f"in percent, ± half of the 95 % interval{data.by_agreement}"
    return Table(title, caption, "", (group,), tuple(rows))


def overview_table(data: ReportData, shipped: Collection[str]) -> Table:
    """Return the narrow tables of all evaluations side by side."""
    tables = [narrow_table(data, shipped, name) for name in data.judged]
    rows = tuple(
        replace(first, groups=tuple(each.groups[0] for each in (first, *others)))
        for first, *others in zip(*(table.rows for table in tables), strict=True)
    )
    groups = tuple(table.groups[0] for table in tables)
    caption = tables[0].caption if tables else ""
    return Table(f"Results of {data.run}", caption, "", groups, rows)


def _half(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"±{50 * (high - low):.1f}"


def difference_tables(data: ReportData) -> list[Table]:
    """Return the differences between each student and each baseline of the recipe."""
    if len(data.students) < 2 or not data.judged:
        return []
    groups = tuple(_paper_group(data, name, compared_only=True) for name in data.judged)
    return [
        Table(
            f"Each student minus {theirs}",
            f"{data.definition}; percentage points, with paired 95 % intervals; {data.tests}",
            "distinguishable from zero",
            groups,
            tuple(
                _difference_row(data, ours, theirs, groups, ours)
                for ours in data.students
                if ours != theirs
            ),
        )
        for theirs in BASELINES
        if theirs in data.rows
    ]


def full_tables(data: ReportData) -> list[Table]:
    """Return all metrics of all rows, one table per evaluation."""
    mean = "; means over seeds; p is the largest of all seeds" if data.several_seeds else ""
    caption = f"{data.definition}; in percent, except scores and areas{mean}{data.by_agreement}"
    tables = []
    for evaluation in data.evaluations:
        known = {
            name for name in METRICS if any(data.values(evaluation, row, name) for row in data.rows)
        }
        groups = tuple(
            _group(title, evaluation, kept)
            for title, names in FAMILIES.items()
            if (kept := [name for name in names if name in known])
        )
        rows = tuple(_rows(data, groups, annotated=False))
        tables.append(Table(f"All metrics on {evaluation}", caption, _legend(data), groups, rows))
    return tables


def _group(title: str, evaluation: str, names: Sequence[str]) -> Group:
    return Group(title, evaluation, tuple(names), tuple(METRICS[name].heading for name in names))


def best_students(data: ReportData, evaluation: str, metric: Metric) -> frozenset[str]:
    """Return the best student and all students that are not distinguishable from it.

    The result is empty where no student stands out, because all are level or there is only one,
    and for a metric without intervals.
    """
    best = data.best(evaluation, metric.name)
    if best is None:
        return frozenset()
    means = {row: data.mean(evaluation, row, metric.name) for row in data.students}
    values = {row: mean for row, mean in means.items() if mean is not None}

    def equal(row: str) -> bool:
        return abs(values[row] - values[best]) <= ROUNDING

    def tested(row: str) -> bool:
        return metric.name in data.compared(evaluation, row, best)

    def level(row: str) -> bool:
        return equal(row) or not data.distinguishable(evaluation, row, best, metric.name)

    ranked = [row for row in values if equal(row) or tested(row)]
    alike = frozenset(filter(level, ranked))
    return alike if len(alike) < len(ranked) else frozenset()


def undecided(data: ReportData) -> str:
    """Return a sentence on the metrics in which no student stands out, empty if there are none."""
    if len(data.students) < 2:
        return ""
    names: dict[str, list[str]] = {}
    for evaluation in data.judged:
        for metric in PAPER:
            if data.best(evaluation, metric.name) and not best_students(data, evaluation, metric):
                names.setdefault(metric.title, []).append(evaluation)
    found = [f"{title} on {_counted(names[title], data.judged)}" for title in names]
    return f"No student stands out in {'; '.join(found)}." if found else ""


def _counted(some: Sequence[str], every: Sequence[str]) -> str:
    if len(some) <= 3:
        return " and ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)
    return f"{len(some)} of {len(every)} evaluations"


def best_keys(data: ReportData, evaluation: str, row: str) -> list[str]:
    """Return the metrics in which a row is marked."""
    metrics = (*PAPER, *KNOWN_TRUTH)
    return [m.name for m in metrics if row in best_students(data, evaluation, m)]


def _legend(data: ReportData, deltas: bool = False) -> str:
    best = "the best student and all not distinguishable from it, unless these are all students"
    more = "; for a difference: distinguishable from zero" if deltas else ""
    return best + more if len(data.students) > 1 else ""


def _paper_groups(data: ReportData, evaluation: str) -> list[Group]:
    """Return the columns of all questions and, if they have groups, those of the macro averages."""
    micro = _paper_group(data, evaluation)
    if evaluation not in data.grouped:
        return [micro]
    metrics = [metric.name for metric in PAPER]
    title = f"{evaluation}, mean of {len(question_groups.sizes(data, evaluation))} groups"
    return [micro, replace(_group(title, evaluation, metrics), average="macro")]


def _paper_group(data: ReportData, evaluation: str, *, compared_only: bool = False) -> Group:
    """Return the paper's metrics, those of a known truth, and the number of questions."""
    models = [model for row in data.rows for model in data.models(evaluation, row)]
    values = [data.metrics[evaluation, model] for model in models]
    sizes = sorted({m.n for m in values})
    title = f"{evaluation} (n = {' or '.join(map(str, sizes)) or 0})"
    known = any(m.ece_true is not None for m in values)
    names = [metric.name for metric in ((*PAPER, *KNOWN_TRUTH) if known else PAPER)]
    kept = [name for name in names if name in COMPARED] if compared_only else names
    return _group(title, evaluation, kept)


def _rows(data: ReportData, groups: Sequence[Group], *, annotated: bool) -> list[ReportRow]:
    columns = [
        [_column(data, group, METRICS[name], annotated) for name in group.metrics]
        for group in groups
    ]
    return [
        ReportRow(
            row,
            "student" if row in data.students else "teacher",
            tuple(tuple(cells[row] for cells in group) for group in columns),
        )
        for row in data.rows
    ]


def _column(data: ReportData, group: Group, metric: Metric, annotated: bool) -> dict[str, Cell]:
    if group.average == "macro":
        return {row: question_groups.cell(data, group.evaluation, row, metric) for row in data.rows}
    best = best_students(data, group.evaluation, metric)
    return {
        row: _cell(data, group.evaluation, row, metric, marked=row in best, annotated=annotated)
        for row in data.rows
    }


def _cell(
    data: ReportData, evaluation: str, row: str, metric: Metric, *, marked: bool, annotated: bool
) -> Cell:
    text = metric.text(data.mean(evaluation, row, metric.name))
    if not annotated:
        return Cell(text, marked)
    spread = data.spread(evaluation, row, metric.name)
    if spread is not None:
        text = f"{text} ± {metric.text(spread)}"
    estimate = data.estimates(evaluation, row).get(metric.name)
    interval = range_text(metric, estimate.interval) if estimate else ""
    return Cell(text, marked, interval, _null(data, evaluation, row) if metric is ECE else ())


def _null(data: ReportData, evaluation: str, row: str) -> tuple[str, ...]:
    """Return the ECE that a perfectly calibrated model would show, and the p-value."""
    null, p_value = (data.mean(evaluation, row, key) for key in ("ece_null", "ece_p"))
    if null is None or p_value is None:
        return ()
    return (f"null {ECE.text(null)}, {p_text(p_value)}",)


def p_text(p: float) -> str:
    """Format a p-value with three decimals."""
    return "p < .001" if p < 0.001 else f"p = {f'{p:.3f}'.removeprefix('0')}"


def range_text(metric: Metric, interval: Interval, *, signed: bool = False) -> str:
    """Format an interval of a metric or, with signs, of a difference."""
    low, high = (metric.text(end, signed=True) for end in interval)
    if not signed:
        low, high = low.removeprefix("+"), high.removeprefix("+")
    return f"[{low}, {high}]"


def _difference_row(
    data: ReportData, ours: str, theirs: str, groups: Sequence[Group], name: str
) -> ReportRow:
    cells = tuple(
        tuple(
            question_groups.difference_cell(data, group.evaluation, ours, theirs, METRICS[m])
            if group.average == "macro"
            else _difference_cell(data, group.evaluation, ours, theirs, METRICS[m])
            for m in group.metrics
        )
        for group in groups
    )
    return ReportRow(name, "difference", cells)


def _difference_cell(
    data: ReportData, evaluation: str, ours: str, theirs: str, metric: Metric
) -> Cell:
    difference = data.compared(evaluation, ours, theirs).get(metric.name)
    if metric.name == "accuracy" and data.same_answers(evaluation, ours, theirs):
        return Cell("same", aside=("answers",))
    if difference is None:
        return Cell(DASH)
    value = difference.questions.value
    better = (value > 0) == (metric.better == "higher")
    marked = data.distinguishable(evaluation, ours, theirs, metric.name)
    verdict = ("better" if better else "worse") if marked else INDISTINCT
    seeds = (f"seeds {p_text(difference.seeds.p_value)}",) if difference.seeds else ()
    return Cell(
        text=metric.text(value, signed=True),
        marked=marked,
        interval=range_text(metric, difference.questions.interval, signed=True),
        aside=(*seeds, verdict),
    )
