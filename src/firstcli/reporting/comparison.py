"""Several runs side by side: one table, which for the paper's nine settings is its Table 1."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firstcli.metrics import METRICS
from firstcli.metrics.summary import DASH
from firstcli.reporting.templates import templates

SHOWN = ("ece", "accuracy", "trust")
"""The metrics of the paper's Table 1, in its order."""
CAPTION = (
    "in percent; ± half the width of the 95 % interval over questions; values of runs with several "
    "seeds are means"
)


@dataclass(frozen=True, slots=True)
class Questions:
    """What a model was asked: the questions of one evaluation, in order of their ids."""

    ids: tuple[str, ...]  # N
    answers: tuple[int, ...]  # N
    counts: tuple[int, ...]  # N, number of candidates


@dataclass(frozen=True, slots=True)
class Value:
    """A metric as a share of 1, and half the width of its interval."""

    mean: float
    half: float | None


@dataclass(frozen=True, slots=True)
class RunResults:
    """What a comparison shows of one run."""

    name: str
    where: str
    """The run's folder, for messages."""
    task: str
    """The training task."""
    models: str
    """Teacher and student, in words."""
    settings: Mapping[str, str]
    """The settings under `metrics` that change values."""
    questions: Mapping[str, Questions]
    """By evaluation, in the order of the recipe."""
    rows: tuple[str, ...]
    """The rows of the run's own table."""
    values: Mapping[tuple[str, str, str], Value]
    """By evaluation, row and metric."""
    paper: Mapping[tuple[str, str, str], float]
    """Published values, by evaluation, row and metric, as shares of 1."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group of columns: one evaluation of the runs in it."""

    title: str
    evaluation: str
    runs: tuple[int, ...]
    """Index of each run that belongs here."""


@dataclass(frozen=True, slots=True)
class Block:
    """A group of rows: one run, or all runs of the same two models."""

    title: str
    runs: tuple[int, ...]
    rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunTable:
    """The layout of the table of several runs."""

    runs: tuple[RunResults, ...]
    blocks: tuple[Block, ...]
    places: tuple[Place, ...]

    @classmethod
    def of(cls, runs: Sequence[RunResults]) -> RunTable:
        """Lay out the runs.

        Runs with the same two models share their rows if they were trained on different tasks, as
        in the paper's Table 1. Otherwise, each run has its own rows.
        """
        cells = [(run.models, run.task, name) for run in runs for name in run.questions]
        shares = len({run.models for run in runs}) < len(runs)
        if shares and len(set(cells)) == len(cells):
            titles = [run.models for run in runs]
            columns = [{name: _column(run.task, name) for name in run.questions} for run in runs]
        else:
            repeated = len({run.name for run in runs}) < len(runs)
            titles = _folders(runs) if repeated else [run.name for run in runs]
            columns = [{name: name for name in run.questions} for run in runs]

        blocks = []
        for title in dict.fromkeys(titles):
            members = tuple(i for i, own in enumerate(titles) if own == title)
            rows = dict.fromkeys(row for i in members for row in runs[i].rows)
            blocks.append(Block(title, members, tuple(rows)))
        places: dict[str, Place] = {}
        for i, names in enumerate(columns):
            for evaluation, title in names.items():
                known = places.get(title, Place(title, evaluation, ()))
                places[title] = Place(title, evaluation, (*known.runs, i))
        return cls(tuple(runs), tuple(blocks), tuple(places.values()))

    @property
    def has_paper(self) -> bool:
        """Whether any run states published values."""
        return any(run.paper for run in self.runs)

    def text(self, block: Block, row: str, place: Place, metric: str) -> str:
        """Format a cell, with the published value in brackets.

        Args:
            block: the group of rows.
            row: the row's model.
            place: the group of columns.
            metric: one of `SHOWN`.
        """
        key = (place.evaluation, row, metric)
        runs = list(self._members(block, place))
        value = next((run.values[key] for run in runs if key in run.values), None)
        published = next((run.paper[key] for run in runs if key in run.paper), None)
        text = DASH if value is None else METRICS[metric].text(value.mean)
        if value is not None and value.half is not None:
            text += f" ± {METRICS[metric].text(value.half)}"
        return text if published is None else f"{text} ({METRICS[metric].text(published)})"

    def shown(self, block: Block, place: Place) -> bool:
        """Whether a block has anything in a group of columns."""
        return any(True for _ in self._members(block, place))

    @property
    def caption(self) -> str:
        """What the numbers are."""
        (settings,) = {tuple(run.settings.items()) for run in self.runs}
        words = ", ".join(f"{key}: {value}" for key, value in settings)
        paper = "; published values in brackets" if self.has_paper else ""
        return f"{words}; {CAPTION}{paper}"

    def _members(self, block: Block, place: Place) -> Iterator[RunResults]:
        return (self.runs[i] for i in block.runs if i in place.runs)


