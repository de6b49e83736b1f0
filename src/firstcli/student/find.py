"""Find the folder of the student that a user means: the folder itself, a run folder or a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.run_folders import of_rounds, recommended
from firstcli.student.usage import FILE, read_usage
from firstcli.workspace.units import STUDENTS, split_title


@dataclass(frozen=True, slots=True)
class Choice:
    """A student's folder, and whether its post-hoc recalibrator is left out."""

    folder: Path
    raw: bool = False


def find_student(source: Path, arm: str | None = None, run_dir: Path | None = None) -> Choice:
    """Return the student that is meant.

    Args:
        source: a student's folder, a run folder, or a recipe.
        arm: a row of the report's tables, for a run folder or recipe: `NAME + T` with the post-hoc
            recalibrator, `NAME` without; `NAME@SEED` is one of several seeds. None chooses what
            the report recommends, or the only student.
        run_dir: the run folder of a recipe, if it is not `runs/NAME`.

    Raises:
        UserError: there is no such student, or several come into question.
    """
    if source.is_dir() and ((source / FILE).is_file() or (source / "config.json").is_file()):
        if arm and read_usage(source).arm != split_title(arm)[0].partition("@")[0]:
            raise UserError(
                f"--arm {arm}: {source} is the folder of '{read_usage(source).arm}'; leave --arm "
                "out, or give the run folder"
            )
        return _with_or_without(source, arm) if arm else Choice(source)
    run = _run_folder(source, run_dir)
    students = _students(run)
    if arm is not None:
        return _with_or_without(_of_arm(run, students, arm), arm)
    if (shipped := _recommended(run)) is not None:
        return shipped
    if len(students) == 1:
        return Choice(next(iter(students.values())))
    if not students:
        raise UserError(
            f"{run}: has no student with a {FILE}; run `first distill` with its recipe first"
        )
    raise UserError(
        f"{run}: has several students, {', '.join(students)}; choose one with --arm, or run "
        "`first report`, which recommends one"
    )


def _run_folder(source: Path, run_dir: Path | None) -> Path:
    if source.is_dir():
        if not (source / STUDENTS).is_dir():
            raise UserError(
                f"{source}: neither a student's folder (with {FILE}) nor a run folder (with "
                f"{STUDENTS}/){of_rounds(source)}"
            )
        return source
    if not source.is_file():
        raise UserError(f"{source}: there is no such folder or recipe")
    if run_dir is None:
        from firstcli.recipe.load import load_recipe

        run_dir = load_recipe(source).run_folder
    if not (run_dir / STUDENTS).is_dir():
        advice = of_rounds(run_dir) or f"; run `first distill {source}` first"
        raise UserError(f"{run_dir}: has no students yet{advice}")
    return run_dir


def _students(run: Path) -> dict[str, Path]:
    """Return the complete folders of a run's students, by arm or `arm@seed`."""
    folders = sorted((run / STUDENTS).iterdir())
    return {
        folder.name: folder
        for folder in folders
        if not folder.name.startswith(".") and (folder / FILE).is_file()
    }


def _with_or_without(folder: Path, arm: str) -> Choice:
    """Return the student with its recalibrator, or without if the arm does not name that."""
    name, posthoc = split_title(arm)
    usage = read_usage(folder)
    if usage.folded and not posthoc:
        raise UserError(
            f"--arm {arm}: the temperature of {folder} is folded into its weights and cannot "
            f"be left out; give the run folder, or --arm '{name} + T'"
        )
    if not posthoc:
        return Choice(folder, raw=True)
    if usage.posthoc is None and not usage.folded:
        raise UserError(f"--arm {arm}: '{name}' has no post-hoc recalibrator; leave out + T")
    return Choice(folder)


def _of_arm(run: Path, students: dict[str, Path], arm: str) -> Path:
    name, _ = split_title(arm)
    if name in students:
        return students[name]
    if name == "teacher" and (run / "teacher" / FILE).is_file():
        return run / "teacher"
    if seeds := [known for known in students if known.rpartition("@")[0] == name]:
        raise UserError(
            f"--arm {arm}: the run has several seeds of it; choose {' or '.join(seeds)}"
        )
    raise UserError(
        f"--arm {arm}: {run} has no such student{did_you_mean(name, students)}; it has "
        f"{', '.join(students) or 'none yet'}"
    )


def _recommended(run: Path) -> Choice | None:
    """Return the student that the report recommends, if it does and the folder exists."""
    if (best := recommended(run)) is None:
        return None
    name = best.name
    folder = run / name if name == "teacher" else run / STUDENTS / name
    if not (folder / FILE).is_file():
        return None
    return Choice(folder, raw=not best.posthoc)
