"""The report's tables: numbers, intervals and marks in every format."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from firstcli.metrics import METRICS
from firstcli.metrics.uncertainty import Interval
from firstcli.recipe.sections import MetricsSettings
from firstcli.reporting.data import ReportData
from firstcli.reporting.decision import decide, shipped_rows
from firstcli.reporting.formats import to_csv, to_json, to_markdown
from firstcli.reporting.ranks import drawing
from firstcli.reporting.table import (
    difference_tables,
    full_tables,
    narrow_table,
    overview_table,
    p_text,
    paper_table,
    range_text,
    undecided,
)
from firstcli.reporting.terminal import INDISTINCT, Cell, Table, TerminalTable, VerdictText
from support import command_line
from support.invented_report import EVIL, answers, everything, report


def shown(table: Table) -> dict[str, list[str]]:
    """Return the cells of a table by row name, the marked ones with a star."""
    return {
        row.name: [c.text + "*" * c.marked for group in row.groups for c in group]
        for row in table.rows
    }


def cells(table: Table, row: str) -> list[Cell]:
    (selected,) = (r for r in table.rows if r.name == row)
    return [cell for group in selected.groups for cell in group]


def test_the_paper_table_holds_numbers_dashes_and_differences() -> None:
    found = {row: [c.rstrip("*") for c in cs] for row, cs in shown(paper_table(report())).items()}
    # ECE, Acc, Trust of csqa; ECE, Acc, Trust, ECE true, Conf. MAE of world
    assert found == {
        "teacher": ["5.0", "90.0", "85.0", "0.0", "80.0", "80.0", "5.0", "5.0"],
        "fine-tune": ["25.0", "70.0", "45.0", "10.0", "80.0", "70.0", "15.0", "15.0"],
        "fine-tune + T": ["5.0", "70.0", "65.0", "–", "–", "–", "–", "–"],
        "distill": ["15.0", "70.0", "55.0", "–", "–", "–", "–", "–"],
        "first": ["5.0", "80.0", "75.0", "8.0", "70.0", "62.0", "3.0", "3.0"],
        "first to fine-tune": [
            *("-20.0", "+10.0", "+30.0"),
            *("-2.0", "-10.0", "-8.0", "-12.0", "–"),  # no interval of the last is known
        ],
    }


def renamed(data: ReportData, row: str, name: str) -> ReportData:
    """Return a report in which a row of a single model has a different name."""
    members = {name if each == row else each: models for each, models in data.members.items()}
    records = {
        (where, name if model == row else model): found
        for (where, model), found in data.records.items()
    }
    return report(members=members | {name: (name,)}, records=records)


def test_without_the_papers_arm_that_of_the_starters_takes_its_place() -> None:
    starter = renamed(report(), "first", "first-logit")
    assert starter.method == "first-logit"
    ours, theirs = (shown(paper_table(data)) for data in (starter, report()))
    assert ours["first-logit to fine-tune"] == theirs["first to fine-tune"]
    drawn = [drawing(data, "csqa") for data in (starter, report())]
    assert [d and [panel.title for panel in d.panels] for d in drawn] == [
        ["teacher", "fine-tune", "distill", "first-logit"],
        ["teacher", "fine-tune", "distill", "first"],
    ]
    both = report(members={**starter.members, **report().members})
    assert both.method == "first"  # the paper's arm goes first


def test_the_paper_table_names_its_confidence_and_sizes() -> None:
    table = paper_table(report(settings=MetricsSettings(confidence="full", bins=15)))
    assert (
        "confidence: full, scored: first-token, 15 bins" in table.caption
        and "95 % intervals" in table.caption
    )
    assert [group.title for group in table.groups] == ["csqa (n = 200)", "world (n = 200)"]
    assert table.groups[0].headings == ("ECE ↓", "Acc ↑", "Trust ↑")


def test_each_value_has_its_interval_and_each_ece_its_null() -> None:
    data = report()
    ece, accuracy, *_ = cells(paper_table(data), "first")
    estimate = data.estimates("csqa", "first")["ece"]
    assert (
        ece.interval == f"[{100 * estimate.interval.low:.1f}, {100 * estimate.interval.high:.1f}]"
    )
    metrics = data.metrics["csqa", "first"]
    assert metrics.ece_null is not None and metrics.ece_p is not None
    assert ece.aside == (f"null {100 * metrics.ece_null:.1f}, {p_text(metrics.ece_p)}",)
    assert accuracy.interval and not accuracy.aside


def test_metrics_of_the_whole_vocabulary_are_a_dash_with_a_post_hoc_temperature() -> None:
    data = report(settings=MetricsSettings(confidence="full"))
    assert data.metrics["csqa", "first"].confidence == pytest.approx(0.9 * 0.85)
    assert [c.text for c in cells(paper_table(data), "fine-tune + T")[:3]] == ["–", "70.0", "–"]


def test_all_students_that_are_not_distinguishable_from_the_best_are_marked() -> None:
    members = {row: (row,) for row in ("teacher", "a", "b", "c")}
    same = {
        ("csqa", "teacher"): answers(0.9, 198),
        ("csqa", "a"): answers(0.9, 180),
        ("csqa", "b"): answers(0.9, 179),  # one right answer less
        ("csqa", "c"): answers(0.9, 100),
    }
    data = report(members=members, evaluations=["csqa"], records=same)
    found = shown(paper_table(data))
    assert found["a"][1:] == ["90.0*", "90.0*"] and found["b"][1:] == ["89.5*", "89.0*"]
    assert found["c"] == ["40.0", "50.0", "10.0"]
    assert not any("*" in cell for cell in found["teacher"])
    assert "not distinguishable from it" in paper_table(data).legend
    assert not undecided(data)


def test_nothing_is_marked_where_no_student_stands_out() -> None:
    members = {row: (row,) for row in "abc"}
    right = {"a": 180, "b": 179, "c": 178}
    data = report(
        members=members,
        evaluations=["csqa", "world"],
        records={("csqa", row): answers(0.9, k) for row, k in right.items()}
        | {("world", row): answers(0.9, k) for row, k in (right | {"c": 100}).items()},
    )
    found = shown(paper_table(data))
    assert [cell.endswith("*") for cell in found["a"]] == [False, False, False, True, True, True]
    sentence = "No student stands out in ECE on csqa; accuracy on csqa; Trust on csqa."
    assert undecided(data) == sentence
    marked = {row.name for row in narrow_table(data, (), "csqa").rows if row.groups[0][0].marked}
    assert not marked


def test_the_narrow_table_has_half_widths_and_points_out_what_is_shipped() -> None:
    data = report()
    table = narrow_table(data, ("first",), "csqa")
    assert table.groups[0].headings == ("Acc ↑", "ECE ↓", "Trust ↑")
    for row in table.rows:
        estimates = data.estimates("csqa", row.name)
        halves = [np.ptp(estimates[key].interval) / 2 for key in ("accuracy", "ece", "trust")]
        assert [cell.interval for cell in row.groups[0]] == [
            f"±{100 * half:.1f}" for half in halves
        ]
    assert [row.kind for row in table.rows] == ["teacher", *["student"] * 3, "shipped"]
    both = overview_table(data, ("first",))
    assert [group.evaluation for group in both.groups] == ["csqa", "world"]
    assert both.rows[0].groups[0] == table.rows[0].groups[0]
    assert Table.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_a_temperature_cannot_change_accuracy() -> None:
    data = report()
    assert "accuracy" not in data.compared("csqa", "fine-tune + T", "fine-tune")
    cell = cells(difference_tables(data)[0], "fine-tune + T")[1]
    assert (cell.text, cell.marked, cell.aside) == ("same", False, ("answers",))
    changed = dict(data.records) | {("csqa", "fine-tune+T"): answers(0.75, 141, post_hoc=True)}
    data = report(records=changed)  # another recalibrator may change answers
    assert "accuracy" in data.compared("csqa", "fine-tune + T", "fine-tune")


def test_a_single_student_has_no_mark() -> None:
    members = {"teacher": ("teacher",), "a": ("a",)}
    same = {("csqa", m): answers(0.9, 160) for m in members}
    alone = report(members=members, evaluations=["csqa"], records=same)
    assert shown(paper_table(alone))["a"] == ["10.0", "80.0", "70.0"]
    assert not paper_table(alone).legend and not difference_tables(alone)


def test_every_student_is_compared_with_every_baseline() -> None:
    tables = {table.title: table for table in difference_tables(report())}
    assert list(tables) == [
        "Each student minus fine-tune",
        "Each student minus fine-tune + T",
        "Each student minus distill",
    ]
    found = shown(tables["Each student minus fine-tune"])
    assert list(found) == ["fine-tune + T", "distill", "first"]
    assert found["first"][:3] == ["-20.0*", "+10.0*", "+30.0*"]
    assert found["distill"][:3] == ["-10.0*", "0.0", "+10.0*"]


def test_a_difference_is_marked_only_where_its_interval_excludes_zero() -> None:
    table = difference_tables(report())[0]
    for row in table.rows:
        for cell in (cell for group in row.groups for cell in group if cell.interval):
            low, high = (float(end) for end in cell.interval[1:-1].split(", "))
            assert cell.marked == (low > 0 or high < 0)
            assert (INDISTINCT in cell.aside) != cell.marked
    ece, accuracy, trust, *_ = cells(table, "first")
    assert ece.aside == accuracy.aside == trust.aside == ("better",)
    assert cells(table, "distill")[1].aside == (INDISTINCT,)


def seeded(*right: int) -> ReportData:
    """Return a run of three seeds, with the number of right answers of `first` at each."""
    members = {row: tuple(f"{row}@{s}" for s in (1, 2, 3)) for row in ("fine-tune", "first")}
    records = {("csqa", f"fine-tune@{s}"): answers(0.95, 140) for s in (1, 2, 3)}
    records |= {("csqa", f"first@{s}"): answers(0.95, n) for s, n in enumerate(right, 1)}
    return report(members=members, evaluations=["csqa"], records=records, seeds=(1, 2, 3))


def test_several_seeds_give_mean_and_spread() -> None:
    data = seeded(170, 180, 190)
    assert shown(paper_table(data))["first"][1] == "90.0 ± 5.0*"
    assert cells(paper_table(data), "fine-tune")[1].text == "70.0 ± 0.0"
    assert "standard deviation over seeds" in paper_table(data).caption
    p_values = data.values("csqa", "first", "ece_p")
    assert len(p_values) == 3 and data.mean("csqa", "first", "ece_p") == max(p_values)
    row = json.loads(to_json(data))["rows"][1]
    assert row["accuracy"] == pytest.approx(0.9) and row["spread"]["accuracy"] == pytest.approx(
        0.05
    )
    assert [one["accuracy"] for one in row["members"]] == pytest.approx([0.85, 0.9, 0.95])


def test_a_difference_that_seeds_explain_is_not_marked() -> None:
    clear = cells(difference_tables(seeded(170, 172, 174))[0], "first")[1]
    assert clear.marked and clear.aside == ("seeds p = .001", "better")
    scattered = seeded(100, 150, 200)  # a mean of 150, clear over questions alone
    gap = scattered.compared("csqa", "first", "fine-tune")["accuracy"]
    assert gap.questions.distinguishable and gap.seeds and not gap.seeds.distinguishable
    cell = cells(difference_tables(scattered)[0], "first")[1]
    assert not cell.marked and cell.aside[-1] == INDISTINCT


def test_the_table_states_how_many_tests_the_marks_come_from() -> None:
    data = report()
    # csqa: 6 pairs of its 4 students x 3 metrics, but fine-tune and fine-tune + T have the same
    # accuracy; world: first - fine-tune x 4 metrics
    assert len(data.p_values) == 6 * 3 - 1 + 4
    for table in (paper_table(data), *difference_tables(data)):
        assert "21 tests at the 95 % level without correction: about 1.1 false" in table.caption
    corrected = report(settings=MetricsSettings(correction="holm"))
    assert "Holm-corrected for 21 tests" in paper_table(corrected).caption
    content = json.loads(to_json(corrected))
    assert (content["tests"], content["correction"]) == (21, "holm")
    alone = report(members={"teacher": ("teacher",), "first": ("first",)})
    assert "no tests" in paper_table(alone).caption


def test_holm_unmarks_differences_that_the_number_of_tests_explains() -> None:
    members = {row: (row,) for row in ("fine-tune", *"abcdef")}
    right = (150, 158, 150, 150, 150, 150, 150)  # `a` is right 8 times more often: p = .005
    records = {("csqa", row): answers(0.75, k) for row, k in zip(members, right, strict=True)}
    plain, corrected = (
        report(
            members=members,
            evaluations=["csqa"],
            records=records,
            settings=MetricsSettings.model_validate({"correction": kind}),
        )
        for kind in ("none", "holm")
    )
    gap = plain.compared("csqa", "a", "fine-tune")["accuracy"]
    assert 0.05 / len(plain.p_values) < gap.p_value < 0.05
    assert plain.distinguishable("csqa", "a", "fine-tune", "accuracy")
    assert not corrected.distinguishable("csqa", "a", "fine-tune", "accuracy")
    assert plain.estimates("csqa", "a") == corrected.estimates("csqa", "a")
    marks = [cells(difference_tables(data)[0], "a")[1] for data in (plain, corrected)]
    assert [cell.marked for cell in marks] == [True, False]
    assert [cell.aside for cell in marks] == [("better",), (INDISTINCT,)]
    assert marks[0].interval == marks[1].interval  # intervals stay those of one comparison
    best = [shown(paper_table(data))["b"][1] for data in (plain, corrected)]
    assert best == ["75.0", "75.0"]
    best = [shown(paper_table(data))["a"][1] for data in (plain, corrected)]
    assert best == ["79.0*", "79.0"]  # the best no longer stands out
    difference = json.loads(to_json(corrected))["differences"][0]["accuracy"]
    assert not difference["distinguishable"]
    assert difference["p_value"] < 0.05 < difference["corrected_p_value"]


def test_rows_that_answered_different_questions_are_not_compared() -> None:
    data = report()
    records = dict(data.records)
    records["csqa", "first"] = answers(0.85, 80, n=100)
    data = replace(data, records=records)
    assert data.compared("csqa", "first", "fine-tune") == {}
    assert shown(difference_tables(data)[0])["first"][:3] == ["–", "–", "–"]


def test_the_full_tables_have_every_metric() -> None:
    csqa, world = full_tables(report())
    assert [group.title for group in world.groups] == [
        *("Calibration", "Known truth", "Scores", "Ranking", "Counts"),
    ]
    titles = [h.rstrip(" ↓↑") for group in csqa.groups for h in group.headings]
    row = dict(zip(titles, (c.text for c in cells(csqa, "first")), strict=True))
    expected = {"n": "200", "ECE": "5.0", "Acc": "80.0", "Trust": "75.0", "Conf.": "85.0"}
    expected |= {"NLL": "0.648", "Brier": "0.344", "Brier top": "0.163", "Mass": "90.0"}
    expected |= {"Ties": "0", "Bins": "1", "Over": "5.0", "Under": "0.0", "AUROC": "0.500"}
    assert expected.items() <= row.items()


def test_questions_without_a_right_answer_are_not_in_the_paper_table() -> None:
    data = report(
        evaluations=["csqa", "none"],
        records=dict(report().records) | {("none", "first"): answers(0.6, 0, answerable=False)},
    )
    assert data.unanswerable == ["none"]
    alone = report(evaluations=["none"], records={("none", "first"): data.records["none", "first"]})
    assert "All metrics on none" in terminal(alone, 80) and not difference_tables(alone)
    assert [group.evaluation for group in paper_table(data).groups] == ["csqa"]
    families = {group.title for group in full_tables(data)[1].groups}
    assert families == {"Scores", "Counts"}
    assert json.loads(to_json(data))["rows"][-1]["members"][0]["reliability"] == []


def test_ranges_and_p_values() -> None:
    ece = METRICS["ece"]
    assert range_text(ece, Interval(0.0, 0.1)) == "[0.0, 10.0]"
    assert range_text(ece, Interval(-0.05, 0.1), signed=True) == "[-5.0, +10.0]"
    assert [p_text(p) for p in (0.0004, 0.001, 0.04, 1.0)] == [
        *("p < .001", "p = .001", "p = .040", "p = 1.000"),
    ]


def printed(*tables: Table, width: int, color: bool = False) -> str:
    file = io.StringIO()
    color_system: Literal["standard"] | None = "standard" if color else None
    console = Console(width=width, file=file, color_system=color_system, force_terminal=color)
    for table in tables:
        console.print(TerminalTable(table))
    return file.getvalue()


def terminal(data: ReportData, width: int) -> str:
    tables = (paper_table(data), *difference_tables(data), *full_tables(data))
    return printed(*tables, width=width)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_terminal_shows_all_of_a_table_at_any_width(width: int) -> None:
    text = terminal(report(), width)
    assert "…" not in text and "\x1b" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for value in ("80.0*", "+30.0", "-12.0", "0.648", "–", "[-32.3,", "distinguishable "):
        assert value in text
    assert "* the best student" in " ".join(text.split())


def stored(data: ReportData) -> str:
    return json.dumps(paper_table(data).to_json())


@pytest.mark.parametrize("width", [60, 80, 160])
@pytest.mark.parametrize("data", [report(), everything(), report(evaluations=["none"])])
def test_a_stored_table_prints_the_same_text(data: ReportData, width: int) -> None:
    restored = Table.from_json(json.loads(stored(data)))
    assert restored == paper_table(data)
    expected = printed(paper_table(data), width=width, color=True)
    assert printed(restored, width=width, color=True) == expected


PRINT = """
import sys
for name in ("numpy", "scipy", "sklearn", "matplotlib", "jinja2", "pyarrow", "pydantic", "yaml"):
    sys.modules[name] = None  # importing it fails
