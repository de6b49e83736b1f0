"""The layout of several runs in one table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from firstcli.reporting.comparison import (
    Questions,
    RunResults,
    RunTable,
    Value,
    differences_of_evaluation,
    page,
    to_csv,
    to_markdown,
)
from support.paths import ROOT

SETTINGS = {"confidence": "candidates", "candidates": "first-token", "bins": "10"}
QUESTIONS = Questions(("a", "b", "c"), (0, 1, 1), (2, 2, 2))
ROWS = ("teacher", "fine-tune", "first")


def results(name: str = "one", **changes: Any) -> RunResults:
    values = {("qa", row, "ece"): Value(i / 10, 0.01) for i, row in enumerate(ROWS, 1)}
    plain = RunResults(
        name, f"runs/{name}", "qa", "large → small", SETTINGS, {"qa": QUESTIONS}, ROWS, values, {}
    )
    return replace(plain, **changes)


def test_each_run_has_its_rows_where_the_task_is_the_same() -> None:
    compared = RunTable.of([results("one"), results("two")])
    assert [block.title for block in compared.blocks] == ["one", "two"]
    (place,) = compared.places
    assert (place.title, place.runs) == ("qa", (0, 1))
    assert compared.text(compared.blocks[1], "first", place, "ece") == "30.0 ± 1.0"
    assert compared.text(compared.blocks[1], "first", place, "trust") == "–"


def test_runs_of_the_same_name_are_told_apart_by_their_folders() -> None:
    compared = RunTable.of([results(), results(where="elsewhere/one")])
    assert [block.title for block in compared.blocks] == ["runs/one", "elsewhere/one"]
    absolute = RunTable.of([results(where="/home/me/a/one"), results(where="/home/me/b/one")])
    assert [block.title for block in absolute.blocks] == ["a/one", "b/one"]


def test_the_nine_settings_of_the_paper_become_its_table() -> None:
    runs = [published(path.stem) for path in sorted((ROOT / "recipes" / "paper").glob("*.yaml"))]
    assert len(runs) == 9
    assert differences_of_evaluation(runs) == []
    compared = RunTable.of(runs)
    assert [len(block.runs) for block in compared.blocks] == [3, 3, 3]
    assert all(
        block.rows == ("teacher", "fine-tune", "distill", "distill-ls", "first")
        for block in compared.blocks
    )
    assert {place.title for place in compared.places} == {
        "commonsense-qa",
        "boolq",
        "alpaca → commonsense-qa",
        "alpaca → openbook-qa",
    }
    llama1 = next(block for block in compared.blocks if block.title.startswith("llama-30b"))
    domain = next(place for place in compared.places if place.title == "commonsense-qa")
    shown = [compared.text(llama1, "first", domain, key) for key in ("ece", "accuracy", "trust")]
    assert shown == ["2.9 (2.9)", "80.8 (80.8)", "77.9 (77.9)"]  # arXiv 2408.12168, Table 1


def published(name: str) -> RunResults:
    """A run that gave exactly what the paper reports."""
    recipe = yaml.safe_load((ROOT / "recipes" / "paper" / f"{name}.yaml").read_text())
    models = [recipe[role]["model"]["checkpoint"].split("/")[-1] for role in ("teacher", "student")]
    paper = {
        (evaluation, row, metric): value / 100
        for evaluation, rows in recipe["paper"].items()
        for row, numbers in rows.items()
        for metric, value in numbers.items()
    }
    return results(
        name,
        task=recipe["train"]["task"]["name"],
        models=" → ".join(models),
        questions={section["task"]["name"]: QUESTIONS for section in recipe["evaluate"]},
        rows=("teacher", *recipe["arms"]),
        values={key: Value(value, None) for key, value in paper.items()},
        paper=paper,
    )


@pytest.mark.parametrize(
    ("theirs", "difference"),
    [
        (Questions(("a", "b"), (0, 1), (2, 2)), "2 questions instead of 3, with 2 in common"),
        (Questions(("a", "b", "d"), (0, 1, 1), (2, 2, 2)), "3 questions instead of 3, with 2 in"),
        (Questions(("a", "b", "c"), (0, 0, 1), (2, 2, 2)), "1 of 3 questions have different"),
        (Questions(("a", "b", "c"), (0, 1, 1), (2, 3, 3)), "2 of 3 questions have different"),
    ],
)
def test_different_questions_are_refused(theirs: Questions, difference: str) -> None:
    (problem,) = differences_of_evaluation([results(), results("two", questions={"qa": theirs})])
    assert problem.startswith("runs/two: evaluation 'qa' is not that of runs/one: ")
    assert difference in problem


def test_different_settings_are_refused() -> None:
    fifteen = results("two", settings=SETTINGS | {"bins": "15"})
    (problem,) = differences_of_evaluation([results(), fifteen])
    assert "runs/two: metrics.bins is 15, but 10 in runs/one" in problem


def test_different_evaluations_may_stand_side_by_side() -> None:
    questions = {"other": Questions(("x",), (0,), (4,))}
    other = results("two", models="larger → small", questions=questions)
    assert differences_of_evaluation([results(), other]) == []
    compared = RunTable.of([results(), other])
    assert [place.title for place in compared.places] == ["qa", "other"]
    assert compared.text(compared.blocks[1], "first", compared.places[0], "ece") == "–"


def test_names_are_escaped() -> None:
    compared = RunTable.of([results("<b>|x"), results("two", models="<script> → small")])
    html = page(compared)
    assert "<b>" not in html
    assert "&lt;b&gt;|x" in html
    assert "<script>" not in html
    assert "<b>\\|x" in to_markdown(compared)


def test_the_csv_has_every_value_at_full_precision() -> None:
    run = results("one", paper={("qa", "first", "ece"): 0.25})
    lines = to_csv(RunTable.of([run, results("two")])).splitlines()
    assert lines[0] == "run,evaluation,model,metric,value,half_width,published"
    assert "one,qa,first,ece,0.3,0.01,0.25" in lines
    assert len(lines) == 1 + 2 * 3
