"""`plugins/firstcli-isotonic` as a user gets it: its wheel in a fresh virtual environment.

Run alone: pytest tests/test_plugin_isotonic.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import firstcli

PLUGIN = Path(__file__).parents[1] / "plugins" / "firstcli-isotonic"


def run(*command: str | Path) -> str:
    """Run a command away from the checkout and return what it prints."""
    finished = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=sys.prefix,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment that holds nothing of its own but the plugin.

    firstcli and the dependencies come from the environment that runs the tests, for a test
    downloads nothing; the wheel is built with that environment's hatchling.
    """
    folder = tmp_path_factory.mktemp("isotonic")
    wheels = folder / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, PLUGIN)
    (wheel,) = wheels.glob("firstcli_isotonic-*-py3-none-any.whl")

    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    borrowed |= {str(Path(firstcli.__file__).parents[1])}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(borrowed)]
    (Path(site) / "borrowed.pth").write_text("\n".join(lines), encoding="utf-8")
    return python


USE = """
import json
import numpy as np
from firstcli import plugins
from firstcli.testing.recalibrators import check_recalibrator, overconfident_teacher

(plugin,) = [p for p in plugins.registered("recalibrators") if p.name == "isotonic"]
Isotonic = plugins.load("recalibrators", "isotonic")
check_recalibrator(Isotonic)

topk, is_true, mass = overconfident_teacher(5, mass_is_one=False)
isotonic = Isotonic(Isotonic.Options.model_validate({}))
isotonic.fit(topk, is_true, mass)
restored = Isotonic(Isotonic.Options())
restored.restore(json.loads(json.dumps(isotonic.state())))
taught = mass * restored.transform(topk)[:, 0]
print(plugin.package.replace("_", "-"), plugin.version, Isotonic.__module__)
print(topk[:, 0].mean() - is_true[:, 0].mean(), abs(taught.mean() - is_true[:, 0].mean()))
"""


def test_the_installed_plugin_is_found_conforms_and_calibrates(python: Path) -> None:
    origin, numbers = run(python, "-c", USE).splitlines()
    assert origin == "firstcli-isotonic 0.1.0 firstcli_isotonic"
    before, after = map(float, numbers.split())
    assert before > 0.1  # the invented teacher is over-confident
    assert after < 0.01


def test_its_own_tests_pass_against_the_wheel(python: Path, tmp_path: Path) -> None:
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", PLUGIN)
