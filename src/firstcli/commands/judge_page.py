"""The page of `first judge`: the report of a run, made of files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli.commands import judged_files
from firstcli.commands.judged_files import TABLES, JudgedFile
from firstcli.errors import UserError, shortened
from firstcli.metrics.records import Confidence
from firstcli.recipe.sections import MetricsSettings
from firstcli.reporting.data import FittedRecalibrator, ReportData
from firstcli.reporting.table import paper_table
from firstcli.reporting.terminal import TerminalTable
from firstcli.runtime.files import write_json

if TYPE_CHECKING:
    from firstcli.recalibration.diagnostics import CalibrationArtifact

FOLDER = Path("judge")
PAGE = "index.html"
RESULT = "judge.json"
"""The result of the command, by which a folder is recognised as its own."""
_OURS = frozenset({PAGE, RESULT, "decision.json", "table.md", "table.csv", "table.json", "figures"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two models, in words."""

    ours: str
    theirs: str
    text: str


@dataclass(frozen=True, slots=True)
class JudgedContent:
    """Everything that the page shows."""

    files: Sequence[JudgedFile]
    fitted: Mapping[str, CalibrationArtifact]
    """What was fitted, by the name of the recalibrated outputs."""
    confidence: Confidence
    bins: int
    comparisons: Sequence[Comparison]


class JudgeSettings(MetricsSettings):
    """Settings of outputs that do not say what is scored of a candidate."""

    @property
    def definition(self) -> str:
        """The settings in words, for captions."""
        return f"confidence: {self.confidence}, {self.bins} bins"


def page_folder(out: Path | None, first: Path) -> Path:
    """Return the folder of the page, after checking that nothing foreign would be replaced.

    Args:
        out: the folder, if one is given.
        first: the first judged file, which names the default folder.

    Raises:
        UserError: the folder holds something that this command did not write.
    """
    folder = FOLDER / first.stem if out is None else out
    if folder.resolve() == Path.cwd():
        raise UserError(f"--out {folder}: is the current folder; choose one inside it")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--out {folder}: is not a folder; choose a different one")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := sorted(names - _OURS if RESULT in names else names):
        raise UserError(
            f"--out {folder}: holds {shortened(foreign, 3)}, which `first judge` has not written; "
            "choose an empty or new folder"
        )
    return folder


def table(content: JudgedContent) -> TerminalTable:
    """Return the table of all files for the terminal."""
    return TerminalTable(paper_table(report_data(content)))


def write(folder: Path, content: JudgedContent, result: Mapping[str, Any]) -> Path:
    """Write the page and the result into a folder, which appears or changes as a whole.

    Args:
        folder: the folder, of which nothing foreign is replaced.
        content: what the page shows.
        result: the command's result.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written.
    """
    from firstcli.reporting.page import write_report

    work, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    try:
        for left in (work, old):  # of an interrupted command
            shutil.rmtree(left, ignore_errors=True)
        work.mkdir(parents=True)
        write_report(work, report_data(content))
        write_json(work / RESULT, result)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from error
    return folder / PAGE


def report_data(content: JudgedContent) -> ReportData:
    """Return the files as the content of a report: a row per model, an evaluation per data set."""
    evaluations = _evaluations(content.files)
    records = {
        (name, file.name): file.records for name, files in evaluations.items() for file in files
    }
    plain = all(file.path.suffix in TABLES for file in content.files)
    settings = (JudgeSettings if plain else MetricsSettings)(
        bins=content.bins,
        confidence=content.confidence,
        candidates=content.files[0].records.candidates,
    )
    return ReportData(
        run=_title([file.name for file in content.files if file.name not in content.fitted]),
        recipe=_description(content),
        members={file.name: (file.name,) for file in content.files},
        evaluations=list(evaluations),
        records=records,
        settings=settings,
        notes=_notes(content),
        location=None,
        versions={name: version(name) for name in ("firstcli", "numpy", "scipy")},
        calibrations={
            name: FittedRecalibrator(
                fit.ranks, fit.restored().diagnostics().curves, fit.facts.get("criterion")
            )
            for name, fit in content.fitted.items()
        },
    )


def _title(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _evaluations(files: Sequence[JudgedFile]) -> dict[str, list[JudgedFile]]:
    """Return the files by data set; each is named after its first file, a single one `outputs`."""
    alike: list[list[JudgedFile]] = []
    for file in files:
        for others in alike:
            if judged_files.same_questions(file, others[0]):
                others.append(file)
                break
        else:
            alike.append([file])
    if len(alike) == 1:
        return {"outputs": alike[0]}
    return {f"questions of {others[0].name}": others for others in alike}


def _description(content: JudgedContent) -> str:
    """Return what was judged, in place of a recipe."""
    lines = [f"confidence: {content.confidence}", f"bins: {content.bins}", "files:"]
    for path in dict.fromkeys(file.path for file in content.files):
        lines.append(f"  - {path.name}")
    if content.fitted:
        fit = next(iter(content.fitted.values()))
        lines += [f"recalibrate: {fit.recalibrator}", f"fitted on: {fit.rows} questions"]
    return "\n".join(lines) + "\n"


def _notes(content: JudgedContent) -> list[tuple[str, str]]:
    notes = []
    for file in content.files:
        if file.name not in content.fitted:
            of = " (confidence and correctness only)" if file.table.only_confidence else ""
            notes.append((file.name, f"{len(file.records)} questions of {file.path.name}{of}"))
    for name, fit in content.fitted.items():
        text = f"{fit.recalibrator} fitted on {fit.rows} other questions"
        if "temperature" in fit.facts:
            text += f": T = {fit.facts['temperature']:.4g}"
        notes.append((name, f"{text}: {fit.learned}" if fit.learned else text))
    return notes + [(f"{each.ours} minus {each.theirs}", each.text) for each in content.comparisons]
