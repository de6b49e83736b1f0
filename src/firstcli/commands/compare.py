"""`first compare`: the results of several runs in one table and, with `--out`, on one page."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.markup import escape
from rich.table import Table

from firstcli.errors import UserError
from firstcli.metrics import METRICS
from firstcli.metrics.records import EvalRecords
from firstcli.reporting import comparison
from firstcli.reporting.comparison import SHOWN, Questions, RunResults, RunTable, Value
from firstcli.runtime.console import Console
from firstcli.runtime.files import write_text
from firstcli.runtime.redaction import without_folders
from firstcli.stages.report import REPORT
from firstcli.workspace.units import Model, records_path

_SETTINGS = ("confidence", "candidates", "bins")
_FILES = ("index.html", "table.md", "table.csv")


def show(runs: Sequence[Path], out: Path | None, *, json: bool, quiet: bool) -> dict[str, Any]:
    """Print and return the results of several runs.

    Args:
        runs: the run folders; each has a report.
        out: a folder for index.html, table.md and table.csv, if any.
        json: whether stdout is reserved for the result as JSON.
        quiet: whether to print nothing.

    Raises:
        UserError: a folder is not a run with a report, or the runs' evaluations differ.
    """
    if len({run.resolve() for run in runs}) < 2:
        raise UserError("first compare: give the folders of at least two runs")
    if out is not None:
        _check_folder(out)
    console = Console(json=json, quiet=quiet)
    results = [read(run) for run in runs]
    if problems := comparison.differences_of_evaluation(results):
        raise UserError(*problems)
    compared = RunTable.of(results)
    for table in tables(compared):
        console.show(table)
    console.say(compared.caption)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        texts = (
            comparison.page(compared),
            comparison.to_markdown(compared),
            comparison.to_csv(compared),
        )
        for name, text in zip(_FILES, texts, strict=True):
            write_text(out / name, text)
        console.say(f"page: {out / _FILES[0]}")
    return {
        "runs": [
            {
                "run": run.name,
                "evaluation": evaluation,
                "model": row,
                **{name: _json(run, evaluation, row, name) for name in SHOWN},
            }
            for run in results
            for evaluation in run.questions
            for row in run.rows
        ]
    }


def _check_folder(out: Path) -> None:
    if out.is_file():
        raise UserError(f"--out {out}: this is a file; give a folder")
    foreign = sorted({path.name for path in out.iterdir()} - {*_FILES}) if out.is_dir() else []
    if foreign:
        raise UserError(
            f"--out {out}: the folder has other files, such as {foreign[0]}; give a new folder"
        )


def _json(run: RunResults, evaluation: str, row: str, metric: str) -> dict[str, float | None]:
    key = (evaluation, row, metric)
    value = run.values.get(key)
    return {
        "value": value.mean if value else None,
        "half_width": value.half if value else None,
        "published": run.paper.get(key),
    }


def read(folder: Path) -> RunResults:
    """Read the results of a run from its report, its records and its recipe.

    Raises:
        UserError: the folder is not a run, or has no report, or one of its files is damaged.
    """
    recipe_file, table_file = folder / "recipe.yaml", folder / REPORT.name / "table.json"
    if not folder.is_dir() or not recipe_file.is_file():
        raise UserError(
            f"{folder}: there is no run here; expected a run folder, such as runs/quickstart"
        )
    if not table_file.is_file():
        raise UserError(
            f"{folder}: there is no report; run `first {REPORT.name}` for its recipe first"
        )
    try:
        recipe = yaml.safe_load(recipe_file.read_text("utf-8"))
        table = json_format.loads(table_file.read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{folder}: recipe.yaml or the report's table.json is damaged; run `first "
            f"{REPORT.name} --force` for its recipe"
        ) from error
    names = [section["name"] for section in recipe["evaluate"]]
    rows = [row for row in table["rows"] if row["evaluation"] in names]
    published = recipe.get("paper", {})
    return RunResults(
        name=recipe["name"],
        where=str(folder),
        task=recipe["train"]["task"]["name"],
        models=_models(recipe),
        # those of the values: a later command may have changed the recipe in the run folder
        settings={key: str(table.get(key, recipe["metrics"][key])) for key in _SETTINGS},
        questions={name: _questions(folder, name) for name in names},
        rows=tuple(dict.fromkeys(row["model"] for row in rows)),
        values={
            (row["evaluation"], row["model"], metric): _value(row, metric)
            for row in rows
            for metric in SHOWN
            if row[metric] is not None
        },
        paper={
            (evaluation, row, metric): number / 100
            for evaluation, models in published.items()
            for row, numbers in models.items()
            for metric, number in numbers.items()
        },
    )


def _value(row: Mapping[str, Any], metric: str) -> Value:
    interval = row["intervals"].get(metric)
    return Value(row[metric], None if interval is None else (interval[1] - interval[0]) / 2)


def _models(recipe: Mapping[str, Any]) -> str:
    """Name teacher and student; two models with different options are different."""
    sections = [recipe[role]["model"] for role in ("teacher", "student") if recipe.get(role)]
    return " → ".join(_model(section) for section in sections)


def _model(section: Mapping[str, Any]) -> str:
    checkpoint = section.get("checkpoint")
    options = ", ".join(f"{key} {value}" for key, value in section.get("options", {}).items())
    name = str(without_folders(checkpoint)) if checkpoint else str(section["family"])
    return f"{name} ({options})" if options else name


def _questions(folder: Path, evaluation: str) -> Questions:
    """Return the questions that the models of a run were asked, from any model's answers."""
    files = sorted(records_path(folder, evaluation, Model()).parent.glob("*.parquet"))
    if not files:
        raise UserError(
            f"{folder}: there are no answers to evaluation '{evaluation}'; run `first report` for "
            "its recipe again"
        )
    records = EvalRecords.load(files[0])
    order = sorted(range(len(records)), key=records.ids.__getitem__)
    return Questions(
        tuple(records.ids[i] for i in order),
        # Of free answers, index 0 is what the model said, so it says nothing of the question.
        tuple(0 if records.stated else int(records.answer[i]) for i in order),
        tuple(int(records.count[i]) for i in order),
    )


def tables(compared: RunTable) -> list[Table]:
    """Return one table per group of columns, which keeps each within 80 columns."""
    return [_table(compared, place) for place in compared.places]


def _table(compared: RunTable, place: comparison.Place) -> Table:
    table = Table(title=place.title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for name in SHOWN:
        table.add_column(METRICS[name].heading, justify="right", no_wrap=True)
    for block in compared.blocks:
        if compared.shown(block, place):
            table.add_section()
            table.add_row(f"[bold]{escape(block.title)}[/bold]", *[""] * len(SHOWN))
            for row in block.rows:
                cells = (compared.text(block, row, place, name) for name in SHOWN)
                table.add_row(f"  {escape(row)}", *cells)
    return table
