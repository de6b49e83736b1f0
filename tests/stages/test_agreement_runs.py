"""Runs with `posthoc: {fit: agreement}`: which questions, which reference, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from firstcli.metrics.records import EvalRecords
from firstcli.recalibration.agreement import fit_temperature
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions
from support import command_line
from support.command_line import first

T = {"name": "logit-temperature"}
BY_AGREEMENT = {**T, "fit": "agreement"}


def write_recipe(folder: Path, **sections: Any) -> Path:
    teacher = {"model": command_line.MODEL, "finetune": command_line.TRAINING, "posthoc": T}
    arms = {
        "plain": {"recalibrator": {"name": "none"}, "posthoc": T},
        "daca": {"recalibrator": {"name": "none"}, "posthoc": BY_AGREEMENT},
    }
    return command_line.write_recipe(folder, **{"teacher": teacher, "arms": arms} | sections)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and its finished run; tests must not change it."""
    folder = tmp_path_factory.mktemp("agreement")
    path = write_recipe(folder, metrics={"coverage": 0.9})
    result = first("report", path, "--run-dir", folder / "run")
    assert result.code == 0, result.err
    return path, folder / "run"


def fitted(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "calibration" / f"{name}.json").read_text("utf-8"))
    return found


def test_the_validation_questions_are_compared_with_teacher_and_temperature(
    done: tuple[Path, Path],
) -> None:
    """Against the recorded answers to the validation questions, which take another path."""
    run = done[1]
    student, teacher = (
        EvalRecords.load(run / "eval" / "validation" / f"{name}.parquet")
        for name in ("daca", "teacher+T")
    )
    assert student.ids == teacher.ids
    expected = fit_temperature(student.probabilities, teacher.probabilities)
    found = fitted(run, "daca+T")
    assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-6)
    same = int((student.prediction == teacher.prediction).sum())
    assert found["state"]["rows"] == same <= found["rows"] == 30  # ECE is that of all of them
    assert found["learned"] == f"agrees with teacher + T on {same} of 30 validation questions"
    assert found["criterion"] == "agreement" and found["recalibrator"] == "logit-temperature"
    assert found["temperature"] != fitted(run, "plain+T")["temperature"]


def test_the_temperature_is_applied_and_travels_with_the_student(done: tuple[Path, Path]) -> None:
    run = done[1]
    temperature = fitted(run, "daca+T")["temperature"]
    plain, scaled = (
        EvalRecords.load(run / "eval" / "known-world" / f"{name}.parquet")
        for name in ("daca", "daca+T")
    )
    expected = np.exp(plain.log_probs / temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scaled.probabilities, expected, rtol=1e-9)
    about = json.loads((run / "students" / "daca" / "firstcli.json").read_text("utf-8"))
    assert about["posthoc"]["temperature"] == pytest.approx(temperature)
    assert f"T = {temperature:.4g}" in (run / "students" / "daca" / "README.md").read_text("utf-8")


def test_arms_that_differ_in_the_fit_alone_are_told_apart(done: tuple[Path, Path]) -> None:
    path, run = done
    result = first("posthoc", path, "--run-dir", run)
    said = " ".join(result.out.split())
    assert "post-hoc recalibrators, measured on the validation rows" in said
    assert said.count("logit-temperature by agreement") == 1
    result = first("posthoc", path, "--run-dir", run, "--arm", "plain")
    assert "on the validation rows that they were fitted on" in " ".join(result.out.split())
    page = (run / "report" / "index.html").read_text("utf-8")
    assert "T by agreement with the teacher: daca + T" in page
    table = (run / "report" / "table.md").read_text("utf-8")
    assert "T by agreement with the teacher: daca + T" in table
    assert "logit-temperature measured on 30 rows: T = " in page


