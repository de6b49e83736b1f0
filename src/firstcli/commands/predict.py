"""`first predict`: let a student answer texts, standard input or a file."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.table import Column, Table
from rich.text import Text

from firstcli.errors import UserError, shortened
from firstcli.runtime.console import Console
from firstcli.student.find import Choice, find_student
from firstcli.student.rows import FORMATS, rows_of, rows_of_lines, windows
from firstcli.student.usage import Usage, read_usage
from firstcli.tasks.tables import TableRow, read_rows

if TYPE_CHECKING:
    from firstcli.student.files import Tally
    from firstcli.student.load import TrainedStudent
    from firstcli.student.output import OutputSettings, Record

SHOWN_TEXT = 60
"""Characters of a text that the table in a terminal shows."""
SHADES = ((0.5, "bold red"), (0.8, "yellow"), (0.95, "green"))
"""The style of a generated token below each probability; others are plain."""


def predict(
    source: Path,
    texts: Sequence[str],
    *,
    arm: str | None,
    run_dir: Path | None,
    file: Path | None,
    out: Path | None,
    format: str | None,
    abstain_below: float | None,
    target_accuracy: float | None,
    top: int,
    max_new_tokens: int | None,
    batch_size: int | None,
    raw: bool,
    device: str,
    json: bool,
    quiet: bool,
) -> None:
    """Answer rows and print the answers, or write them to a file.

    Args:
        source: a student's folder, a run folder, or a recipe.
        texts: the texts to answer; without them and `file`, those of standard input.
        arm: the arm, if `source` is a run.
        run_dir: the run folder of a recipe, if it is not `runs/NAME`.
        file: a table with one row per text.
        out: where the answers to `file` are written; None prints them.
        format: how lines of standard input are read; None decides by the first one.
        abstain_below: confidence below which there is no prediction.
        target_accuracy: choose that confidence so that the answers reach this accuracy.
        top: number of runners-up.
        max_new_tokens: tokens after which a generated text is cut off.
        batch_size: rows per batch.
        raw: leave out the post-hoc recalibrator.
        device: where the model runs.
        json: print JSON lines also in a terminal.
        quiet: print no progress, warnings and summary.

    Raises:
        UserError: an option or the student cannot be used, or no row at all can be answered.
    """
    console = Console(json=True, quiet=quiet)  # the answers alone go to standard output
    _check(texts, file, out, format, abstain_below, target_accuracy)
    choice = find_student(source, arm, run_dir)
    usage = read_usage(choice.folder)
    raw = raw or choice.raw
    settings = _settings(
        usage, abstain_below, target_accuracy, top, max_new_tokens, batch_size, raw=raw
    )
    if file is not None and out is not None:
        tally = _predict_file(choice, usage, file, out, settings, console, device, raw=raw)
    else:
        rows = _rows(usage, texts, file, format)
        if file is None and texts:
            rows = list(rows)  # their mistakes before the model is loaded
        student = _loaded(choice, console, device, raw=raw)
        tally = _print_answers(student, rows, settings, as_json=json)
    _summarise(tally, settings, out, console)


def _check(
    texts: Sequence[str],
    file: Path | None,
    out: Path | None,
    format: str | None,
    abstain_below: float | None,
    target_accuracy: float | None,
) -> None:
    if file is not None and texts:
        raise UserError("first predict: give texts or --file, not both")
    if out is not None and file is None:
        raise UserError("first predict: --out needs --file; redirect standard output instead")
    if format is not None and (format not in FORMATS or file is not None or texts):
        raise UserError(
            f"--format {format}: expected {', '.join(FORMATS)}, for standard input; the name of a "
            "file determines its format"
        )
    if abstain_below is not None and target_accuracy is not None:
        raise UserError("first predict: give --abstain-below or --target-accuracy, not both")
    for name, value in (("abstain-below", abstain_below), ("target-accuracy", target_accuracy)):
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name} {value:g}: expected a number between 0 and 1")
    if file is None and not texts and sys.stdin.isatty():
        raise UserError(
            "first predict: nothing to answer; give texts, --file, or pipe lines into it"
        )


def _settings(
    usage: Usage,
    abstain_below: float | None,
    target_accuracy: float | None,
    top: int,
    max_new_tokens: int | None,
    batch_size: int | None,
    *,
    raw: bool,
) -> OutputSettings:
    from firstcli.student.load import MAX_NEW_TOKENS
    from firstcli.student.output import OutputSettings, threshold_of

    generates = usage.kind == "instruction"
    if generates and (abstain_below is not None or target_accuracy is not None):
        raise UserError("first predict: this student writes text, so it cannot abstain")
    if not generates and max_new_tokens is not None:
        raise UserError("--max-new-tokens: this student chooses an answer and writes no text")
    if target_accuracy is not None:
        abstain_below = threshold_of(usage, target_accuracy, raw=raw)
    return OutputSettings(top, abstain_below, max_new_tokens or MAX_NEW_TOKENS, batch_size)


def _rows(
    usage: Usage, texts: Sequence[str], file: Path | None, format: str | None
) -> Iterable[TableRow]:
    if file is not None:
        return read_rows(file)
    if texts:
        return rows_of(usage, texts)
    lines = iter(sys.stdin.readline, "")  # one by one, so that a slow source is answered
    return rows_of_lines(usage, lines, next((known for known in FORMATS if known == format), None))


def _loaded(choice: Choice, console: Console, device: str, *, raw: bool) -> TrainedStudent:
    with console.status(f"loading {choice.folder}"):
        from firstcli.student.load import load_student

        return load_student(choice.folder, raw=raw, device=device)


def _predict_file(
    choice: Choice,
    usage: Usage,
    file: Path,
    out: Path,
    settings: OutputSettings,
    console: Console,
    device: str,
    *,
    raw: bool,
) -> Tally:
    from firstcli.student import files

    if not file.exists():
        raise UserError(f"--file {file}: there is no such file")
    files.check_output(out, file)
    with console.status(f"reading {file}"):
        table = files.inspected(file, usage)
    student = _loaded(choice, console, device, raw=raw)
    identity = files.student_identity(choice.folder, usage, raw=raw)
    return files.predict_file(student, identity, table, out, settings, console)


def _print_answers(
    student: TrainedStudent, rows: Iterable[TableRow], settings: OutputSettings, *, as_json: bool
) -> Tally:
    """Print the answers window by window: a table in a terminal, else JSON lines."""
    from firstcli.student.files import Tally
    from firstcli.student.load import WINDOW
    from firstcli.student.output import check_columns, columns_of, merged, records_of

    terminal, tally = RichConsole(highlight=False), Tally()
    as_table = sys.stdout.isatty() and not as_json
    for window in windows(rows, WINDOW):
        records = records_of(student, window, settings)
        for row, record in zip(window, records, strict=True):
            check_columns(row.values, columns_of(student.usage, settings), row.where)
            tally.add(row.where, record)
        if as_table:
            for shown in _shown(student.usage, window, records):
                terminal.print(shown)
            continue
        for row, record in zip(window, records, strict=True):
            line = json_module.dumps(merged(row.values, record), ensure_ascii=False, default=str)
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return tally


def _shown(
    usage: Usage, rows: Sequence[TableRow], records: Sequence[Record]
) -> Iterator[Table | Text]:
    """Yield the answers for a terminal: one table, or each generated text."""
    if usage.kind == "instruction":
        for row, record in zip(rows, records, strict=True):
            yield Text(_brief(usage, row), style="bold")
            yield _coloured(record)
        return
    table = Table(
        Column("text", overflow="fold", ratio=3),
        Column("answer", overflow="fold", ratio=1),
        Column("confidence", justify="right"),
        Column("runners-up", overflow="fold", ratio=2),
    )
    for row, record in zip(rows, records, strict=True):
        table.add_row(Text(_brief(usage, row)), *_cells(record))
    yield table


def _cells(record: Record) -> tuple[Text, str, Text]:
    if record["error"] is not None:
        return Text("error", style="red"), "", Text(record["error"], style="red")
    answer = record["prediction"]
    others = (
        f"{each['prediction']} {each['confidence']:.1%}" for each in record.get("runners_up", ())
    )
    return (
        Text("no answer", style="yellow") if answer is None else Text(answer, style="bold"),
        f"{record['confidence']:.1%}",
        Text(", ".join(others)),
    )


def _brief(usage: Usage, row: TableRow) -> str:
    """Return the beginning of a row's text, in one line."""
    texts = (row.values.get(column) for column in usage.columns)
    text = " ".join(str(next((text for text in texts if text), "")).split())
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 1]}…"


