"""The panel of shifts: what it draws, its numbers and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.metrics import summarize
from firstcli.metrics.records import EvalRecords
from firstcli.recipe.shift import Shifts
from firstcli.reporting import shift
from firstcli.reporting.data import ReportData
from firstcli.reporting.decision import decide
from firstcli.reporting.page import write_report
from firstcli.reporting.sections import sections
from firstcli.reporting.shift_tables import shift_tables, strongest, terminal_tables
from firstcli.reporting.style import save
from support.invented_report import EVIL, answers, report

SHIFTS = Shifts(typos=(0.1, 0.2), wording=("{prompt}",))


def shifted(evaluation: str = "csqa", **changes: Any) -> ReportData:
    """Return a report in which a quarter of the right answers is lost at each shift."""
    base = report()
    shifts = {each.name_of(evaluation): each for each in SHIFTS.each()}
    records = dict(base.records)
    for number, name in enumerate(shifts, 1):
        for row, right in (("teacher", 180), ("fine-tune", 140), ("first", 160)):
            records[name, row] = answers(0.9 - 0.05 * number, int(right * 0.75**number))
        same = answers(0.7, int(140 * 0.75**number), post_hoc=True)
        records[name, "fine-tune+T"] = same
    return report(**({"records": records, "shifts": {evaluation: shifts}} | changes))


def random_records(seed: int) -> EvalRecords:
    draw = np.random.default_rng(seed)
    rows = np.log(draw.dirichlet(np.ones(4), 80))
    ids = [f"q{i}" for i in draw.permutation(80)]
    return EvalRecords.from_log_probs(ids, draw.integers(0, 4, 80).tolist(), rows.tolist())


def test_there_is_a_panel_for_each_kind() -> None:
    drawing = shift.drawing(shifted(), "csqa")
    assert drawing and [panel.title for panel in drawing.panels] == [
        "Typing errors, csqa",
        "Other wordings, csqa",
    ]
    assert "accuracy of first 80.0 to 45.0" in drawing.panels[0].description
    assert "confidence of first 85.0 to 80.0" in drawing.panels[0].description
    assert "accuracy of fine-tune + T" not in drawing.panels[0].description  # that of fine-tune
    assert "confidence of fine-tune + T" in drawing.panels[0].description
    assert drawing.key and "fine-tune + T" in drawing.key.description
    assert shift.drawing(shifted(), "world") is None
    assert shift.drawing(report(), "csqa") is None


def test_the_numbers_are_those_of_the_records() -> None:
    data = shifted()
    drawing = shift.drawing(data, "csqa")
    assert drawing
    values = {(row[0], row[1]): row[2:] for row in drawing.numbers.rows}
    titles = {"as it is": "csqa", "typos 10 %": "csqa~typos-0.1", "wording 1": "csqa~wording-1"}
    for title, name in titles.items():
        found = summarize(data.records[name, "first"], "candidates", 10)
        accuracy, low, high, confidence, *ends = values[title, "first"]
        assert accuracy == found.accuracy and low < accuracy < high
        assert confidence == pytest.approx(found.confidence)
        assert ends == pytest.approx([found.confidence] * 2)  # all are equal
    assert values["typos 10 %", "distill"] == (None,) * 6  # it was not evaluated


def test_seeds_are_averaged_question_by_question() -> None:
    runs = [random_records(seed) for seed in (1, 2)]
    data = report(
        members={"first": ("first@1", "first@2")},
        evaluations=["csqa"],
        records={("csqa", f"first@{i + 1}"): each for i, each in enumerate(runs)},
    )
    found = shift.mean_confidence(data, "csqa", "first")
    by_id = [dict(zip(r.ids, r.probabilities.max(axis=1), strict=True)) for r in runs]
    each = [(by_id[0][id] + by_id[1][id]) / 2 for id in by_id[0]]
    error = 1.959964 * np.std(each, ddof=1) / np.sqrt(80)
    assert found and found.value == pytest.approx(np.mean(each))
    expected = (np.mean(each) - error, np.mean(each) + error)
    assert found.interval == pytest.approx(expected, abs=1e-6)


def test_lines_without_a_right_answer_are_compared_with_chance(tmp_path: Path) -> None:
    shifts = {each.name_of("none"): each for each in Shifts(case=(0.5,)).each()}
    records = {(name, "first"): answers(0.6, 0, answerable=False) for name in ("none", *shifts)}
    data = report(evaluations=["none"], records=records, shifts={"none": shifts})
    drawing = shift.drawing(data, "none")
    assert drawing and "accuracy" not in drawing.panels[0].description
    svg = save(drawing, tmp_path)[0].svg.decode()
    assert "1 / n = 33.3 %" in svg
    tables = [*terminal_tables(data)]
    assert [group.headings for group in tables[0].groups] == [("Conf.",)] * 2
    (row,) = (row for row in tables[1].rows if row.name == "first")
    assert [cell.text for cell in row.groups[0]] == ["60.0", "33.3"]


def test_the_terminal_shows_the_strongest_shift_of_each_kind() -> None:
    shifts = {
        each.name_of("a"): each
        for each in Shifts(typos=(0.3, 0.1), case=(0.2,), wording=("{prompt}", "x {prompt}")).each()
    }
    assert [*strongest(shifts)] == ["a~typos-0.3", "a~case-0.2", "a~wording-1", "a~wording-2"]
    (table,) = terminal_tables(shifted())
    assert [group.title for group in table.groups] == ["as it is", "typos 20 %", "wording 1"]
    (row,) = (row for row in table.rows if row.name == "first")
    assert [[cell.text for cell in cells] for cells in row.groups] == [
        *(["80.0", "85.0"], ["45.0", "80.0"], ["33.5", "75.0"])
    ]


def test_the_table_has_trust_and_ece_under_each_shift() -> None:
    (table,) = shift_tables(shifted())
    assert [group.title for group in table.groups] == [
        "accuracy",
        "mean confidence",
        "ECE",
        "Trust",
    ]
    assert [row.name for row in table.rows] == ["as it is", "typos 10 %", "typos 20 %", "wording 1"]
    column = table.groups[3].headings.index("first")
    cell = table.rows[1].groups[3][column]
    assert cell.text == "35.0" and cell.interval  # accuracy 60, confidence 85


def test_captions_state_changed_prompts_and_unequal_questions() -> None:
    data = shifted(changed={"csqa~typos-0.1": 0.124, "csqa~typos-0.2": 1.0})
    (table,), (narrow,) = shift_tables(data), terminal_tables(data)
    assert table.caption.endswith("; prompts changed: 12 % (typos 10 %), 100 % (typos 20 %)")
    assert narrow.caption.endswith("; prompts changed: 100 % (typos 20 %)")
    records = {**data.records, ("csqa~typos-0.1", "first"): random_records(1)}
    (table,), (narrow,) = (
        [*each(shifted(records=records))] for each in (shift_tables, terminal_tables)
    )
    count = len(data.records["csqa", "first"])
    assert f": {count} (as it is), 80 (typos 10 %), {count} (typos 20 %)" in table.caption
    assert "not the same questions" not in narrow.caption  # which does not show typos 10 %


def test_shifts_change_nothing_else_of_the_report() -> None:
    """No test, no decision and no main table knows them."""
    plain, data = report(), shifted()
    assert data.judged == plain.judged and data.tests == plain.tests
    assert decide(data).to_json() == decide(plain).to_json()
    for row in data.rows:
        assert data.estimates("csqa", row) == plain.estimates("csqa", row)
    ids = {section.id for section in sections(data, decide(data))}
    assert ids - {section.id for section in sections(plain, decide(plain))} == {"shift"}


def test_names_are_escaped(tmp_path: Path) -> None:
    base = shifted()
    records = {
        (name, EVIL if model == "first" else model): each
        for (name, model), each in base.records.items()
    }
    members = {
        EVIL if row == "first" else row: (EVIL,) if row == "first" else models
        for row, models in base.members.items()
    }
    data = shifted(records=records, members=members)
    write_report(tmp_path, data)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert EVIL not in page and "&lt;script&gt;" in page and 'id="shift"' in page