def test_an_export_folds_a_temperature_by_agreement(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    """The weights alone give the recorded probabilities of `daca + T`."""
    run, target = done[1], tmp_path / "out"
    result = first("export", run, target, "--arm", "daca + T", "--json")
    assert result.code == 0, result.err
    temperature = fitted(run, "daca+T")["temperature"]
    assert result.json["folded"]["temperature"] == pytest.approx(temperature)
    recorded, plain = (
        EvalRecords.load(run / "eval" / "known-world" / f"{name}.parquet")
        for name in ("daca+T", "daca")
    )
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target)
    options: Any = command_line.WORLD["options"]
    world = KnownWorld(KnownWorldOptions(**options))
    samples = {sample.id: sample for sample in world.load("test").samples}
    for number, id in enumerate(recorded.ids):
        sample = samples[id]
        ids = tokenizer(sample.prompt, return_tensors="pt")
        texts = (sample.prompt + text for text in sample.candidates)
        tokens = [tokenizer(text)["input_ids"][-1] for text in texts]
        with torch.no_grad():
            found = model(**ids).logits[0, -1].double()[tokens].softmax(-1)
        expected = recorded.probabilities[number, : len(tokens)]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(plain.probabilities - recorded.probabilities).max() > 1e-3


def test_only_the_choice_of_labels_is_unstated(done: tuple[Path, Path]) -> None:
    """So recipes and artifacts from before stay up to date."""
    run = done[1]
    reads = {
        name: json.loads((run / "calibration" / f"{name}.manifest.json").read_text("utf-8"))
        for name in ("plain+T", "daca+T")
    }
    assert reads["daca+T"]["reads"]["posthoc.fit"] == "agreement"
    assert not [key for key in reads["plain+T"]["reads"] if "fit" in key or "reference" in key]
    assert "fit: labels" not in (run / "recipe.yaml").read_text("utf-8")


def test_a_new_teacher_redoes_it(done: tuple[Path, Path]) -> None:
    change = ("--set", "teacher.finetune.epochs=2", "--run-dir", done[1])
    assert "posthoc daca+T" in command_line.pending(done[0], *change)


def test_unlabelled_rows_come_first(tmp_path: Path) -> None:
    """The plan says which questions; a teacher without a temperature is warned of."""
    rows = command_line.sums(60)
    without = [{**row, "answer": ""} for row in command_line.sums(40, first=60)]
    command_line.write_rows(tmp_path / "data" / "train.jsonl", [*rows, *without])
    command_line.write_rows(tmp_path / "data" / "test.jsonl", command_line.sums(8, first=200))
    task = command_line.of_files(tmp_path / "data")
    path = write_recipe(
        tmp_path,
        train={"task": task, "validation": 0.3},
        evaluate=[{"task": task}],
        teacher={"model": command_line.MODEL, "finetune": command_line.TRAINING},
        arms={"daca": {"recalibrator": {"name": "none"}, "posthoc": BY_AGREEMENT}},
    )
    run = tmp_path / "run"
    result = first("eval", path, "--run-dir", run)
    assert result.code == 0, result.err
    found = fitted(run, "daca+T")
    assert found["learned"].startswith("agrees with the teacher on ")
    assert found["learned"].endswith(" of 40 unlabelled questions")
    assert "fitted to the probabilities of a fine-tuned teacher" in " ".join(result.err.split())


@pytest.mark.parametrize(
    "changes, parts",
    [
        (
            {"arms": {"a": {"posthoc": {"name": "temperature-scaling", "fit": "agreement"}}}},
            ("arms.a.posthoc.fit", "'temperature-scaling'", "logit-temperature"),
        ),
        (
            {"arms": {"a": {"posthoc": {**BY_AGREEMENT, "options": {"criterion": "ece"}}}}},
            ("arms.a.posthoc.fit", "'criterion'"),
        ),
        (
            {"teacher": {"model": command_line.MODEL, "posthoc": BY_AGREEMENT}},
            ("teacher.posthoc.fit", "reference"),
        ),
        (
            {"teacher": None, "arms": {"a": {"learn": "labels", "posthoc": BY_AGREEMENT}}},
            ("arms.a.posthoc.fit", "no teacher"),
        ),
        (
            {"arms": {"a": {"posthoc": {**T, "fit": "agrement"}}}},
            ("arms.a.posthoc.fit", "agrement"),
        ),
    ],
)
def test_mistakes_are_named_with_their_key(
    tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    first("plan", write_recipe(tmp_path, **changes)).mistake(*parts)


def test_outputs_in_a_file_are_fitted_to_labels(tmp_path: Path) -> None:
    path = tmp_path / "outputs.csv"
    path.write_text("yes,no,answer\n" + "0.7,0.3,yes\n0.4,0.6,no\n" * 20, "utf-8")
    option = "{name: logit-temperature, fit: agreement}"
    first("judge", path, "--recalibrate", option).mistake("--recalibrate", "leave out 'fit'")
