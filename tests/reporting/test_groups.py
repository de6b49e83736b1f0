"""Groups of questions in a report, and reports of many evaluations."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.metrics import summarize
from firstcli.metrics.groups import group_scores
from firstcli.metrics.records import EvalRecords
from firstcli.reporting import data, page
from firstcli.reporting.data import ReportData
from firstcli.reporting.decision import decide
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.groups import group_tables
from firstcli.reporting.sections import Section, sections
from firstcli.reporting.style import Picture
from firstcli.reporting.table import paper_table
from firstcli.reporting.terminal import Table
from support.invented_report import EVIL, answers, report, sample

ROWS = ("teacher", "fine-tune", "first")


def random_records(seed: int, n: int, groups: int | None, scope: Any = "vocabulary") -> EvalRecords:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(n, 4))
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)) - 0.01
    names = None if groups is None else [f"s{random.integers(groups):02}" for _ in range(n)]
    return EvalRecords.from_log_probs(
        [f"q{i}" for i in range(n)],
        random.integers(4, size=n).tolist(),
        list(log_probs),
        groups=names,
        scope=scope,
    )


def grouped_report(**changes: Any) -> ReportData:
    records = {("mmlu", row): random_records(i, 90, 3) for i, row in enumerate(ROWS)}
    shared = records["mmlu", "teacher"].groups
    records = {
        key: EvalRecords.from_log_probs(r.ids, r.answer.tolist(), list(r.log_probs), groups=shared)
        for key, r in records.items()
    }
    content = {"members": {row: (row,) for row in ROWS}, "evaluations": ["mmlu"]}
    return report(**(content | {"records": records} | changes))


def test_a_report_with_groups_shows_macro_averages_and_each_group() -> None:
    content = grouped_report()
    table = paper_table(content)
    assert [group.title for group in table.groups] == ["mmlu (n = 90)", "mmlu, mean of 3 groups"]
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table
    scores = content.group_scores["mmlu", "first"]
    ece, accuracy, trust = table.rows[2].groups[1]
    assert accuracy.text == f"{100 * scores.accuracy.mean():.1f}"
    assert scores.ece is not None and ece.text == f"{100 * scores.ece.mean():.1f}"
    assert scores.null is not None and ece.aside == (f"null {100 * scores.null:.1f}",)
    assert not ece.interval and not ece.marked  # a macro average has no interval
    assert trust.text == f"{100 * (scores.accuracy.mean() - scores.ece.mean()):.1f}"
    change = table.rows[3].groups[1][1]
    others = content.group_scores["mmlu", "fine-tune"]
    assert change.text == f"{100 * (scores.accuracy.mean() - others.accuracy.mean()):+.1f}"
    (groups,) = group_tables(content)
    assert [row.name for row in groups.rows[:2]] == [
        "all 90 questions (micro)",
        "mean of 3 groups (macro)",
    ]
    first = groups.rows[2]
    assert first.name == f"s00 (n = {scores.sizes[0]})"
    assert first.groups[2][0].text == f"{100 * scores.accuracy[0]:.1f}"
    assert "# Groups of mmlu" in to_markdown(content) and "small groups" in to_markdown(content)


def test_files_hold_macro_averages_and_groups_at_full_precision() -> None:
    content = grouped_report()
    scores = content.group_scores["mmlu", "first"]
    stored = [line for line in json.loads(to_json(content))["groups"] if line["model"] == "first"]
    assert [line.get("group") for line in stored] == [None, "s00", "s01", "s02"]
    assert stored[0]["average"] == "macro"
    assert stored[0]["accuracy"] == pytest.approx(scores.accuracy.mean(), abs=1e-15)
    assert stored[2]["accuracy"] == scores.accuracy[1] and stored[2]["n"] == scores.sizes[1]
    lines = list(csv.DictReader(io.StringIO(to_csv(content))))
    macro = [line for line in lines if line["average"] == "macro"]
    assert [line["model"] for line in macro] == list(ROWS)
    assert float(macro[2]["accuracy"]) == stored[0]["accuracy"]
    assert sum(line["group"] == "s01" for line in lines) == len(ROWS)


def test_without_groups_nothing_is_added() -> None:
    content = report()
    assert "average" not in to_csv(content).splitlines()[0].split(",")
    assert json.loads(to_json(content))["groups"] == [] and not group_tables(content)
    assert {group.average for group in paper_table(content).groups} == {"micro"}


def test_an_unknown_confidence_leaves_accuracy() -> None:
    records = random_records(0, 60, 2, scope="candidates")
    scores = group_scores(records, "full", 10)
    assert scores is not None and scores.ece is None and scores.macro.ece is None
    settings = report().settings.model_copy(update={"confidence": "full"})
    content = grouped_report(records={("mmlu", "first"): records}, settings=settings)
    (table,) = group_tables(content)
    assert [cell.text for cell in table.rows[1].groups[0]] == [
        f"{100 * scores.macro.accuracy:.1f}",
        "–",
    ]


def many(evaluations: int, rows: int) -> ReportData:
    names = [f"subject-{i}" for i in range(evaluations)]
    models = [f"m{i}" for i in range(rows)]
    content = answers(0.8, 20, n=30)
    return report(
        members={model: (model,) for model in models},
        evaluations=names,
        records={(name, model): content for name in names for model in models},
        questions={name: [sample("q0001", f"Is it? {name}")] for name in names},
    )


@pytest.mark.parametrize(
    ("evaluations", "rows", "shown"), [(10, 4, 10), (5, 8, 5), (57, 4, 4), (57, 8, 2), (2, 30, 1)]
)
def test_figures_are_bounded(evaluations: int, rows: int, shown: int) -> None:
    content = many(evaluations, rows)
    assert content.illustrated == [f"subject-{i}" for i in range(shown)]


def test_sections_have_figures_of_the_first_evaluations_only() -> None:
    names = [f"subject-{i}" for i in range(2)]
    content = many(6, 8)
    for section in sections(content, decide(content)):
        assert [heading for heading, _ in section.drawings] in (names, [])


def test_a_page_of_57_evaluations_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing takes seconds; the largest panel of the real page has 24 kB.
    picture = Picture(b"x" * 24_000, "", 1, 1)
    monkeypatch.setattr(data, "summarize", cache(summarize))  # all records are the same
    monkeypatch.setattr(page, "save", lambda drawing, _: [picture] * len(drawing.panels))
    page.write_report(tmp_path, many(57, 4))
    html = (tmp_path / "index.html").read_text("utf-8")
    assert len(html.encode()) < 3_000_000
    assert "Figures and single questions are shown for the first 4 of 57 evaluations" in html
    assert "Is it? subject-3" in html and "Is it? subject-4" not in html
    # accuracy against ECE, differences, reliability, risk and coverage, ranks
    assert html.count("<img") == 4 * (1 + 3 + 4 + 1 + 4)


def test_names_of_groups_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "overview", lambda _: [])
    monkeypatch.setattr(
        page,
        "sections",
        lambda data, _: [Section("groups", "Groups", "", tables=group_tables(data))],
    )
    records = EvalRecords.from_log_probs(
        ["a", "b"], [0, 1], [[-0.5, -1.5]] * 2, groups=[EVIL, "plain"]
    )
    page.write_report(tmp_path, grouped_report(records={("mmlu", "first"): records}))
    html = (tmp_path / "index.html").read_text("utf-8")
    assert EVIL not in html and "&lt;script&gt;" in html and 'id="groups"' in html
