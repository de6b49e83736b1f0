"""Runs with shifted evaluations: what they add, what they leave alone, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firstcli.api import Sample
from firstcli.metrics.records import EvalRecords
from firstcli.recipe.load import load_recipe
from firstcli.recipe.references import TaskRef
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import checks
from firstcli.workspace.run import Run
from support import command_line
from support.command_line import WORLD, Finished, first, of_files, recipe, sums, write_rows

pytest_plugins = ["support.finished_runs"]

SHIFT = "evaluate.0.shift={typos: [0.5, 1.0], wording: ['Well, {prompt}']}"
POSTHOC = "arms.fine-tune.posthoc={name: logit-temperature}"
ASKED = ("--set", SHIFT)
MODELS = ("teacher", "fine-tune", "distill", "first")
NAMES = ("known-world~typos-0.5", "known-world~typos-1", "known-world~wording-1")
UNITS = {f"eval {name}/{model}" for name in NAMES for model in MODELS}


@pytest.fixture(scope="module")
def shifted(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished run, reported again with shifts and a temperature."""
    run = finished.copied_to(tmp_path_factory.mktemp("shifted"))
    result = first("report", finished.recipe, "--run-dir", run, *ASKED, "--set", POSTHOC)
    assert result.code == 0, result.err
    return Finished(finished.recipe, run, result)


def test_shifts_add_evaluations_and_nothing_else(finished: Finished) -> None:
    run = ("--run-dir", finished.run)
    assert command_line.pending(finished.recipe, *run, *ASKED) == UNITS | {"report"}
    assert command_line.pending(finished.recipe, *run) == set()


def test_one_more_strength_asks_no_other_question_again(shifted: Finished) -> None:
    run = ("--run-dir", shifted.run, "--set", POSTHOC)
    more = "evaluate.0.shift={typos: [0.5, 0.7, 1.0], wording: ['Well, {prompt}']}"
    pending = command_line.pending(shifted.recipe, *run, "--set", more)
    every = (*MODELS, "fine-tune+T")
    assert pending == {"report", *(f"eval known-world~typos-0.7/{model}" for model in every)}
    fewer = "evaluate.0.shift={typos: [1.0]}"
    assert command_line.pending(shifted.recipe, *run, "--set", fewer) == {"report"}
    assert command_line.pending(shifted.recipe, *run) == {"report"}
    other = "evaluate.0.shift={typos: [0.5, 1.0], wording: ['Now, {prompt}']}"
    again = {f"eval known-world~wording-1/{model}" for model in every}
    assert command_line.pending(shifted.recipe, *run, "--set", other) == {"report"} | again


def test_the_same_questions_are_answered_with_the_same_labels(shifted: Finished) -> None:
    folder = shifted.run / "eval"
    plain = EvalRecords.load(folder / "known-world" / "first.parquet")
    for name in NAMES:
        records = EvalRecords.load(folder / name / "first.parquet")
        assert records.ids == plain.ids and (records.answer == plain.answer).all()
        assert records.truth is not None and plain.truth is not None
        assert np.array_equal(records.truth, plain.truth)
        assert not np.array_equal(records.log_probs, plain.log_probs)


def test_a_temperature_is_the_one_that_is_fitted_without_shift(shifted: Finished) -> None:
    folder = shifted.run / "eval" / NAMES[1]
    plain, tempered = (
        EvalRecords.load(folder / f"{model}.parquet") for model in ("fine-tune", "fine-tune+T")
    )
    state = json.loads((shifted.run / "calibration" / "fine-tune+T.json").read_text("utf-8"))
    powered = plain.log_probs / state["state"]["temperature"]
    expected = np.exp(powered) / np.exp(powered).sum(axis=1, keepdims=True)
    assert tempered.probabilities == pytest.approx(expected, abs=1e-9)


def test_main_tables_have_the_named_evaluations_alone(shifted: Finished) -> None:
    report = shifted.run / "report"
    assert "~" not in (report / "table.csv").read_text("utf-8")
    decision = json.loads((report / "decision.json").read_text("utf-8"))
    assert "~" not in json.dumps(decision)
    page = (report / "index.html").read_text("utf-8")
    assert 'id="shift"' in page and "known-world under shift" in page
    assert (report / "figures" / "shift+known-world.svg").is_file()
    assert "known-world under shift" in shifted.result.out
    shown = " ".join(shifted.result.out.split())
    assert "prompts changed: 100 % (typos 100 %), 100 % (wording 1)" in shown
    assert "100 % (typos 50 %), 100 % (typos 100 %)" in (report / "table.md").read_text("utf-8")
    card = (shifted.run / "students" / "first" / "README.md").read_text("utf-8")
    assert not any(name in card for name in NAMES)


