"""The key `shift` of an evaluation: names, order and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.recipe.load import load_recipe
from firstcli.recipe.shift import Shifts, unshifted
from support.command_line import WORLD, first, of_files, sums, write_recipe, write_rows


def written(folder: Path, shift: Any, task: Any = WORLD) -> Path:
    return write_recipe(folder, evaluate=[{"task": task, "name": "own", "shift": shift}])


def test_each_shift_has_a_name_that_leads_back(tmp_path: Path) -> None:
    shifts = Shifts(dropout=(0.3, 0.05), typos=(1.0,), wording=("{prompt}", "x {prompt}"))
    names = [shift.name_of("trec") for shift in shifts.each()]
    assert names == [
        *("trec~typos-1", "trec~dropout-0.05", "trec~dropout-0.3"),
        *("trec~wording-1", "trec~wording-2"),
    ]
    assert {unshifted(name) for name in names} == {"trec"} == {unshifted("trec")}


def test_the_written_recipe_has_the_same_shifts(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, {"typos": [0.1, 0.2], "wording": ["Well: {prompt}"]}))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(recipe.resolved()), "utf-8")
    assert load_recipe(again).evaluate[0].shift == recipe.evaluate[0].shift


@pytest.mark.parametrize(
    ("shift", "parts"),
    [
        (
            {"typos": [0.1, 1.5]},
            [
                "evaluate.0.shift.typos.1",
                "found 1.5, expected a number greater than 0 and of at most 1",
            ],
        ),
        ({"case": [0]}, ["evaluate.0.shift.case.0", "found 0, expected a number greater than 0"]),
        ({"dropout": [0.1, 0.1]}, ["evaluate.0.shift.dropout", "'0.1' more than once"]),
        ({"typo": [0.1]}, ["evaluate.0.shift.typo", "typos"]),
        ({"typos": 0.1}, ["evaluate.0.shift.typos"]),
        ({}, ["evaluate.0.shift", "names no shift"]),
        ({"wording": ["no name"]}, ["evaluate.0.shift.wording.0", "at least one {name}"]),
        (
            {"wording": ["{prompt}", "{question}?"]},
            ["evaluate.0.shift.wording.1", "unknown {question}", "{prompt}"],
        ),
    ],
)
def test_mistakes_name_their_key(tmp_path: Path, shift: Any, parts: list[str]) -> None:
    first("plan", written(tmp_path, shift)).mistake(*parts)


def test_a_wording_has_the_names_and_the_end_of_the_tasks_template(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", sums(40))
    write_rows(tmp_path / "data" / "test.jsonl", sums(20, 100))
    task = of_files(tmp_path / "data", prompt="Q: {question}\n{choices}\nAnswer:")
    for wording, part in (
        ("{prompt} Answer:", "unknown {prompt}; the task's template has {question}, {choices}"),
        ("{question}\nAnswer:", "it lacks {choices}"),
        ("{question}{choices}Answer: ", "it ends with white space, unlike"),
        ("{question}\n{choices}\nAnswer: (", "after its last word comes ' (', and in the task's"),
    ):
        path = written(tmp_path, {"wording": [wording]}, task)
        first("plan", path).mistake("evaluate.0.shift.wording.0", part)
        augment = {"augmenters": [{"name": "template", "options": {"templates": [wording]}}]}
        path = write_recipe(
            tmp_path, train={"task": task, "augment": augment}, evaluate=[{"task": task}]
        )
        key = "train.augment.augmenters.0.options.templates.0"
        first("plan", path).mistake(key, part)
