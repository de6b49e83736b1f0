"""Tiny recipes, and the command line called as a user calls it: in this process or in its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli import cli
from firstcli.stages import STAGES
from firstcli.workspace.artifacts import fingerprint
from support import blank_figures

WORLD: dict[str, Any] = {
    "name": "known-world",
    "options": {"train": 96, "test": 24, "shifted": 24, "choices": 3},
}
MODEL = {
    "family": "scratch",
    "options": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 300, "context": 128},
}
TRAINING = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16}


def recipe(**sections: Any) -> dict[str, Any]:
    """Return a recipe that runs in seconds, with some sections replaced; None leaves one out."""
    whole: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "train": {"task": WORLD, "validation": 0.3},
        "evaluate": [{"task": WORLD}, {"task": WORLD, "name": "shifted", "split": "shifted"}],
        "teacher": {"model": MODEL, "finetune": TRAINING},
        "student": {"model": MODEL, "training": TRAINING},
        "arms": {
            "fine-tune": {"learn": "labels"},
            "distill": {"recalibrator": {"name": "none"}},
            "first": {"recalibrator": {"name": "temperature-scaling"}},
        },
    } | sections
    return {key: value for key, value in whole.items() if value is not None}


def write_recipe(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**sections), sort_keys=False), "utf-8")
    return path


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """Write JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def sums(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of the `multiple-choice` task in its default columns."""
    return [
        {"id": f"q{i}", "question": f"{i} + {i}?", "choices": [str(2 * i), "no"], "answer": "AB"[0]}
        for i in range(first, first + count)
    ]


def of_files(folder: Path, **options: Any) -> dict[str, Any]:
    """Return the `multiple-choice` task over a folder."""
    return {"name": "multiple-choice", "options": {"path": str(folder), **options}}


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    def mistake(self, *parts: str) -> str:
        """Return the one error message of a user error, which has no traceback."""
        assert self.code == 2, f"exit code {self.code}:\n{self.out}\n{self.err}"
        assert "Traceback" not in self.err + self.out
        assert len(self.errors) == 1, self.err
        for part in parts:
            assert part in self.errors[0], f"{part!r} is missing in: {self.errors[0]}"
        return self.errors[0]


def first(*args: object) -> Result:
    """Call the command line in this process; a bug's exception passes through."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["first", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        return Result(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("the command line ends with an exit code")


def report(*args: object) -> Result:
    """Call `first report` for a test that does not look at the figures, which stay blank."""
    with pytest.MonkeyPatch.context() as patch:
        blank_figures.leave_blank(patch)
        return first("report", *args)


def start(*args: object, **env: str) -> subprocess.Popen[str]:
    """Start the command line in its own process."""
    return python("import sys; from firstcli.cli import main; sys.exit(main())", *args, **env)


def python(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    """Start Python on some code with arguments."""
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **quiet, **env},
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Wait for a process to end."""
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def pending(recipe: Path, *args: object) -> set[str]:
    """Return the units that the whole job would run."""
    result = first("report", recipe, "--dry-run", "--json", *args)
    assert result.code == 0, result.err
    return {unit["unit"] for unit in result.json["units"] if not unit["up_to_date"]}


@contextlib.contextmanager
def recorded_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note the key of every unit that is worked on."""
    keys: list[str] = []
    with monkeypatch.context() as patch:
        for stage in STAGES:

            def work(run: Any, unit: Any, folder: Path, real: Any = stage.work) -> Any:
                keys.append(unit.key)
                return real(run, unit, folder)

            patch.setattr(stage, "work", work)
        yield keys


def copy_run(source: Path, target: Path) -> Path:
    """Copy a run folder with its times, as `cp -a` would."""
    shutil.copytree(source, target)
    return target


def contents(folder: Path, *, but: Sequence[str] = ()) -> Mapping[str, bytes]:
    """Return every file's bytes by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


def times(folder: Path) -> Mapping[str, int]:
    """Return when every file was last written."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Finished:
    """A whole job that is done: the recipe and its run folder."""

    recipe: Path
    run: Path
    result: Result

    def copied_to(self, folder: Path) -> Path:
        """Copy the run folder, for a test that changes it."""
        return copy_run(self.run, folder / "run")


def as_format_1(run: Path) -> None:
    """Remove from every manifest what firstcli 0.1 did not record."""
    for path in [*run.rglob("manifest.json"), *run.rglob("*.manifest.json")]:
        manifest = json.loads(path.read_text("utf-8"))
        reads = {
            key: value
            for key, value in manifest["reads"].items()
            if not key.startswith("plugin of ") and not key.endswith((".criterion", ".bins"))
        }
        if manifest["unit"] == "report":  # its bins are the recipe's
            reads = manifest["reads"]
        manifest |= {"reads": reads, "fingerprint": fingerprint(reads), "format": 1}
        path.write_text(json.dumps(manifest), "utf-8")