def test_without_shifts_there_is_no_section(finished: Finished) -> None:
    page = (finished.run / "report" / "index.html").read_text("utf-8")
    assert 'id="shift"' not in page


def test_eval_shows_one_table_for_all_shifts(shifted: Finished) -> None:
    run = ("--run-dir", shifted.run, *ASKED, "--set", POSTHOC)
    result = first("eval", shifted.recipe, *run)
    assert result.code == 0, result.err
    assert result.out.count("known-world under shift") == 1
    assert "prompts changed: 100 % (typos 100 %)" in " ".join(result.out.split())
    assert "known-world~" not in result.out
    records = first("eval", shifted.recipe, *run, "--json").json["result"]
    assert records[f"{NAMES[0]}/first"]["n"] == 24


def test_the_plan_counts_the_questions(finished: Finished) -> None:
    run = ("--run-dir", finished.run, *ASKED)
    result = first("plan", finished.recipe, *run, "--json")
    assert result.json["shifts"] == [
        {"evaluation": "known-world", "shifts": 3, "questions": 72, "models": 4}
    ]
    text = first("plan", finished.recipe, *run)
    assert (
        "3 shifts of known-world: 72 further questions for each of 4 models" in text.err + text.out
    )
    assert "eval known-world, shifted" in text.out and "3 shifts, 12 units" in text.out


def test_every_seed_has_its_answers(tmp_path: Path) -> None:
    path = command_line.write_recipe(
        tmp_path, evaluate=[{"task": WORLD, "shift": {"dropout": [0.5]}}], seeds=[1, 2],
        arms={"distill": {}},
    )  # fmt: skip
    loaded = load_recipe(path)
    result = command_line.report(path, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err
    models = {
        file.stem for file in (tmp_path / "run/eval/known-world~dropout-0.5").glob("*.parquet")
    }
    assert models == {"teacher", "distill@1", "distill@2"} and loaded.seeds == (1, 2)
    assert " ± " in (tmp_path / "run/report/table.md").read_text("utf-8").split("under shift")[1]


def test_a_shift_that_changes_few_prompts_is_pointed_out(tmp_path: Path) -> None:
    rows = [{**row, "question": "一足す一は何ですか"} for row in sums(20)]
    rows += [{**row, "question": "what is it"} for row in sums(5, 50)]
    task = of_files(
        write_rows(tmp_path / "other.jsonl", rows), prompt="{question} ({choices}) Answer:"
    )
    shift = {"case": [1.0], "typos": [1.0]}
    sections = recipe(evaluate=[{"task": task, "name": "other", "shift": shift}])
    run = Run(Recipe.model_validate(sections), tmp_path / "run", Console(quiet=True))
    with run.console.collect_warnings() as warnings:
        assert run.changed_share("other~case-1") == 0.2
        assert run.changed_share("other~typos-1") == 1
        assert run.changed_share("other") is None
    assert [str(each) for each in warnings] == [
        "evaluate 'other'.shift.case (1): only 20% of the prompts change"
    ]


def opened(folder: Path, labels: list[str]) -> Run:
    rows = [{**row, "choices": ["yes", "no"], "answer": "A"} for row in sums(60)]
    other = [{**row, "choices": labels, "answer": "A"} for row in sums(20, 100)]
    train = of_files(write_rows(folder / "train.jsonl", rows), respond_with="text")
    task = of_files(write_rows(folder / "other.jsonl", other), respond_with="text")
    sections = recipe(train={"task": train}, evaluate=[{"task": task, "name": "other"}])
    return Run(Recipe.model_validate(sections), folder / "run", Console(quiet=True))


def test_white_space_makes_no_other_label() -> None:
    task = TaskRef.model_validate(WORLD)
    spaced, plain = (
        [Sample.question("Is it?", (f"{gap}yes", f"{gap}no"), 0)] * 3 for gap in (" ", "")
    )
    assert checks._answers(task, spaced) == checks._answers(task, plain) == {"yes", "no"}


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (["no", "yes"], []),
        (["good", "bad"], ["evaluate 'other': none of its answers", "'bad'"]),
        (["yes", "no", "maybe"], ["'maybe' not among the training task's answers"]),
    ],
)
def test_other_labels_than_in_training_are_pointed_out(
    tmp_path: Path, labels: list[str], parts: list[str]
) -> None:
    run = opened(tmp_path, labels)
    with run.console.collect_warnings() as warnings:
        checks.OTHER_ANSWERS.run(run)
    assert len(warnings) == bool(parts)
    for part in parts:
        assert part in warnings[0]
