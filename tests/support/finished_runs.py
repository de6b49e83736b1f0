"""Fixtures of tiny runs, for test files with `pytest_plugins = ["support.finished_runs"]`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import command_line
from support.command_line import Finished, first


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`first report` of the tiny recipe, from nothing; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    path = command_line.write_recipe(folder)
    result = first("report", path, "--run-dir", folder / "run", "--json")
    assert result.code == 0, result.err
    return Finished(path, folder / "run", result)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys of all units that are worked on."""
    with command_line.recorded_work(monkeypatch) as keys:
        yield keys
