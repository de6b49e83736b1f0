"""`kill -9` at random moments: rerunning the command ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support import command_line, killable
from support.killable import Ended, Moment

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "extract": ("extract",),
    "distill": ("distill", "--arm", "first"),
    "eval": ("eval", "--arm", "first"),
    "report": ("report",),  # from nothing
}
MADE_BY = {"extract": "knowledge", "distill": "students", "eval": "eval", "report": "report"}
OFTEN_SAVED = {"save_strategy": "steps", "save_steps": 2}
OWN = (".lock", ".digests.json", ".checks.json")  # the process, file times, the order of checks


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = {**command_line.TRAINING, "epochs": 2}
    return command_line.write_recipe(
        tmp_path_factory.mktemp("kills"),
        student={"model": command_line.MODEL, "training": training},
        trainer=OFTEN_SAVED,
        arms={"first": {"recalibrator": {"name": "temperature-scaling"}}},
    )


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    """An undisturbed run of the whole job."""
    run = recipe.parent / "undisturbed"
    ended = killable.command(("report", recipe), run)
    assert ended.code == 0, ended.output
    return run


def without(finished: Path, stage: str, run: Path) -> Path:
    """Copy a run in which this stage and all later ones are not done yet."""
    if stage == "report":
        return run
    stages = list(COMMANDS)
    command_line.copy_run(finished, run)
    for later in stages[stages.index(stage) :]:
        shutil.rmtree(run / MADE_BY[later])
    if stage == "extract":
        shutil.rmtree(run / "calibration")
    return run


def names(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*")}


def facts(manifest: bytes) -> dict[str, Any]:
    """Return a manifest without times, and without the digest of the page that shows them."""
    found = json.loads(manifest)
    if found["unit"] == "report":
        del found["content"], found["files"]["index.html"]
    return {key: value for key, value in found.items() if key != "seconds"}


def without_times(page: bytes) -> bytes:
    return re.sub(rb"<time>.*?</time>", b"", page)


def assert_same(run: Path, undisturbed: Path) -> None:
    """Compare the names of all files and folders, and the bytes of all files."""
    assert names(run) == names(undisturbed)
    found, expected = (
        command_line.contents(run, but=OWN),
        command_line.contents(undisturbed, but=OWN),
    )
    for name, data in expected.items():
        if name.endswith("manifest.json"):
            assert facts(found[name]) == facts(data), name
        elif name == "report/index.html":
            assert without_times(found[name]) == without_times(data)
        else:
            assert found[name] == data, name


def moments(ended: Ended, count: int, seed: int) -> list[Moment]:
    """Spread moments over an undisturbed run, alternately by CPU time and by steps on files."""
    draw = random.Random(seed)
    found = []
    for at in range(count):
        share = (at + draw.random()) / count
        if at % 2:
            found.append(Moment(seconds=share * ended.seconds))
        else:
            found.append(Moment(step=1 + int(share * ended.steps)))
    draw.shuffle(found)
    return found


def undisturbed(recipe: Path, finished: Path, stage: str, run: Path) -> tuple[Ended, Path]:
    """Run a stage under the name of the runs to be killed; return how it ended, and its folder."""
    name, *options = COMMANDS[stage]
    without(finished, stage, run)
    ended = killable.command((name, recipe, *options), run)
    assert ended.code == 0, ended.output
    return ended, run.rename(run.with_name("undisturbed"))


@pytest.mark.parametrize("stage", COMMANDS)
def test_kills_in_one_run_after_another(
    recipe: Path, finished: Path, tmp_path: Path, stage: str
) -> None:
    """Each rerun is killed again, until one is left to its end."""
    name, *options = COMMANDS[stage]
    whole, expected = undisturbed(recipe, finished, stage, tmp_path / "run")
    run = without(finished, stage, tmp_path / "run")
    kills = 0
    for moment in moments(whole, 3, seed=len(stage)):
        ended = killable.command((name, recipe, *options), run, moment)
        assert ended.code in (0, -9), ended.output
        kills += ended.code == -9
    last = killable.command((name, recipe, *options), run)
    assert last.code == 0, last.output
    assert kills
    assert_same(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMMANDS)
def test_a_kill_at_each_of_20_moments(
    recipe: Path, finished: Path, tmp_path: Path, stage: str
) -> None:
    name, *options = COMMANDS[stage]
    whole, expected = undisturbed(recipe, finished, stage, tmp_path / "run")
    killed = []
    for moment in moments(whole, 20, seed=len(stage)):
        run = without(finished, stage, tmp_path / "run")
        ended = killable.command((name, recipe, *options), run, moment)
        while ended.code == 0 and moment.seconds:  # faster than undisturbed: kill it earlier
            shutil.rmtree(run)
            run, moment = without(finished, stage, run), replace(moment, seconds=moment.seconds / 2)
            ended = killable.command((name, recipe, *options), run, moment)
        assert ended.code in (0, -9), ended.output
        killed += [moment] * (ended.code == -9)
        again = killable.command((name, recipe, *options), run)
        assert again.code == 0, again.output
        assert_same(run, expected)
        shutil.rmtree(run)
    print(f"{stage}: {len(killed)} kills in {whole.steps} steps and {whole.seconds:.2f} s")
    assert len(killed) >= 18
