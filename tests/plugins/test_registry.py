"""Plugins are listed without imports and loaded by name; a broken one affects nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import entrypoints
import pytest

from firstcli import plugins
from firstcli.errors import UserError
from firstcli.plugins import source_code
from support import command_line
from support.command_line import first

if TYPE_CHECKING:
    from support.installed_plugins import Install

pytest_plugins = ["support.installed_plugins"]

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
    assert all(len(plugins.registered(kind)) > 1 for kind in plugins.KINDS)
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


# A misspelt group, an entry point that is no class, the conformance checks.


@pytest.mark.parametrize(
    ("group", "meant"),
    [
        ("firstcli.recalibrator", "recalibrators"),
        ("firstcli.Recalibrators", "recalibrators"),
        ("firstcli-recalibrators", "recalibrators"),
        ("firscli.recalibrators", "recalibrators"),
        ("firstcli.task", "tasks"),
        ("firstcli.family", "families"),
    ],
)
def test_a_misspelt_group_is_named(
    install: Install, tmp_path: Path, group: str, meant: str
) -> None:
    install("first-mine", GOOD)
    points = next(tmp_path.glob("site/*.dist-info/entry_points.txt"))
    points.write_text(f"[{group}]\nmine = first_mine:Mine\n[console_scripts]\nx = y:z\n")
    sentence = (
        f"first-mine 1.2 registers 'mine' in the entry-point group '{group}', which firstcli does "
        f"not read (did you mean 'firstcli.{meant}'?)"
    )
    assert states()["?", "mine"].startswith(f"broken: {sentence}")
    first("plugins", "--check").mistake(sentence)
    path = command_line.write_recipe(tmp_path, arms={"arm": {"recalibrator": {"name": "mine"}}})
    first("plan", path).mistake("unknown recalibrator 'mine'", sentence)


def test_groups_of_other_programs_are_not_ours() -> None:
    looks = plugins.registry._looks_like_ours
    assert not any(map(looks, ("console_scripts", "pytest11", "mypy.plugins", "firstcli.tasks")))
    assert not plugins.misplaced()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def Mine(options): return None", "is a function"),
        ("Mine = 3", "is an int"),
        ("class Mine: ...", "is the class Mine"),
        ("from firstcli.api import Task as Mine", "is the class Task"),
    ],
)
def test_an_entry_point_must_be_a_class_of_its_kind(
    install: Install, tmp_path: Path, code: str, found: str
) -> None:
    install("first-mine", code)
    sentence = (
        f"recalibrator 'mine' from first-mine 1.2: first_mine:Mine {found}, expected a subclass of "
        "firstcli.api.Recalibrator"
    )
    first("plugins", "--check").mistake(sentence)
    path = command_line.write_recipe(tmp_path, arms={"arm": {"recalibrator": {"name": "mine"}}})
    first("plan", path).mistake(sentence)


HALF = GOOD.replace("return ", "return 0.5 * ")
REQUIRED = """
from firstcli.api import PluginOptions, Recalibrator

class Options(PluginOptions):
    size: int

class Mine(Recalibrator[Options]):
    Options = Options
"""
CRASHING = GOOD.replace("return ", "return None + ")
TASK = """
from firstcli.api import PluginOptions, Sample, Split, Task, UserError

class Mine(Task[PluginOptions]):
    splits = ("train",)
    def load(self, split):
        BODY
"""


@pytest.mark.parametrize(
    ("kind", "code", "state"),
    [
        ("recalibrators", GOOD, "works"),
        ("recalibrators", HALF, "breaks the contract: Mine.transform returns rows that do not su"),
        ("recalibrators", CRASHING, "failed in the conformance checks: TypeError: unsupported"),
        ("recalibrators", REQUIRED, "imports (some options are required"),
        ("tasks", TASK.replace("BODY", "return Split([])"), "breaks the contract: Mine, split "),
        (
            "tasks",
            TASK.replace("BODY", "raise UserError('no file')"),
            "imports (its samples cannot",
        ),
        ("tasks", TASK.replace("BODY", "return Split([Sample.question('q', 'ab', 0)])"), "works"),
    ],
)
def test_the_check_runs_the_conformance_checks(
    install: Install, kind: plugins.Kind, code: str, state: str
) -> None:
    install("first-mine", code, kind=kind)
    found = {row["name"]: row for row in first("plugins", "--check", "--json").json["plugins"]}
    assert state in found["mine"]["state"], found["mine"]
    assert found["mine"]["state"].startswith("broken") == (state[:5] not in ("works", "impor"))


# Source code.


def test_a_source_digest_follows_the_code_alone(install: Install) -> None:
    install("first-mine", GOOD)
    before = plugins.source("recalibrators", "mine")
    install("first-mine", GOOD)
    assert plugins.source("recalibrators", "mine") == before and len(before) == 16
    install("first-mine", GOOD + "# changed\n")
    assert plugins.source("recalibrators", "mine") != before
    assert plugins.source("recalibrators", "none") == ""


def test_a_package_and_recorded_files_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("some_pack/__init__.py", "some_pack/deep/inner.py", "some_other.py", "data.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    info = tmp_path / "some_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-dist\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_other.py,,\ndata.txt,,\n__editable___finder.py,,\n")
    files = source_code.files_of("some-dist", "some_pack.deep.inner")
    names = {"some_pack/__init__.py", "some_pack/deep/inner.py", "some_other.py"}
    assert files.keys() == names
    assert source_code.files_of("absent-dist", "absent.module") == {}
    assert source_code.digest_of("absent-dist", "absent.module") == ""