def _coloured(record: Record) -> Text:
    """Return a generated text in which the colour of each token shows its probability."""
    if record["error"] is not None:
        return Text(record["error"], style="red")
    text = Text()
    for token in record["tokens"]:
        style = next((style for most, style in SHADES if token["probability"] < most), "")
        text.append(token["text"], style=style)
    tokens = [token["probability"] for token in record["tokens"]]
    least = f", least confident token {min(tokens):.1%}" if tokens else ""
    end = "" if record["finished"] else ", cut off by --max-new-tokens or the context"
    text.append(f"\n{len(tokens)} tokens{least}{end}\n", style="dim")
    return text


def _summarise(tally: Tally, settings: OutputSettings, out: Path | None, console: Console) -> None:
    """Name the bad rows and count all of them.

    Raises:
        UserError: there are rows, and all of them are bad.
    """
    first = tally.first_bad
    if tally.rows and tally.bad == tally.rows:
        raise UserError(f"none of the {tally.rows} rows can be answered: {shortened(first, 1)}")
    for problem in first:
        console.warn(problem)
    if tally.bad > len(first):
        console.warn(f"{tally.bad - len(first)} more rows with errors; see the column 'error'")
    if out is None and tally.rows < 2:
        return
    parts = [f"{tally.rows} rows", f"{tally.rows - tally.bad - tally.abstained} answered"]
    if settings.threshold is not None:
        parts.append(f"{tally.abstained} below the confidence {settings.threshold:.4g}")
    parts.append(f"{tally.bad} with an error")
    console.say(f"{'' if out is None else f'{out}: '}{', '.join(parts)}")
