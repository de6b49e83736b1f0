"""`plugins/firstcli-adaptive` as a user gets it: its wheel in a fresh virtual environment.

Run alone: pytest tests/test_plugin_adaptive.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wheels import python_with, run, run_own_tests

PLUGIN = "firstcli-adaptive"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(PLUGIN, tmp_path_factory.mktemp("adaptive"))


USE = """
import json
import numpy as np
from firstcli import plugins
from firstcli.testing.recalibrators import check_recalibrator, overconfident_teacher

(plugin,) = [p for p in plugins.registered("recalibrators") if p.name == "adaptive"]
Adaptive = plugins.load("recalibrators", "adaptive")
check_recalibrator(Adaptive)

topk, is_true, mass = overconfident_teacher(5, mass_is_one=False)
adaptive = Adaptive(Adaptive.Options.model_validate({}))
adaptive.fit(topk, is_true, mass)
restored = Adaptive(Adaptive.Options())
restored.restore(json.loads(json.dumps(adaptive.state())))
taught = mass * restored.transform(topk)[:, 0]
print(plugin.package.replace("_", "-"), plugin.version, Adaptive.__module__)
print(topk[:, 0].mean() - is_true[:, 0].mean(), abs(taught.mean() - is_true[:, 0].mean()))
"""


def test_the_installed_plugin_is_found_conforms_and_calibrates(python: Path) -> None:
    origin, numbers = run(python, "-c", USE).splitlines()
    assert origin == "firstcli-adaptive 0.1.0 firstcli_adaptive"
    before, after = map(float, numbers.split())
    assert before > 0.1  # the invented teacher is over-confident
    assert after < before / 2  # T moves no probability in or out of the k tokens


def test_its_own_tests_pass_against_the_wheel(python: Path, tmp_path: Path) -> None:
    run_own_tests(python, PLUGIN, tmp_path)
