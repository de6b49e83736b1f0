"""Fingerprints cover plugins: effective options, defaults included, and the plugin's identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import Field

from firstcli.recalibration.builtin import TemperatureScaling, TemperatureScalingOptions
from firstcli.recalibration.criteria import Criterion
from support import command_line
from support.command_line import Finished, first
from support.wheels import install_wheel, new_python, run

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.finished_runs", "support.installed_plugins"]

EVALUATIONS = ("known-world", "shifted")


def dependants(arm: str) -> set[str]:
    students = {f"distill {arm}", *(f"eval {name}/{arm}" for name in EVALUATIONS)}
    return {f"calibrate {arm}", *students, "report"}


def reasons(recipe: Path, *args: object) -> dict[str, str]:
    units = first("report", recipe, "--dry-run", "--json", *args).json["units"]
    return {unit["unit"]: unit["reason"] for unit in units if not unit["up_to_date"]}


class ChangedOptions(TemperatureScalingOptions):
    """The options with a different default."""

    criterion: Criterion = Field(default="nll", description="The criterion.")


def test_a_changed_default_makes_its_dependants_stale(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TemperatureScaling, "Options", ChangedOptions)
    stale = reasons(finished.recipe, "--run-dir", finished.run)
    assert stale.keys() == dependants("first")
    change = "arms.first.recalibrator.options.criterion changed (ece -> nll)"
    assert stale["calibrate first"] == change


def test_stating_a_default_changes_nothing(finished: Finished) -> None:
    stated = ("--set", "arms.first.recalibrator.options.criterion=ece", "--run-dir", finished.run)
    assert command_line.pending(finished.recipe, *stated) == set()


def test_settings_that_change_no_result_leave_models_up_to_date(finished: Finished) -> None:
    fields = ("activation_checkpointing=true", "gradient_checkpointing=true")
    for field in fields:
        assert not command_line.pending(
            finished.recipe, "--run-dir", finished.run, "--set", f"trainer.{field}"
        )


def test_a_raised_format_makes_its_dependants_stale(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TemperatureScaling, "format", 2)
    stale = reasons(finished.recipe, "--run-dir", finished.run)
    assert stale.keys() == dependants("first")
    assert stale["calibrate first"] == (
        "plugin of arms.first.recalibrator changed (firstcli, format 1 -> firstcli, format 2)"
    )


# Runs of earlier versions.


def test_a_run_of_an_earlier_version_stays_up_to_date_with_a_note(
    finished: Finished, tmp_path: Path
) -> None:
    copied = finished.copied_to(tmp_path)
    command_line.as_format_1(copied)
    result = first("report", finished.recipe, "--run-dir", copied)
    assert "everything is up to date" in result.out
    assert result.err.count("recorded neither versions of plugins") == 1
    changed = ("--set", "arms.first.recalibrator.options.criterion=nll", "--run-dir", copied)
    assert command_line.pending(finished.recipe, *changed) == dependants("first")


# Other people's plugins.

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "firstcli-shrink"
version = "{version}"
[project.entry-points."firstcli.recalibrators"]
shrink = "firstcli_shrink:Shrink"
[tool.hatch.build.targets.wheel]
only-include = ["firstcli_shrink.py"]
"""
PLUGIN = """
from firstcli.api import PluginOptions, Recalibrator

class Shrink(Recalibrator[PluginOptions]):
    def transform(self, topk):
        return {weight} * topk / topk.sum(1, keepdims=True) + (1 - {weight}) / topk.shape[1]
"""


def with_shrunk(folder: Path) -> Path:
    """Write the recipe of the finished run with an arm that uses the plugin."""
    arms = command_line.recipe()["arms"] | {"shrunk": {"recalibrator": {"name": "shrink"}}}
    return command_line.write_recipe(folder, arms=arms)


def assert_upgraded(stale: dict[str, str]) -> None:
    """Check that the new version and its new code redo exactly what depends on the plugin."""
    assert stale.keys() == dependants("shrunk") - {"calibrate shrunk"}
    assert stale["distill shrunk"].startswith(
        "plugin of arms.shrunk.recalibrator changed "
        "(firstcli-shrink 1.0, format 1 -> firstcli-shrink 1.1, format 1); "
        "source of the plugin of arms.shrunk.recalibrator changed"
    )


def test_an_upgraded_plugin_makes_exactly_its_dependants_stale(
    finished: Finished, tmp_path: Path, install: Install
) -> None:
    run, recipe = finished.copied_to(tmp_path), with_shrunk(tmp_path)

    def upgrade(version: str, weight: float) -> None:
        code, target = PLUGIN.format(weight=weight), "firstcli_shrink:Shrink"
        install("firstcli-shrink", code, name="shrink", target=target, version=version)

    upgrade("1.0", 0.9)
    done = command_line.report(recipe, "--run-dir", run)
    assert done.code == 0, done.err
    assert reasons(recipe, "--run-dir", run) == {}
    upgrade("1.1", 0.5)
    assert_upgraded(reasons(recipe, "--run-dir", run))


@pytest.mark.slow
def test_pip_upgrades_a_plugin_likewise(finished: Finished, tmp_path: Path) -> None:
    """The same with wheels, in an environment of its own."""
    python, copied = new_python(tmp_path), finished.copied_to(tmp_path)
    command = (python, "-m", "firstcli", "report", with_shrunk(tmp_path), "--run-dir", copied)

    def upgrade(version: str, weight: float) -> None:
        project = tmp_path / version
        project.mkdir()
        (project / "pyproject.toml").write_text(PROJECT.format(version=version), "utf-8")
        (project / "firstcli_shrink.py").write_text(PLUGIN.format(weight=weight), "utf-8")
        install_wheel(python, project, tmp_path / "wheels")

    def stale() -> dict[str, str]:
        units = json.loads(run(*command, "--dry-run", "--json"))["units"]
        return {unit["unit"]: unit["reason"] for unit in units if not unit["up_to_date"]}

    upgrade("1.0", 0.9)
    run(*command)
    assert stale() == {}
    upgrade("1.1", 0.5)
    assert_upgraded(stale())
