"""Help starts fast and recipes load without torch: each layer imports what it needs, no more."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from firstcli.metrics.records import EvalRecords
from firstcli.recipe import starters
from support import command_line
from support.command_line import Finished, first

pytest_plugins = ["support.finished_runs"]

HEAVY = ("torch", "transformers", "datasets", "numpy", "pydantic", "yaml", "entrypoints", "pyarrow")
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # importing it fails
{code}
"""
MAIN = "import sys; from firstcli.cli import main; sys.exit(main())"


def without(names: tuple[str, ...], code: str, *args: object) -> command_line.Result:
    return command_line.finish(command_line.python(WITHOUT.format(names=names, code=code), *args))


def test_help_needs_typer_alone() -> None:
    result = without(HEAVY, MAIN, "--help")
    assert (result.code, result.err) == (0, "")
    assert "distill" in result.out


def test_help_of_a_command_needs_what_typer_needs() -> None:
    # Recent versions of typer themselves read a command's parameters with pydantic.
    heavy = tuple(name for name in HEAVY if name != "pydantic")
    result = without(heavy, MAIN, "distill", "--help")
    assert (result.code, result.err) == (0, "")
    assert "--run-dir" in result.out


LOAD = """
import sys
from pathlib import Path
from firstcli.recipe.load import load_recipe
for path in sys.argv[1:]:
    load_recipe(Path(path))
heavy = {"torch", "transformers", "datasets", "accelerate", "matplotlib", "sklearn", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""


def test_recipes_load_without_torch(tmp_path: Path) -> None:
    paths = [command_line.write_recipe(tmp_path)]
    for starter in starters.starters():
        paths.append(tmp_path / f"{starter.name.replace('/', '-')}.yaml")
        paths[-1].write_text(starter.text, "utf-8")
    result = command_line.finish(command_line.python(LOAD, *paths))
    assert result.code == 0, result.err
    assert result.out == "[]\n"


def test_listing_and_starters_need_no_torch() -> None:
    for args in (("init",), ("init", "quickstart"), ("init", "--schema"), ("plugins",)):
        result = without(("torch", "transformers", "datasets"), MAIN, *args)
        assert result.code == 0, result.err


JUDGE = """
import sys
from pathlib import Path
from firstcli.commands import judge
judge.show(Path(sys.argv[1]), None, "candidates", 10, json=True, quiet=True)
print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""


def test_outputs_are_judged_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    EvalRecords.from_log_probs(["a", "b"], [0, 1], [[-1.0, -2.0]] * 2).save(path, {})
    result = command_line.finish(command_line.python(JUDGE, path))
    assert result.code == 0, result.err
    assert result.out == "[]\n"


def test_a_dry_run_of_a_new_run_needs_no_torch(tmp_path: Path) -> None:
    path = command_line.write_recipe(tmp_path)
    args = ("report", path, "--dry-run", "--run-dir", tmp_path / "run")
    result = without(("torch", "transformers", "datasets"), MAIN, *args)
    assert result.code == 0, result.err


@pytest.mark.parametrize("command", ["report", "plan"])
def test_an_up_to_date_run_is_shown_without_torch(finished: Finished, command: str) -> None:
    """Its checks are remembered by content, and the report's table is stored."""
    libraries = ("torch", "transformers", "datasets", "scipy", "sklearn", "matplotlib", "pyarrow")
    result = without(libraries, MAIN, command, finished.recipe, "--run-dir", finished.run)
    assert result.code == 0, result.err
    assert "reading split" not in result.out  # nor is the data read
    assert ("66 samples" if command == "plan" else "--full prints all tables") in result.out


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    """Remembered checks depend on the content of the data."""
    rows = command_line.write_rows(tmp_path / "data" / "train.jsonl", command_line.sums(40))
    command_line.write_rows(tmp_path / "data" / "test.jsonl", command_line.sums(9, 50))
    task = command_line.of_files(tmp_path / "data")
    arms = {"fine-tune": {"learn": "labels"}}
    sections = {"train": {"task": task}, "evaluate": [{"task": task}], "teacher": None}
    path = command_line.write_recipe(tmp_path, arms=arms, **sections)
    command = ("plan", path, "--run-dir", tmp_path / "run")
    assert command_line.report(*command[1:]).code == 0
    assert first(*command).code == 0
    assert "reading split" not in first(*command).out
    command_line.write_rows(rows, [*command_line.sums(40), command_line.sums(1)[0] | {"id": "x"}])
    again = first(*command)
    assert "reading split 'train'" in again.out
    assert "1 rows of split 'train' repeat" in again.err
    assert "1 rows of split 'train' repeat" in first(*command).err


def test_types_are_shipped() -> None:
    assert files("firstcli").joinpath("py.typed").is_file()