import json
from rich.console import Console
from firstcli.reporting.terminal import Table, TerminalTable
table = Table.from_json(json.loads(sys.argv[1]))
Console(width=100, color_system=None).print(TerminalTable(table))
"""


def test_printing_a_stored_table_needs_only_rich() -> None:
    result = command_line.finish(command_line.python(PRINT, stored(report())))
    assert (result.code, result.err) == (0, "")
    assert result.out == printed(paper_table(report()), width=100)


def test_the_terminal_cuts_long_names_rather_than_numbers() -> None:
    long = "an-arm-" * 14
    members = {"first": ("first",), long: (long,)}
    text = terminal(report(members=members), 80)
    assert "…" in text and "75.0*" not in text  # no competitor has results
    for value in ("75.0", "0.648", "Bins"):
        assert value in text


def test_a_wide_terminal_shows_intervals_below_the_values() -> None:
    lines = terminal(report(), 200).splitlines()
    i = next(i for i, line in enumerate(lines) if line.strip().startswith("first "))
    values = [value.rstrip("*") for value in lines[i].split()]
    assert values == ["first", "5.0", "80.0", "75.0", "8.0", "70.0", "62.0", "3.0", "3.0"]
    assert lines[i + 1].count("[") == 7  # Conf. MAE has none


def test_markdown() -> None:
    text = to_markdown(report())
    assert "| first | **5.0** \\[" in text
    assert "## Each student minus fine-tune + T" in text and INDISTINCT in text
    assert "confidence: candidates, scored: first-token, 10 bins" in text
    assert "- temperature of first: T = 0.34" in text
    evil = to_markdown(report(run=EVIL, notes=[("a|b", f"{EVIL}\n# x")]))
    assert "<script>" not in evil.replace("\\<", "")
    assert "\n# x" not in evil and "a\\|b" in evil


def test_csv_is_tidy_and_at_full_precision() -> None:
    data = report()
    rows = list(csv.DictReader(io.StringIO(to_csv(data))))
    students = ["fine-tune", "fine-tune + T", "distill", "first"]
    assert [(r["evaluation"], r["model"], r["minus"]) for r in rows[:12]] == [
        *[("csqa", m, "") for m in data.rows],
        *[("world", m, "") for m in ("teacher", "fine-tune", "first")],
        *[("csqa", m, "fine-tune") for m in students[1:]],
        ("world", "first", "fine-tune"),
    ]
    assert float(rows[4]["nll"]) == data.metrics["csqa", "first"].nll
    assert rows[4]["ece_true"] == "" and rows[4]["confidence_kind"] == "candidates"
    assert rows[4]["best"].split()[:2] == ["ece", "accuracy"]
    assert float(rows[4]["ece_low"]) == data.estimates("csqa", "first")["ece"].interval.low
    assert float(rows[10]["trust"]) == pytest.approx(0.3) and rows[10]["n"] == ""


def test_json_is_at_full_precision_and_holds_bins_and_differences() -> None:
    data = report()
    content = json.loads(to_json(data))
    about = (content["confidence"], content["bins"], content["unit"], content["format"])
    assert about == ("candidates", 10, "fraction", 2)
    row = content["rows"][4]
    metrics = data.metrics["csqa", "first"]
    assert (row["model"], row["ece"], row["nll"]) == ("first", metrics.ece, metrics.nll)
    assert row["ece_true"] is None
    assert row["intervals"]["trust"] == list(data.estimates("csqa", "first")["trust"].interval)
    (member,) = row["members"]
    assert [b["n"] for b in member["reliability"]] == [0, 0, 0, 0, 0, 0, 0, 0, 200, 0]
    assert member["reliability"][0]["accuracy"] is None
    difference = content["differences"][2]
    assert (difference["model"], difference["minus"]) == ("first", "fine-tune")
    assert (
        difference["trust"]["value"] == pytest.approx(0.3)
        and difference["trust"]["distinguishable"]
    )
    assert content["notes"] == [{"label": "temperature of first", "value": "T = 0.34"}]


def verdict(data: ReportData, width: int) -> list[str]:
    decision = decide(data)
    table = overview_table(data, shipped_rows(decision))
    file = io.StringIO()
    content = json.loads(decision.to_json())
    text = VerdictText(content, table, list(decision.commands), "runs/demo/report/index.html")
    Console(width=width, file=file, color_system=None).print(text)
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    "data", [report(), everything(), seeded(170, 180, 190), report(records={})]
)
def test_the_verdict_fits_into_a_small_terminal(data: ReportData) -> None:
    lines = verdict(data, 80)
    assert len(lines) <= 22  # of 24: the command, and what it says before
    assert all(len(line) <= 80 for line in lines)
    assert decide(data).headline in " ".join(line.strip() for line in lines)
    assert lines[-2] == "report: runs/demo/report/index.html"


def test_the_verdict_has_one_line_per_row() -> None:
    lines = verdict(report(), 80)
    (line,) = [line for line in lines if line.startswith("> first")]
    estimate = report().estimates("csqa", "first")["accuracy"].interval
    assert line.split()[2] == f"80.0±{50 * (estimate.high - estimate.low):.1f}*"
    assert sum("fine-tune" in line and "±" in line for line in lines) == 2


def test_the_verdict_counts_what_does_not_fit() -> None:
    members = {f"student-{i}": (f"student-{i}",) for i in range(30)}
    names = [f"evaluation-{i}" for i in range(4)]
    records = {(name, row): answers(0.8, 150) for name in names for row in members}
    records |= {(name, "student-29"): answers(0.8, 199) for name in names}
    lines = verdict(report(members=members, evaluations=names, records=records), 80)
    assert len(lines) <= 22 and any(line.startswith("> student-29") for line in lines)
    assert any("more evaluations and" in line and "more rows" in line for line in lines)
