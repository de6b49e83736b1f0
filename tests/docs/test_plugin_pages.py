"""The code of docs/plugins/*.md works as it stands: it is installed, and its own tests pass."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from firstcli import plugins
from firstcli.plugins import Kind
from support.installed_plugins import Install
from support.paths import ROOT

pytest_plugins = ["support.installed_plugins"]

PAGES = ROOT / "docs" / "plugins"
KINDS: dict[str, Kind] = {
    "recalibrator": "recalibrators",
    "task": "tasks",
    "family": "families",
    "augmenter": "augmenters",
    "selector": "selectors",
    "annotator": "annotators",
    "objective": "objectives",
}


def blocks(page: str) -> dict[str, str]:
    """Return the code of a page, by file name or, without one, by language."""
    text = (PAGES / f"{page}.md").read_text()
    found = re.findall(r"(?:`([\w.]+)`:\n\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
    return {name or language: code for name, language, code in found}


@pytest.mark.parametrize("page", KINDS)
def test_the_plugin_of_a_page(page: str, install: Install, tmp_path: Path) -> None:
    code = blocks(page)
    project = tomllib.loads(code["pyproject.toml"])["project"]
    ((group, points),) = project["entry-points"].items()
    ((name, target),) = points.items()
    module, cls = target.split(":")
    assert group == f"firstcli.{KINDS[page]}"

    install(module, code[f"{module}.py"], kind=KINDS[page], name=name, target=target)
    loaded = plugins.load(KINDS[page], name)
    assert loaded is getattr(importlib.import_module(module), cls)
    assert inspect.getdoc(loaded)

    # Its options, as in the recipe of the page, are valid.
    for options in options_of(yaml.safe_load(code["yaml"]), name):
        loaded.Options.model_validate(options)

    own_tests = tmp_path / f"test_{module}.py"
    own_tests.write_text(code[f"test_{module}.py"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(own_tests)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=_environment(tmp_path / "site")
    )
    assert result.returncode == 0, result.stdout + result.stderr


def options_of(recipe: object, name: str) -> list[dict[str, object]]:
    """Return the options of each mention of a plugin."""
    if isinstance(recipe, list):
        return [each for value in recipe for each in options_of(value, name)]
    if not isinstance(recipe, dict):
        return []
    if name in (recipe.get("name"), recipe.get("family")):
        return [recipe.get("options", {})]
    return [each for value in recipe.values() for each in options_of(value, name)]


def _environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
