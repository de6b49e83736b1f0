"""What the shell offers for `<TAB>`."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstcli.commands import completion
from firstcli.recipe import starters
from support import command_line
from support.command_line import first


def offered(monkeypatch: pytest.MonkeyPatch, *words: object) -> list[str]:
    """Return what bash is told for the last word, through typer."""
    with monkeypatch.context() as patch:
        patch.setenv("_FIRST_COMPLETE", "complete_bash")
        patch.setenv("COMP_WORDS", " ".join(map(str, words)))
        patch.setenv("COMP_CWORD", str(len(words) - 1))
        result = first()
    assert result.err == ""
    return result.out.split()


def test_starters(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [starter.name for starter in starters.starters()]
    assert offered(monkeypatch, "first", "init", "") == names
    some = [name for name in names if name.startswith("paper/")]
    assert offered(monkeypatch, "first", "init", "paper/") == some != []


def test_arms_of_the_recipe_on_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("first", "distill", command_line.write_recipe(tmp_path))
    arms = ["teacher", "fine-tune", "distill", "first"]
    assert offered(monkeypatch, *command, "--arm", "") == arms
    assert offered(monkeypatch, *command, "--arm", "f") == ["fine-tune", "first"]
    assert offered(monkeypatch, *command, "--arm", "first", "--arm", "f") == ["fine-tune"]
    override = ("--set", "'arms={x: {}}'")  # replaces the arms
    words = f"{' '.join(map(str, (*command, *override)))} --arm "
    monkeypatch.setenv("COMP_WORDS", words)
    assert completion.arms("") == ["teacher", "x"]


@pytest.mark.parametrize("text", [None, "", "[1, 2", "name: x", "extends: nowhere.yaml"])
def test_a_wrong_recipe_offers_nothing_or_the_default_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text, "utf-8")
    expected = ["first"] if text == "name: x" else []
    assert offered(monkeypatch, "first", "distill", path, "--arm", "") == expected


def test_arms_of_a_recipe_that_is_not_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = command_line.write_recipe(tmp_path, seed="none")
    assert "first" in offered(monkeypatch, "first", "eval", path, "--arm", "")


def test_an_unfinished_quotation_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "first distill 'my recipe")
    assert completion.arms("") == []


def test_plugins_with_kind_and_package() -> None:
    found = dict(completion.plugins("l"))
    assert found["label-smoothing"] == "recalibrator of firstcli"
    assert found.keys() == {"label", "label-smoothing", "least-confidence", "logit-temperature"}
