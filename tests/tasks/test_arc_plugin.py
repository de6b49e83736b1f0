"""`plugins/firstcli-arc` as installed: found by its entry point, loaded like any other task."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.paths import PLUGINS

PLUGIN = PLUGINS / "firstcli-arc"

USE_IT = """
import sys
from firstcli import plugins
from firstcli.testing import check_task
found = plugins.find("tasks", "arc")
Arc = plugins.load("tasks", "arc")
assert "datasets" not in sys.modules, "loading a task must stay light"
task = Arc(Arc.Options.model_validate({"path": sys.argv[1]}))
check_task(task)
print(found.origin, task.load("test").samples[0].response)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the module and its metadata, as pip leaves them in site-packages."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / f"firstcli_arc-{project['version']}.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGIN / "src" / "firstcli_arc.py", site)
    name, version = project["name"], project["version"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {target}\n" for key, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def test_is_found_loaded_and_conforms(tmp_path: Path, installed: Path) -> None:
    choices = [{"text": "water", "label": "1"}, {"text": "sand", "label": "2"}]
    row = {"id": "q", "question": {"stem": "Wet?", "choices": choices}, "answerKey": "2"}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row))
    done = subprocess.run(
        [sys.executable, "-c", USE_IT, str(data)],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().replace("_", "-") == "firstcli-arc 0.2.0 B)."


def test_asks_for_the_contract_that_it_was_written_against() -> None:
    from firstcli import __version__

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert "firstcli>=0.1,<0.2" in project["dependencies"]
    assert __version__.startswith("0.1.")