def _folders(runs: Sequence[RunResults]) -> list[str]:
    """Return the runs' folders from where they differ on: no absolute path is published."""
    folders = [Path(run.where).resolve() for run in runs]
    common = os.path.commonpath(folders)
    return [folder.relative_to(common).as_posix() for folder in folders]


def _column(task: str, evaluation: str) -> str:
    return evaluation if task == evaluation else f"{task} → {evaluation}"


def differences_of_evaluation(runs: Sequence[RunResults]) -> list[str]:
    """Return why the runs' values cannot stand in one table: one sentence per difference."""
    first, *others = runs
    found = []
    for run in others:
        for key, value in run.settings.items():
            if value != first.settings[key]:
                found.append(
                    f"{run.where}: metrics.{key} is {value}, but {first.settings[key]} in "
                    f"{first.where}; write one of the reports again, with --set metrics.{key}=..."
                )
    owners: dict[str, RunResults] = {}
    for run in runs:
        for name, questions in run.questions.items():
            owner = owners.setdefault(name, run)
            if problem := _difference(owner.questions[name], questions):
                found.append(
                    f"{run.where}: evaluation '{name}' is not that of {owner.where}: {problem}; "
                    "evaluate both runs on the same data, or give the evaluations different names"
                )
    return found


def _difference(ours: Questions, theirs: Questions) -> str:
    """Say how two sets of questions differ; empty if they do not."""
    if ours == theirs:
        return ""
    common = set(ours.ids) & set(theirs.ids)
    if len(common) < len(ours.ids) or len(common) < len(theirs.ids):
        return (
            f"it has {len(theirs.ids):,} questions instead of {len(ours.ids):,}, with "
            f"{len(common):,} in common"
        )
    changed = sum(
        one != other
        for one, other in zip(
            zip(ours.answers, ours.counts, strict=True),
            zip(theirs.answers, theirs.counts, strict=True),
            strict=True,
        )
    )
    return f"{changed:,} of {len(ours.ids):,} questions have different answers or candidates"


def to_markdown(comparison: RunTable) -> str:
    """Return the table in Markdown."""
    headings = ["", "model"]
    for place in comparison.places:
        first, *rest = (METRICS[name].heading for name in SHOWN)
        headings += [f"{_escaped(place.title)}: {first}", *rest]
    lines = [headings, [":--", ":--", *["--:"] * (len(headings) - 2)]]
    for block in comparison.blocks:
        for i, row in enumerate(block.rows):
            cells = [
                comparison.text(block, row, place, name)
                for place in comparison.places
                for name in SHOWN
            ]
            lines.append([_escaped(block.title) if i == 0 else "", _escaped(row), *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{comparison.caption}\n"


def to_csv(comparison: RunTable) -> str:
    """Return one line per run, evaluation, row and metric, at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "evaluation", "model", "metric", "value", "half_width", "published"])
    for run in comparison.runs:
        for evaluation in run.questions:
            for row in run.rows:
                for metric in SHOWN:
                    key = (evaluation, row, metric)
                    value, published = run.values.get(key), run.paper.get(key)
                    if value or published is not None:
                        numbers = (value.mean, value.half) if value else (None, None)
                        writer.writerow([run.name, *key, *numbers, published])
    return file.getvalue()


def page(comparison: RunTable) -> str:
    """Return a self-contained page with the table."""
    headings = [METRICS[name].heading for name in SHOWN]
    template = templates().get_template("comparison.html.j2")
    return template.render(comparison=comparison, metrics=SHOWN, headings=headings)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
