"""`benchmarks/plus/shifts.py` and `benchmarks/plus_tables.py`, without a model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.metrics.records import EvalRecords
from support.paths import ROOT

QUESTIONS = ["When did Hawaii become a state ?", "Who was the first American in space ?"] * 20


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "plus")


def module(name: str) -> Any:
    return importlib.import_module(name)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    module(name).main()


def test_shifts_change_the_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": f"{i}", "text": text, "answer": i % 3} for i, text in enumerate(QUESTIONS)]
    source = write(tmp_path / "test.jsonl", rows)
    for folder in ("one", "two"):
        run(monkeypatch, "shifts", source, tmp_path / folder, "--text", "text")
    for name in ("typos", "case", "drop", "keywords"):
        shifted = read(tmp_path / "one" / f"{name}.jsonl")
        assert shifted == read(tmp_path / "two" / f"{name}.jsonl")
        assert [{**row, "text": ""} for row in shifted] == [{**row, "text": ""} for row in rows]
        texts = [row["text"] for row in shifted]
        assert texts != QUESTIONS
        assert all(texts)
        if name != "keywords":
            assert all(text.endswith("?") for text in texts)
    assert all(text in ("hawaii become state", "first american space") for text in texts)


def test_a_text_of_function_words_keeps_them() -> None:
    assert module("shifts").keywords("Who are they ?") == "who are they ?"


def test_unanswered_questions_get_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = write(tmp_path / "dev.jsonl", [{"question": "is it so", "answer": True, "more": 1}])
    test = write(tmp_path / "test.jsonl", [{"question": "q", "choices": ["a", "b"], "answer": 1}])
    run(monkeypatch, "shifts", others, tmp_path, "--unanswered", test)
    row = {"id": "noanswer-0", "question": "is it so", "choices": ["a", "b"], "answer": 0}
    assert read(tmp_path / "noanswer.jsonl") == [row]


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "met; "), (30, "missed; ")])
def test_tables_judge_the_goal(
    wrong: int,
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`first` is right at 80 of 100 questions, as sure as it should be; the winner at fewer."""
    tables = module("plus_tables")
    folder = tmp_path / "run" / "eval" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("evaluate: [{name: mine, task: {name: t}}]")
    for model in tables.MODELS:
        arm, temperature = model.partition(" + T")[:2]
        if arm == "fine-tune-copies":
            continue  # an arm that was not run
        for seed in ("",) if arm == "teacher" else ("@1", "@2"):
            right = {"first": 80, tables.WINNER: 79 - wrong}.get(model, 50) - (seed == "@2")
            answers = [int(place >= right) for place in range(100)]
            records = EvalRecords.from_log_probs(
                [str(place) for place in range(100)], answers, [np.log([0.8, 0.2])] * 100
            )
            name = arm + seed + temperature.replace(" + ", "+")
            records.save(folder / f"{name}.parquet", {})
    run(monkeypatch, "plus_tables", tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"Goal: {verdict}first-plus + T minus the best student, first: " in printed
    assert "| fine-tune + T | " in printed
    assert "fine-tune-copies" not in printed
    # The mean of 80 and 79 % right; ECE is the distance to the confidence of 80 %.
    assert "| first | 79.5 ± 0.7 | 0.5 ± 0.7 | 79.0 ± 1.4 |" in printed
