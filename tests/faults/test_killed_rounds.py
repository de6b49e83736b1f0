"""`kill -9` during `first select`: the same questions are chosen, and nothing is bought twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import command_line, killable
from support.command_line import WORLD, contents
from support.killable import Moment

OWN = (".lock", ".digests.json", ".checks.json")
ACTIVE: dict[str, Any] = {
    "pool": {"task": {**WORLD, "options": {**WORLD["options"], "train": 160}}},
    "seed_samples": 12,
    "budget": {"samples": 10},
    "rounds": 2,
    "selector": {"name": "entropy"},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return command_line.write_recipe(
        tmp_path_factory.mktemp("rounds"),
        evaluate=[{"task": WORLD}],
        arms={"first": {"recalibrator": {"name": "temperature-scaling"}}},
        active=ACTIVE,
    )


def comparable(run: Path) -> dict[str, bytes]:
    """Return the content of all files that the rounds leave, without times."""
    found = {}
    for name, content in contents(run, but=OWN).items():
        if name.startswith(("rounds/", ".annotations/")) and name.endswith("manifest.json"):
            facts = {k: v for k, v in json.loads(content).items() if k != "seconds"}
            content = json.dumps(facts, sort_keys=True).encode()
        found[name] = content
    return {name: found[name] for name in found if name.startswith(("rounds/", ".annotations/"))}


@pytest.mark.parametrize(
    "shares", [(0.6,), pytest.param((0.3, 0.5, 0.4, 0.6), marks=pytest.mark.slow)]
)
def test_kills_in_one_run_after_another(
    recipe: Path, tmp_path: Path, shares: tuple[float, ...]
) -> None:
    """Each rerun is killed again, until one is left to its end."""
    run = tmp_path / "run"
    whole = killable.command(("select", recipe), run)
    assert whole.code == 0, whole.output
    undisturbed = run.rename(tmp_path / "undisturbed")
    expected = comparable(undisturbed)
    assert any(name.startswith(".annotations/") for name in expected)
    kills = 0
    for share in shares:
        moments = (Moment(step=int(share * whole.steps)), Moment(seconds=share * whole.seconds))
        ended = killable.command(("select", recipe), run, moments[kills % 2])
        assert ended.code in (0, -9), ended.output
        kills += ended.code == -9
    last = killable.command(("select", recipe), run)
    assert last.code == 0, last.output
    assert kills
    found = comparable(run)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
