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


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def python_with(plugin: str, folder: Path) -> Path:
    """Return the interpreter of a new environment that contains only one plugin of `plugins/`."""
    python = new_python(folder)
    install_wheel(python, PLUGINS / plugin, folder / "wheels")
    return python


def new_python(folder: Path) -> Path:
    """Return the interpreter of a new, empty environment.

    It borrows firstcli and the dependencies from the environment that runs the tests, because a
    test downloads nothing.
    """
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    borrowed |= {str(Path(firstcli.__file__).parents[1])}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(borrowed)]
    (Path(site) / "borrowed.pth").write_text("\n".join(lines), encoding="utf-8")
    return python


def install_wheel(python: Path, project: Path, wheels: Path) -> None:
    """Build a project's wheel with the tests' own hatchling, and install or upgrade it."""
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, project)
    newest = max(wheels.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
    run(*PIP, "--python", python, "install", "--upgrade", "--no-deps", "--no-index", newest)


def run_own_tests(python: Path, plugin: str, folder: Path) -> str:
    """Let a plugin's own tests pass against its wheel; return what pytest prints."""
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    return run(*pytest, f"--rootdir={folder}", PLUGINS / plugin)
