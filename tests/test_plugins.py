"""Plugins are listed without imports and loaded by name; a broken one affects nothing else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import entrypoints
import pytest

from firstcli import plugins
from firstcli.errors import UserError
from firstcli.plugins import Kind
from support import command_line
from support.command_line import first

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one module and its entry points, as pip would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(
        package: str, code: str, *, kind: Kind = "recalibrators", name: str = "mine"
    ) -> None:
        module = package.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        info = site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        points = f"[firstcli.{kind}]\n{name} = {module}:Mine\n"
        (info / "entry_points.txt").write_text(points)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return installed


GOOD = """
from firstcli.api import PluginOptions, Recalibrator

class Mine(Recalibrator[PluginOptions]):
    def transform(self, topk):
        return topk / topk.sum(1, keepdims=True)
"""
BROKEN = "raise ImportError('no module\\nof that name')"


def states() -> dict[tuple[str, str], str]:
    rows = first("plugins", "--json").json["plugins"]
    return {(row["kind"], row["name"]): row["state"] for row in rows}


def test_the_built_in_plugins_work() -> None:
    result = first("plugins", "--check", "--json")
    assert result.code == 0
    names = {(row["kind"], row["name"]) for row in result.json["plugins"]}
    assert {("family", "causal-lm"), ("family", "scratch")} <= names
    tasks = "known-world multiple-choice instruction commonsense-qa openbook-qa boolq alpaca"
    assert {("task", name) for name in tasks.split()} <= names
    recalibrators = "none label-smoothing temperature-scaling logit-temperature"
    assert {("recalibrator", name) for name in recalibrators.split()} <= names
    own = [row for row in result.json["plugins"] if row["package"] == "firstcli"]
    assert len(own) >= 13
    assert all(row["version"] and row["state"] == "works" for row in own)


def test_the_list_is_a_table() -> None:
    shown = first("plugins").out
    assert "temperature-scaling" in shown and "firstcli" in shown and "registered" in shown


def test_listing_imports_nothing(install: Install) -> None:
    install("first-mine", "raise SystemExit('imported')")
    assert states()["recalibrator", "mine"] == "registered"
    assert "first_mine" not in sys.modules


def test_a_third_party_plugin_is_listed_with_its_package_and_used(
    install: Install, tmp_path: Path
) -> None:
    install("first-mine", GOOD)
    rows = first("plugins", "--check", "--json").json["plugins"]
    row = next(row for row in rows if row["name"] == "mine")
    assert (row["package"], row["version"], row["state"]) == ("first-mine", "1.2", "works")
    path = command_line.write_recipe(tmp_path, arms={"arm": {"recalibrator": {"name": "mine"}}})
    result = first("plan", path)
    assert result.code == 0, result.err


def test_a_broken_plugin_breaks_only_recipes_that_name_it(install: Install, tmp_path: Path) -> None:
    install("first-mine", BROKEN)
    path = command_line.write_recipe(tmp_path)
    assert first("plan", path).code == 0
    assert first("plugins").code == 0
    named = first("plan", path, "--set", "arms.distill.recalibrator.name=mine")
    named.mistake(
        "recalibrator 'mine' from first-mine 1.2 cannot be imported",
        "ImportError: no module of that name",
    )
    checked = first("plugins", "--check", "--json")
    checked.mistake("'mine' from first-mine 1.2", "ImportError")
    others = [row for row in checked.json["plugins"] if row["name"] != "mine"]
    assert all(row["state"] == "works" for row in others)


@pytest.mark.parametrize("code", ["x = 1", "raise SystemExit(3)", "def f(:", "1 / 0"])
def test_any_failure_of_a_module_is_reported_as_its_error(install: Install, code: str) -> None:
    install("first-mine", code)
    first("plugins", "--check").mistake("'mine' from first-mine 1.2", "cannot be imported")


def test_two_plugins_of_one_name(install: Install, tmp_path: Path) -> None:
    install("first-mine", GOOD)
    install("first-yours", GOOD)
    message = ("'mine'", "first-mine 1.2", "first-yours 1.2", "uninstall all but one")
    first("plugins", "--check").mistake(*message)
    assert states()["recalibrator", "mine"].startswith("broken: ")
    path = command_line.write_recipe(tmp_path, arms={"arm": {"recalibrator": {"name": "mine"}}})
    first("plan", path).mistake(f"{path}:", "arms.arm.recalibrator.name", *message)
    assert first("plan", command_line.write_recipe(tmp_path)).code == 0


def test_no_plugin_can_replace_a_built_in(install: Install, tmp_path: Path) -> None:
    install("first-mine", GOOD, name="none")
    with pytest.raises(UserError, match=r"registered by first-mine 1\.2 .* and firstcli"):
        plugins.load("recalibrators", "none")
    first("plan", command_line.write_recipe(tmp_path)).mistake("'none' is registered by")


def test_kinds_have_separate_names(install: Install) -> None:
    install("first-mine", GOOD, name="scratch")
    assert plugins.load("families", "scratch").__name__ == "Scratch"
    assert plugins.load("recalibrators", "scratch").__name__ == "Mine"


def test_unknown_names_show_what_exists() -> None:
    with pytest.raises(UserError) as caught:
        plugins.find("families", "casual-lm")
    assert str(caught.value) == (
        "unknown family 'casual-lm' (did you mean 'causal-lm'?); available: causal-lm, scratch"
    )


def test_the_search_path_is_scanned_once_and_again_when_it_changes(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Mock(side_effect=entrypoints.iter_files_distros)
    monkeypatch.setattr(entrypoints, "iter_files_distros", scan)
    install("first-mine", GOOD)
    assert plugins.load("recalibrators", "mine") is plugins.load("recalibrators", "mine")
    assert [len(plugins.registered(kind)) > 1 for kind in plugins.KINDS] == [True, True, True]
    assert scan.call_count == 1
    monkeypatch.syspath_prepend(str(tmp_path / "empty"))
    plugins.registered("tasks")
    assert scan.call_count == 2


def test_identities_have_the_version_of_third_parties_only(install: Install) -> None:
    install("first-mine", GOOD)
    assert plugins.identity("recalibrators", "mine") == "first-mine 1.2, format 1"
    assert plugins.identity("families", "scratch") == "firstcli, format 1"
    plugins.load("recalibrators", "mine").format = 3
    assert plugins.identity("recalibrators", "mine") == "first-mine 1.2, format 3"
