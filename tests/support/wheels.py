"""A plugin of `plugins/` as a user gets it: its wheel in a fresh virtual environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import firstcli
from support.paths import PLUGINS


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


def python_with(plugin: str, folder: Path) -> Path:
    """Return the interpreter of a new environment that holds nothing of its own but the plugin.

    firstcli and the dependencies come from the environment that runs the tests, for a test
    downloads nothing; the wheel is built with that environment's hatchling.
    """
    wheels = folder / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels)
    run(*pip, *build, PLUGINS / plugin)
    (wheel,) = wheels.glob(f"{plugin.replace('-', '_')}-*-py3-none-any.whl")

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


def run_own_tests(python: Path, plugin: str, folder: Path) -> str:
    """Let a plugin's own tests pass against its wheel; return what pytest prints."""
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return run(*pytest, f"--rootdir={folder}", PLUGINS / plugin)
