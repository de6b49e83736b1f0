"""`first report`: the decision, its options, and what was run."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from firstcli.checkpoints.folder import count_weights
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]


def test_the_report_prints_the_decision_that_it_stores(finished: Finished) -> None:
    result = first("report", finished.recipe, "--run-dir", finished.run)
    decision = json.loads((finished.run / "report" / "decision.json").read_text("utf-8"))
    assert decision["headline"] in result.out
    assert f"first predict {finished.run} --arm {decision['ship']['arm']} " in result.out
    assert (finished.run / decision["ship"]["folder"] / "model.safetensors").is_file()
    assert "[" not in result.out.split("report:")[0].rpartition("model")[2]  # no intervals
    answer = first("report", finished.recipe, "--run-dir", finished.run, "--json").json
    assert answer["result"]["decision"] == decision


def test_full_adds_all_intervals_and_notes(finished: Finished) -> None:
    result = first("report", finished.recipe, "--run-dir", finished.run, "--full")
    assert "first to fine-tune" in result.out and "data: 66 training samples" in result.out
    assert result.out.index("data: 66") < result.out.index("report: ")


@pytest.mark.parametrize("works", [True, False])
def test_open_shows_the_page_in_a_browser(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    opened: list[str] = []

    def browser(url: str) -> bool:
        opened.append(url)
        return works

    monkeypatch.setattr(webbrowser, "open", browser)
    result = first("report", finished.recipe, "--run-dir", finished.run, "--open")
    assert opened == [(finished.run / "report" / "index.html").resolve().as_uri()]
    assert result.code == 0 and ("no browser" in result.err) != works


def test_the_page_says_what_was_run(finished: Finished) -> None:
    html = (finished.run / "report" / "index.html").read_text("utf-8")
    count = count_weights(finished.run / "students" / "first")
    assert f"3 students ({count / 1e3:.1f} k weights)" in html
    assert "66 training rows, 30 held out · 2 evaluations · seed 7" in html
    assert str(finished.run.parent) not in html


def test_weights_are_counted_in_all_files_of_a_folder(tmp_path: Path) -> None:
    assert count_weights(tmp_path) == 0
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, tmp_path / "model-1.safetensors")
    save_file({"c": np.zeros((2, 2, 2))}, tmp_path / "model-2.safetensors")
    assert count_weights(tmp_path) == 12 + 5 + 8
