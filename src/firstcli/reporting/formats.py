"""The results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from statistics import fmean

from firstcli.api import JSON
from firstcli.metrics import METRICS, reliability_bins
from firstcli.reporting import groups as question_groups
from firstcli.reporting.data import BASELINES, COMPARED, ComparisonTest, ReportData
from firstcli.reporting.shift_tables import shift_tables
from firstcli.reporting.style import Numbers
from firstcli.reporting.table import (
    best_keys,
    difference_tables,
    full_tables,
    paper_table,
)
from firstcli.reporting.terminal import INDISTINCT, Cell, Table
from firstcli.reporting.thresholds import promise_tables, promises_as_json

FORMAT = 2  # of table.json
MACRO_REMARK = (
    "The macro ECE is the mean of the groups' ECEs; small groups make it larger, because chance "
    "opens larger gaps in them"
)


def to_markdown(data: ReportData) -> str:
    """Return the tables and notes as one Markdown document."""
    paper = paper_table(data)
    no_intervals = f"{data.definition}; in percent; means over groups have no intervals"
    parts = [f"# {escape_markdown(paper.title)}"]
    for table in paper.by_group():
        if table.groups[0].average == "macro":
            table = replace(table, caption=no_intervals, legend="")
        parts.append(_markdown_table(table))
    for table in question_groups.group_tables(data):
        body = _markdown_table(replace(table, caption=f"{table.caption}. {MACRO_REMARK}"))
        parts += [f"## {escape_markdown(table.title)}", body]
    further = (*promise_tables(data), *difference_tables(data), *shift_tables(data))
    for table in (*further, *full_tables(data)):
        parts += [f"## {escape_markdown(table.title)}", *map(_markdown_table, table.by_group())]
    if data.notes:
        notes = (f"- {escape_markdown(label)}: {escape_markdown(v)}" for label, v in data.notes)
        parts += ["## Notes", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#$~&])", r"\\\1", " ".join(text.split()))


def to_csv(data: ReportData) -> str:
    """Return one line per evaluation and row, followed by one line per difference.

    If questions have groups, their macro averages and the groups follow, and two more columns tell
    the lines apart. Values are means over the seeds; shares are fractions of 1.
    """
    settings = {"confidence_kind": data.settings.confidence, "bins": data.settings.bins}
    names = ["evaluation", "model", "minus", "seeds", *METRICS]
    names += ["average", "group"] if data.grouped else []
    names += [f"{key}_{end}" for key in COMPARED for end in ("low", "high", "sd")]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*names, *settings, "best"], lineterminator="\n")
    writer.writeheader()
    for evaluation in data.evaluations:
        for row in data.rows:
            if models := data.models(evaluation, row):
                line: dict[str, JSON] = {"evaluation": evaluation, "model": row}
                line |= {"seeds": len(models), "best": " ".join(best_keys(data, evaluation, row))}
                line |= {name: data.mean(evaluation, row, name) for name in METRICS}
                for key, estimate in data.estimates(evaluation, row).items():
                    line[f"{key}_low"], line[f"{key}_high"] = estimate.interval
                    line[f"{key}_sd"] = data.spread(evaluation, row, key)
                writer.writerow(line | settings)
    for evaluation, ours, theirs in _pairs(data):
        line = {"evaluation": evaluation, "model": ours, "minus": theirs}
        for key, compared in data.compared(evaluation, ours, theirs).items():
            low, high = compared.questions.interval
            line |= {key: compared.questions.value, f"{key}_low": low, f"{key}_high": high}
        writer.writerow(line | settings)
    for line in (line for evaluation in data.grouped for line in _group_lines(data, evaluation)):
        writer.writerow(line | settings)
    return file.getvalue()


def _group_lines(data: ReportData, evaluation: str) -> Iterator[dict[str, JSON]]:
    """Yield the macro averages of each row, followed by its metrics on each group."""
    sizes = question_groups.sizes(data, evaluation)
    for row in data.rows:
        if not (seeds := question_groups.scores(data, evaluation, row)):
            continue
        line = {"evaluation": evaluation, "model": row, "seeds": len(seeds)}
        macro = question_groups.macro
        averages = {m.name: macro(data, evaluation, row, m.name) for m in question_groups.MACRO}
        means: dict[str, JSON] = {
            name: fmean(values) for name, values in averages.items() if values
        }
        means |= {"ece_null": question_groups.null(data, evaluation, row)}
        yield {**line, "average": "macro", "n": sum(sizes.values()), **means}
        for group, n in sizes.items():
            yield {
                **line,
                "group": group,
                "n": n,
                **question_groups.of_group(data, evaluation, row, group),
            }


def to_json(data: ReportData, figures: Mapping[str, Numbers] | None = None) -> str:
    """Return all metrics and reliability bins at full precision; shares are fractions of 1.

    Args:
        data: the report.
        figures: the numbers of the report's figures, by file name.
    """
    content: dict[str, JSON] = {
        "format": FORMAT,
        "run": data.run,
        "confidence": data.settings.confidence,
        "candidates": data.settings.candidates,
        "bins": data.settings.bins,
        "unit": "fraction",
        "tests": len(data.p_values),
        "correction": data.settings.correction,
        "seeds": list(data.seeds),
        "rows": [
            _json_row(data, evaluation, row, models)
            for evaluation in data.evaluations
            for row in data.rows
            if (models := data.models(evaluation, row))
        ],
        "groups": [line for evaluation in data.grouped for line in _group_lines(data, evaluation)],
        "differences": [_json_difference(data, *pair) for pair in _pairs(data)],
        **promises_as_json(data),
        "notes": [{"label": label, "value": value} for label, value in data.notes],
        "versions": dict(data.versions),
        "figures": {name: asdict(numbers) for name, numbers in (figures or {}).items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_row(data: ReportData, evaluation: str, row: str, models: list[str]) -> dict[str, JSON]:
    estimates = data.estimates(evaluation, row)
    return {
        "evaluation": evaluation,
        "model": row,
        **{name: data.mean(evaluation, row, name) for name in METRICS},
        "intervals": {key: list(estimate.interval) for key, estimate in estimates.items()},
        "spread": {key: data.spread(evaluation, row, key) for key in estimates},
        "best": best_keys(data, evaluation, row),
        "members": [_json_member(data, evaluation, model) for model in models],
    }


def _json_member(data: ReportData, evaluation: str, model: str) -> dict[str, JSON]:
    records = data.records[evaluation, model]
    shown = records.shown(data.settings.confidence) if records.answerable else None
    bins = [] if shown is None else reliability_bins(shown, records.correct, data.settings.bins)
    metrics = asdict(data.metrics[evaluation, model])
    return {"model": model, **metrics, "reliability": [b._asdict() for b in bins]}


def _json_difference(data: ReportData, evaluation: str, ours: str, theirs: str) -> dict[str, JSON]:
    differences = {
        key: {
            "value": compared.questions.value,
            "interval": list(compared.questions.interval),
            "seeds_interval": list(compared.seeds.interval) if compared.seeds else None,
            "seeds_p_value": compared.seeds.p_value if compared.seeds else None,
            "p_value": compared.p_value,
            "corrected_p_value": data.p_values[
                ComparisonTest(evaluation, frozenset((ours, theirs)), key)
            ],
            "distinguishable": data.distinguishable(evaluation, ours, theirs, key),
        }
        for key, compared in data.compared(evaluation, ours, theirs).items()
    }
    return {"evaluation": evaluation, "model": ours, "minus": theirs, **differences}


def _pairs(data: ReportData) -> list[tuple[str, str, str]]:
    """Return each (evaluation, row, baseline) that can be compared."""
    return [
        (evaluation, ours, theirs)
        for theirs in BASELINES
        for evaluation in data.judged
        for ours in data.students
        if ours != theirs and data.compared(evaluation, ours, theirs)
    ]


def _markdown_table(table: Table) -> str:
    headings = [table.head]
    for group in table.groups:  # Markdown has no column groups: the first column names the group
        first, *rest = group.headings
        headings += [f"{escape_markdown(group.title)}: {first}", *rest]
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)]]
    for row in table.rows:
        cells = [_markdown_cell(cell) for group in row.groups for cell in group]
        lines.append([escape_markdown(row.name), *cells])
    legend = f"; bold: {table.legend}" if table.legend else ""
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{escape_markdown(table.caption)}{legend}"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.marked else cell.text
    interval = cell.interval.replace("[", "\\[").replace("]", "\\]")
    return " ".join([text, interval, INDISTINCT * (INDISTINCT in cell.aside)]).strip()
