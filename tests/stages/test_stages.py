"""A new stage is one class and one line: it is planned, fingerprinted, run and listed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from firstcli import cli
from firstcli.recipe.schema import Recipe
from firstcli.stages import STAGES
from firstcli.stages.base import Facts, Option, Stage
from firstcli.stages.distill import DISTILL
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]


@dataclass(frozen=True, slots=True)
class WeighFacts(Facts):
    """The size of a student's weights."""

    weight: int


class Weigh(Stage):
    """Weighs every student."""

    name = "weigh"
    help = "Weigh the students."
    options = (Option("twice", "Weigh twice.", False),)

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for student in DISTILL.units(recipe, folder):
            artifact = Artifact(folder / "weights" / f"{student.subject}.json", False)
            yield Unit(f"weigh {student.subject}", self.name, artifact, (student.key,))

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        return {"unit of weight": "bytes"}

    def work(self, run: Run, unit: Unit, folder: Path) -> WeighFacts:
        name = unit.subject
        weight = (run.folder / "students" / name / "model.safetensors").stat().st_size
        (folder / f"{name}.json").write_text(json.dumps(weight))
        return WeighFacts(weight)


@pytest.fixture
def weigh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Weigh]:
    stage = Weigh()
    monkeypatch.setattr("firstcli.stages.STAGES", STAGES)
    STAGES.append(stage)  # the one line
    commands = list(cli.app.registered_commands)
    cli.add_stage(stage)  # as it happens when the command line is imported
    yield stage
    STAGES.remove(stage)
    cli.app.registered_commands[:] = commands


def test_it_is_planned_and_listed(weigh: Weigh, finished: Finished) -> None:
    assert "Weigh the students." in first("--help").out
    assert "--twice" in first("weigh", "--help").out
    plan = first("plan", finished.recipe, "--run-dir", finished.run, "--json").json
    pending = [unit["unit"] for unit in plan["units"] if not unit["up_to_date"]]
    assert pending == ["weigh fine-tune", "weigh distill", "weigh first"]


def test_it_runs_and_is_fingerprinted(
    weigh: Weigh, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.copied_to(tmp_path)
    command = ("weigh", finished.recipe, "--run-dir", run, "--json")
    result = first(*command)
    assert result.code == 0, result.err
    weight = (run / "students" / "first" / "model.safetensors").stat().st_size
    assert result.json["result"]["weigh first"] == {"weight": weight}
    assert json.loads((run / "weights" / "first.json").read_text()) == weight
    manifest = json.loads((run / "weights" / "first.manifest.json").read_text())
    assert manifest["reads"]["unit of weight"] == "bytes"
    assert "result of distill first" in manifest["reads"]
    again = first(*command, "--dry-run").json["units"]
    assert all(unit["up_to_date"] for unit in again)
    monkeypatch.setattr(Weigh, "format", 2)
    stale = {unit["unit"]: unit["reason"] for unit in first(*command, "--dry-run").json["units"]}
    assert stale["weigh first"] == "format changed (1 -> 2)"
    assert command_line.pending(finished.recipe, "--run-dir", run) == set()
