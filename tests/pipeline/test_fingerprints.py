"""Fingerprints cover plugins: effective options, defaults included, and the plugin's identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from firstcli.recalibration.builtin import TemperatureScaling, TemperatureScalingOptions
from firstcli.recalibration.criteria import Criterion
from support import command_line
from support.command_line import Finished, first
from support.wheels import install_wheel, new_python, run

pytest_plugins = ["support.finished_runs"]

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


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[str, float], None]]:
    """A Python without the plugin, and a function that installs a version of it."""
    folder = tmp_path_factory.mktemp("upgrade")
    python = new_python(folder)

    def install(version: str, weight: float) -> None:
        project = folder / version
        project.mkdir()
        (project / "pyproject.toml").write_text(PROJECT.format(version=version), "utf-8")
        (project / "firstcli_shrink.py").write_text(PLUGIN.format(weight=weight), "utf-8")
        install_wheel(python, project, folder / "wheels")

    return python, install


def test_an_upgraded_plugin_makes_exactly_its_dependants_stale(
    finished: Finished, tmp_path: Path, upgrade: tuple[Path, Callable[[str, float], None]]
) -> None:
    python, install = upgrade
    copied = finished.copied_to(tmp_path)
    arms = command_line.recipe()["arms"] | {"shrunk": {"recalibrator": {"name": "shrink"}}}
    recipe = command_line.write_recipe(tmp_path, arms=arms)
    command = (python, "-m", "firstcli", "report", recipe, "--run-dir", copied)

    def stale() -> dict[str, str]:
        units = json.loads(run(*command, "--dry-run", "--json"))["units"]
        return {unit["unit"]: unit["reason"] for unit in units if not unit["up_to_date"]}

    install("1.0", 0.9)
    run(*command)
    assert stale() == {}
    install("1.1", 0.5)
    after = stale()
    assert after.keys() == dependants("shrunk") - {"calibrate shrunk"}
    assert after["distill shrunk"].startswith(
        "plugin of arms.shrunk.recalibrator changed "
        "(firstcli-shrink 1.0, format 1 -> firstcli-shrink 1.1, format 1); "
        "source of the plugin of arms.shrunk.recalibrator changed"
    )
