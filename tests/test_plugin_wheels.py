"""The recalibrator plugins as a user gets them: their wheels in fresh virtual environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.wheels import python_with, run, run_own_tests

GAPS = {"isotonic": 0.01, "adaptive": 0.1}
"""Largest remaining over-confidence; a temperature moves no probability in or out of the k."""

USE = """
import json, sys
import numpy as np
from firstcli import plugins
from firstcli.testing import check_recalibrator, overconfident_teacher

name = sys.argv[1]
(plugin,) = [p for p in plugins.registered("recalibrators") if p.name == name]
Plugin = plugins.load("recalibrators", name)
check_recalibrator(Plugin)

topk, is_label, mass, mass_mode = overconfident_teacher(5, "teacher")
fitted = Plugin(Plugin.Options.model_validate({}))
fitted.fit(topk, is_label, mass, mass_mode)
restored = Plugin(Plugin.Options())
restored.restore(json.loads(json.dumps(fitted.state())))
after = mass * restored.transform(topk)[:, 0]
print(plugin.package.replace("_", "-"), plugin.version, Plugin.__module__)
print(topk[:, 0].mean() - is_label[:, 0].mean(), abs(after.mean() - is_label[:, 0].mean()))
"""


@pytest.fixture(
    scope="module", params=["isotonic", pytest.param("adaptive", marks=pytest.mark.slow)]
)
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A plugin's name, and a Python that has its wheel."""
    name = str(request.param)
    return name, python_with(f"firstcli-{name}", tmp_path_factory.mktemp(name))


def test_the_installed_plugin_is_found_conforms_and_calibrates(installed: tuple[str, Path]) -> None:
    name, python = installed
    origin, numbers = run(python, "-c", USE, name).splitlines()
    assert origin == f"firstcli-{name} 0.3.0 firstcli_{name}"
    before, after = map(float, numbers.split())
    assert before > 0.1  # the simulated teacher is over-confident
    assert after < min(GAPS[name], before / 2)


def test_its_own_tests_pass_against_the_wheel(installed: tuple[str, Path], tmp_path: Path) -> None:
    name, python = installed
    assert "[100%]" in run_own_tests(python, f"firstcli-{name}", tmp_path)
