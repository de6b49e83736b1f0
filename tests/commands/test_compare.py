"""`first compare`: runs of the same evaluation, and why others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]


@pytest.fixture
def runs(finished: Finished, tmp_path: Path) -> tuple[Path, Path]:
    """A finished run, and a copy of it with a different name and published values."""
    copy = tmp_path / "copy"
    shutil.copytree(finished.run, copy)
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe |= {"name": "copy", "paper": {"known-world": {"first": {"ece": 2.9}}}}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return finished.run, copy


def test_two_runs_in_one_table(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "page"
    result = first("compare", *runs, "--out", out, "--json")
    assert result.code == 0, result.err
    shown = json.loads(result.out)["runs"]
    ours, theirs = (
        [row for row in shown if row["run"] == name and row["model"] == "first"]
        for name in ("tiny", "copy")
    )
    table = json.loads((runs[0] / "report" / "table.json").read_text())
    stored = {row["evaluation"]: row for row in table["rows"] if row["model"] == "first"}
    for row in ours:
        for metric in ("ece", "accuracy", "trust"):
            low, high = stored[row["evaluation"]]["intervals"][metric]
            assert row[metric]["value"] == stored[row["evaluation"]][metric]
            assert row[metric]["half_width"] == pytest.approx((high - low) / 2)
    assert [row["ece"]["published"] for row in theirs] == [pytest.approx(0.029), None]
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "table.csv", "table.md"]
    assert str(tmp_path) not in (out / "index.html").read_text()


def test_the_table_fits_into_80_columns(runs: tuple[Path, Path]) -> None:
    result = first("compare", *runs)
    assert result.code == 0
    assert "(2.9)" in result.out
    *table, caption = result.out.splitlines()
    assert caption.startswith("confidence: candidates, candidates: first-token, bins: 10;")
    assert max(map(len, table)) <= 80


def test_runs_with_different_settings_are_refused(runs: tuple[Path, Path]) -> None:
    file = runs[1] / "report" / "table.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bins": 15}))
    first("compare", *runs).mistake("metrics.bins is 15, but 10 in")


def test_the_settings_are_those_of_the_report(runs: tuple[Path, Path]) -> None:
    """A later `first distill` with a changed recipe rewrites the one in the run folder."""
    recipe = yaml.safe_load((runs[1] / "recipe.yaml").read_text())
    recipe["metrics"] |= {"bins": 15, "candidates": "whole"}
    (runs[1] / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = first("compare", *runs)
    assert result.code == 0, result.err
    assert "candidates: first-token, bins: 10;" in result.out


def test_mistakes(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = runs
    first("compare", one).mistake("at least two runs")
    first("compare", one, one).mistake("at least two runs")
    first("compare", one, tmp_path / "missing").mistake("there is no run here")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("mine")
    out = ("--out", tmp_path / "page")
    first("compare", one, other, *out).mistake("has other files, such as mine.txt")
    (other / "report" / "table.json").write_text("{")
    first("compare", one, other).mistake("table.json is damaged", "--force")
    shutil.rmtree(other / "report")
    first("compare", one, other).mistake("there is no report")
