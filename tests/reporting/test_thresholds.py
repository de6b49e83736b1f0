"""Thresholds and prediction sets in the report: the numbers of the metrics, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.metrics.prediction_sets import least_probability, set_sizes
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.thresholds import answered_part, threshold_for
from firstcli.recipe.sections import MetricsSettings
from firstcli.reporting.data import ReportData
from firstcli.reporting.formats import to_json, to_markdown
from firstcli.reporting.page import write_report
from firstcli.reporting.thresholds import promise_tables, promises_as_json
from support.invented_report import EVIL, report


def calibrated(seed: int, n: int, skill: float = 3.0) -> EvalRecords:
    """Return answers to questions of three candidates, each right as often as it is likely."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, skill, (n, 3))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answer = (random.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(max=2)
    return EvalRecords.from_log_probs(
        [f"q{i}" for i in range(n)], answer.tolist(), list(np.log(p)), scope="candidates"
    )


def promised(name: str = "first", **changes: Any) -> ReportData:
    content: dict[str, Any] = {
        "members": {"teacher": ("teacher",), name: (name,), "weak": ("weak@1", "weak@2")},
        "evaluations": ["world"],
        "records": {
            ("world", "teacher"): calibrated(1, 400),
            ("world", name): calibrated(2, 400),
            ("world", "weak@1"): calibrated(3, 400, 0.1),
        },
        "validation": {
            "teacher": calibrated(4, 300),
            name: calibrated(5, 300),
            "weak@1": calibrated(6, 300, 0.1),
            "weak@2": calibrated(7, 300, 2.0),
        },
        "settings": MetricsSettings(target_accuracy=0.85, coverage=0.9),
    }
    return report(**(content | changes))


@pytest.fixture(scope="module")
def data() -> ReportData:
    return promised()


def test_nothing_is_promised_about_answers_that_are_made_otherwise(data: ReportData) -> None:
    names = ("teacher", "first", "weak@1")
    more = {("vote", name): data.records["world", name] for name in names}
    both = promised(
        evaluations=["world", "vote"],
        records={**data.records, **more},
        other_answers=frozenset({"vote"}),
    )
    assert promises_as_json(both) == promises_as_json(data)
    for before, after in zip(promise_tables(data), promise_tables(both), strict=True):
        assert (after.groups, after.rows) == (before.groups, before.rows)
        assert "Nothing is promised about vote" in after.caption
        assert "Nothing is promised" not in before.caption


def test_the_numbers_are_those_of_the_metrics(data: ReportData) -> None:
    content = promises_as_json(data)
    by_model = {each["model"]: each for each in content["thresholds"]["models"]}
    assert list(by_model) == ["teacher", "first", "weak@1", "weak@2"]  # one threshold per seed
    validation, test = data.validation["first"], data.records["world", "first"]
    chosen = threshold_for(validation.confidence, validation.correct, 0.85)
    assert chosen
    part = answered_part(chosen.threshold, test.confidence, test.correct)
    found = by_model["first"]
    assert (found["threshold"], found["answered"]) == (chosen.threshold, chosen.share)
    assert (found["accuracy"], found["bound"]) == (chosen.accuracy, chosen.bound)
    outcome = found["evaluations"]["world"]
    assert (outcome["accuracy"], outcome["answered"]) == (part.accuracy, part.share)
    assert outcome["interval"] == list(part.interval)
    assert outcome["kept"] is (part.accuracy is not None and part.accuracy >= 0.85)
    assert by_model["weak@1"]["threshold"] is None and not by_model["weak@1"]["evaluations"]
    sets = {each["model"]: each for each in content["prediction_sets"]["models"]}["first"]
    least = least_probability(validation.in_right, 0.9)
    sizes = set_sizes(test, least)
    assert sets["least_probability"] == least
    assert sets["evaluations"]["world"]["coverage"] == sizes.coverage
    assert sets["evaluations"]["world"]["mean_size"] == sizes.mean_size


def test_the_tables_show_the_promise_and_what_came_of_it(data: ReportData) -> None:
    thresholds, sets = promise_tables(data)
    assert thresholds.title == "Thresholds for an accuracy of 85 %"
    assert [group.title for group in thresholds.groups] == ["validation (n = 300)", "world"]
    rows = {row.name: row for row in thresholds.rows}
    assert rows["weak@1"].groups[0][0].text == "none"
    verdicts = {rows[name].groups[1][2].text for name in ("teacher", "first")}
    assert verdicts <= {"kept", "below by chance", "broken"}
    assert "with 95 % certainty" in thresholds.caption
    assert "for weak@1 with 300 questions: the most confident answers are wrong too often" in (
        thresholds.caption
    )
    assert sets.title == "Prediction sets with a coverage of 90 %"
    assert {row.kind for row in sets.rows} == {"teacher", "student"}


def test_a_model_that_needs_more_questions_says_how_many() -> None:
    few = {"first": calibrated(8, 60)}
    (table,) = promise_tables(
        promised(validation=few, settings=MetricsSettings(target_accuracy=0.9))
    )
    content = promises_as_json(
        promised(validation=few, settings=MetricsSettings(target_accuracy=0.9))
    )
    needed = content["thresholds"]["models"][0]["questions_needed"]
    assert needed > 60 and "with 60 questions: about" in table.caption


def test_outcomes_are_judged_with_their_uncertainty() -> None:
    broken = EvalRecords.from_log_probs(
        [f"q{i}" for i in range(400)],
        [1] * 400,
        [np.log([0.98, 0.01, 0.01])] * 400,
        scope="candidates",
    )
    thresholds, sets = promise_tables(promised(records={("world", "first"): broken}))
    row = next(row for row in thresholds.rows if row.name == "first")
    assert [cell.text for cell in row.groups[1]] == ["100", "0", "broken"]
    row = next(row for row in sets.rows if row.name == "first")
    assert row.groups[1][1].text == "broken"


def test_nothing_is_shown_unless_it_is_asked_for() -> None:
    data = report()
    assert promise_tables(data) == [] and promises_as_json(data) == {}
    full = promised(settings=MetricsSettings(target_accuracy=0.85, confidence="full"))
    assert promise_tables(full) == []  # a post-hoc temperature leaves it unknown


def test_every_format_contains_them_and_escapes_names(tmp_path: Path) -> None:
    data = promised(EVIL)
    write_report(tmp_path, data)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert 'id="thresholds"' in page and "Prediction sets with a coverage of 90 %" in page
    assert "<script" not in page
    assert "Thresholds for an accuracy of 85 %" in to_markdown(data)
    assert {"thresholds", "prediction_sets"} <= set(json.loads(to_json(data)))
