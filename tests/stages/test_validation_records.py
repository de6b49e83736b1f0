"""Models answer the validation questions if a metric asks for it, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from firstcli.metrics.records import EvalRecords
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

POSTHOC = ("--set", "arms.fine-tune.posthoc={name: logit-temperature}")
ASKED = ("--target-accuracy", "0.3", "--coverage", "0.8", *POSTHOC)
SETTINGS = ("--set", "metrics.target_accuracy=0.3", "--set", "metrics.coverage=0.8", *POSTHOC)
MODELS = ("teacher", "fine-tune", "fine-tune+T", "distill", "first")


@pytest.fixture(scope="module")
def promised(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished run, reported again with a target accuracy and a coverage."""
    run = finished.copied_to(tmp_path_factory.mktemp("promised"))
    result = first("report", finished.recipe, "--run-dir", run, *ASKED)
    assert result.code == 0, result.err
    return Finished(finished.recipe, run, result)


def test_no_model_is_trained_and_no_evaluation_repeated(finished: Finished) -> None:
    run = ("--run-dir", finished.run)
    asked = command_line.pending(finished.recipe, *run, "--set", "metrics.target_accuracy=0.9")
    models = ("teacher", "fine-tune", "distill", "first")
    assert asked == {"report", *(f"eval validation/{model}" for model in models)}
    assert command_line.pending(finished.recipe, *run) == set()


def test_other_values_rerun_the_report_alone(promised: Finished) -> None:
    run = ("--run-dir", promised.run)
    assert command_line.pending(promised.recipe, *run, *SETTINGS) == set()
    other = (*SETTINGS, "--set", "metrics.coverage=0.9")
    assert command_line.pending(promised.recipe, *run, *other) == {"report"}


def test_the_records_are_the_models_answers(promised: Finished) -> None:
    folder = promised.run / "eval" / "validation"
    assert {path.stem for path in folder.glob("*.parquet")} == set(MODELS)
    records = {model: EvalRecords.load(folder / f"{model}.parquet") for model in MODELS}
    sizes = {len(each) for each in records.values()}
    (size,) = sizes
    assert 96 * 0.15 < size < 96 * 0.45 and len({each.ids for each in records.values()}) == 1
    evaluated = EvalRecords.load(promised.run / "eval" / "known-world" / "first.parquet")
    assert not set(evaluated.ids) & set(records["first"].ids)
    plain, tempered = records["fine-tune"], records["fine-tune+T"]
    state = json.loads((promised.run / "calibration" / "fine-tune+T.json").read_text("utf-8"))
    powered = plain.log_probs / state["state"]["temperature"]
    expected = np.exp(powered) / np.exp(powered).sum(axis=1, keepdims=True)
    assert tempered.probabilities == pytest.approx(expected, abs=1e-9)


def test_the_report_shows_promises_and_outcomes(promised: Finished) -> None:
    out = promised.result.out
    assert "Thresholds for an accuracy of 30 %" in out
    assert "Prediction sets with a coverage of 80 %" in out
    content = json.loads((promised.run / "report" / "table.json").read_text("utf-8"))
    assert [each["model"] for each in content["thresholds"]["models"]] == list(MODELS)
    assert {row["evaluation"] for row in content["rows"]} == {"known-world", "shifted"}
    again = first("report", promised.recipe, "--run-dir", promised.run, *SETTINGS)
    assert "everything is up to date" in again.out
    assert "Thresholds for an accuracy of 30 %" in again.out
    evaluated = first("eval", promised.recipe, "--run-dir", promised.run, *SETTINGS, "--json")
    assert not any(name.startswith("validation/") for name in evaluated.json["result"])


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["metrics.target_accuracy=1"], ["metrics.target_accuracy", "less than 1"]),
        (["metrics.coverage=0"], ["metrics.coverage", "greater than 0"]),
        (
            [
                "metrics.target_accuracy=0.9",
                "train.validation=0",
                "arms={fine-tune: {learn: labels}}",
            ],
            ["metrics.target_accuracy", "train.validation is 0"],
        ),
        (
            ["metrics.coverage=0.9", "evaluate.0.name=Validation"],
            ["metrics.coverage", "'validation'", "rename"],
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: list[str], parts: list[str]) -> None:
    path = command_line.write_recipe(tmp_path)
    overrides = [word for setting in settings for word in ("--set", setting)]
    first("plan", path, *overrides).mistake(*parts)


def test_an_evaluation_may_be_named_validation_otherwise(tmp_path: Path) -> None:
    evaluate = [{"task": command_line.WORLD, "name": "validation"}]
    path = command_line.write_recipe(tmp_path, evaluate=evaluate)
    assert first("plan", path, "--run-dir", tmp_path / "run").code == 0
