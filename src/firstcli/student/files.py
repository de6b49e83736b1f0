"""Answer the rows of a file: in constant memory, resumable, and without losing a row.

The predictions of each window of rows are appended to a work file beside the output. A killed run
leaves it behind; the next run keeps its complete windows, if input, student and settings are the
same, and goes on. Windows do not depend on where a run was killed, so the result is the same. When
all rows are answered, input and predictions are joined into the output, which replaces an older one
at once.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from firstcli import __version__
from firstcli.errors import UserError
from firstcli.runtime.console import Console
from firstcli.runtime.files import atomic_write
from firstcli.student.load import WINDOW, TrainedStudent
from firstcli.student.output import (
    OutputSettings,
    Record,
    check_columns,
    columns_of,
    merged,
    records_of,
)
from firstcli.student.rows import missing_column, windows
from firstcli.student.usage import Usage
from firstcli.tasks.tables import TableRow, read_rows
from firstcli.workspace.artifacts import Digests, fingerprint

ENDINGS = (".csv", ".jsonl", ".parquet")
SHOWN_ERRORS = 10
"""Bad rows that are named; all of them are marked in the output."""


@dataclass(frozen=True, slots=True)
class InputTable:
    """What a pass over the input has found before any row is answered."""

    path: Path
    rows: int
    columns: tuple[str, ...]
    """The columns of all rows, in the order in which they occur."""
    digest: str


@dataclass
class Tally:
    """How many rows were answered, and which were not."""

    rows: int = 0
    abstained: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)
    """Place and error of the first bad rows."""

    def add(self, where: str, record: Record) -> None:
        """Count a row."""
        self.rows += 1
        self.abstained += bool(record.get("abstained"))
        if record["error"] is not None:
            self.bad += 1
            if len(self.first_bad) < SHOWN_ERRORS:
                self.first_bad.append(f"{where}: {record['error']}")


def inspected(path: Path, usage: Usage) -> InputTable:
    """Read a file once: count its rows, collect its columns, and find malformed rows.

    Raises:
        UserError: the file cannot be read, or lacks a column that every row needs.
    """
    count, columns = 0, dict[str, None]()
    for row in read_rows(path):
        count += 1
        if not row.values.keys() <= columns.keys():
            columns |= dict.fromkeys(row.values)
    if missing := missing_column(usage, columns):
        raise UserError(
            f"{path}: has no column {missing}, which the student reads; its columns are "
            f"{', '.join(columns)}"
        )
    return InputTable(path, count, tuple(columns), Digests().of_file(path))


def check_output(path: Path, source: Path) -> None:
    """Check that an output file can be written.

    Raises:
        UserError: its name has no known ending, its folder does not exist, or it is the input.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {path}: expected a name that ends in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.absolute().parent}")
    if path.exists() and path.samefile(source):
        raise UserError(f"--out {path}: this is the input; choose a different name")


def predict_file(
    student: TrainedStudent,
    identity: str,
    table: InputTable,
    out: Path,
    settings: OutputSettings,
    console: Console,
) -> Tally:
    """Answer all rows of a file into another file; a killed run is resumed.

    Args:
        student: the student.
        identity: what identifies the student and its recalibration.
        table: the input, inspected.
        out: the output; its ending determines its format.
        settings: what is put out.
        console: shows progress.

    Raises:
        UserError: the output would have two columns of one name, another process writes it, or the
            input changes meanwhile.
    """
    added = _flat_columns(columns_of(student.usage, settings), settings, out)
    check_columns(table.columns, added, str(table.path))
    work = out.with_name(f".{out.name}.partial")
    identities = {
        "the input": table.digest,
        "the student": identity,
        "the options": json.dumps(asdict(settings), sort_keys=True),
        "firstcli": f"{__version__}, windows of {WINDOW}",
    }
    with _disk_errors_reported(out), _alone(out, work):
        done = _resumed(work, identities, console)
        tally = Tally()
        with console.progress("answering", table.rows, "rows", done) as advance:
            rows = islice(read_rows(table.path), done, None)
            with work.open("a", encoding="utf-8") as file:
                for window in windows(rows, WINDOW):
                    records = records_of(student, window, settings)
                    lines = (json.dumps(record) + "\n" for record in records)
                    file.write("".join(lines))
                    file.flush()
                    advance(len(window))
        if Digests().of_file(table.path) != table.digest:  # else answers could join other rows
            raise UserError(
                f"{table.path}: changed while its rows were answered; run the same command again"
            )
        joined = _joined(table, work, tally)
        writers: dict[str, Writer] = {
            ".csv": _write_csv,
            ".jsonl": _write_jsonl,
            ".parquet": _write_parquet,
        }
        write = writers[out.suffix.lower()]
        atomic_write(out, lambda file: write(file, joined, table, added))
        work.unlink()
    return tally


@contextmanager
def _disk_errors_reported(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # the input's are reported by its reader
        reason = error.strerror or str(error)
        raise UserError(
            f"--out {out}: cannot be written ({reason}); what is done is kept, run the same "
            "command again"
        ) from error


@contextmanager
def _alone(out: Path, work: Path) -> Iterator[None]:
    """Refuse to work on an output on which another process works."""
    from filelock import FileLock, Timeout

    path = work.with_suffix(".lock")
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"--out {out}: another process writes it; wait for it to end") from error
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def _resumed(work: Path, identities: Mapping[str, str], console: Console) -> int:
    """Return the number of rows whose predictions are kept; the work file ends after them.

    Only complete windows are kept, so that the batches are those of an uninterrupted run.
    """
    header = json.dumps(dict(identities)) + "\n"
    if work.exists():
        try:
            with work.open("rb") as file:
                known = json.loads(file.readline())
                changed = [name for name, value in identities.items() if known.get(name) != value]
                if not changed:
                    done = _keep_windows(work, file)
                    console.say(f"{done} rows were answered before; going on")
                    return done
            console.say(f"starting again, because {' and '.join(changed)} changed")
        except (ValueError, AttributeError):  # the first line is not complete
            pass
    work.write_text(header, "utf-8")
    return 0


def _keep_windows(work: Path, file: BinaryIO) -> int:
    """Cut a work file, opened after its header, after its last complete window of lines."""
    kept, end = 0, file.tell()
    for count, line in enumerate(iter(file.readline, b""), 1):
        if not line.endswith(b"\n"):
            break
        try:
            json.loads(line)
        except ValueError:  # after a power cut
            break
        if count % WINDOW == 0:
            kept, end = count, file.tell()
    with work.open("rb+") as whole:
        whole.truncate(end)
    return kept


def _joined(table: InputTable, work: Path, tally: Tally) -> Iterator[tuple[TableRow, Record]]:
    """Yield each row of the input with its record."""
    with work.open(encoding="utf-8") as lines:
        next(lines)  # the header
        for row, line in zip(read_rows(table.path), lines, strict=True):
            record = json.loads(line)
            tally.add(row.where, record)
            yield row, record


# The formats.


def _flat_columns(columns: Sequence[str], settings: OutputSettings, out: Path) -> tuple[str, ...]:
    """Return the columns of an output; CSV has two columns for each runner-up."""
    if out.suffix.lower() != ".csv":
        return tuple(columns)
    flat: list[str] = []
    for column in columns:
        if column == "runners_up":
            for number in range(1, settings.top + 1):
                flat += [f"runner_up_{number}", f"runner_up_{number}_confidence"]
        else:
            flat.append(column)
    return tuple(flat)


def _flat(record: Record) -> Record:
    """Return a record with two values for each runner-up."""
    flat = {name: value for name, value in record.items() if name != "runners_up"}
    for number, other in enumerate(record.get("runners_up", ()), 1):
        flat[f"runner_up_{number}"] = other["prediction"]
        flat[f"runner_up_{number}_confidence"] = other["confidence"]
    return flat


def _cell(value: Any) -> Any:
    """Return a value as text, a number or None; lists and objects as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


Joined = Iterator[tuple[TableRow, Record]]
Writer = Callable[[BinaryIO, Joined, InputTable, Sequence[str]], None]


def _write_csv(file: BinaryIO, rows: Joined, table: InputTable, added: Sequence[str]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, [*table.columns, *added], lineterminator="\n")
    writer.writeheader()
    for row, record in rows:
        values = merged(row.values, _flat(record))
        writer.writerow({name: _cell(value) for name, value in values.items()})
    text.detach()


def _write_jsonl(file: BinaryIO, rows: Joined, *_: object) -> None:
    for row, record in rows:
        values = merged(row.values, record)
        file.write((json.dumps(values, ensure_ascii=False, default=str) + "\n").encode())


def _write_parquet(file: BinaryIO, rows: Joined, table: InputTable, added: Sequence[str]) -> None:
    """Write Parquet; columns of a Parquet input keep their types, others become text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known: dict[str, Any] = {}
    if table.path.suffix.lower() == ".parquet":
        schema = pq.read_schema(table.path)
        known = dict(zip(schema.names, schema.types, strict=True))
    types = {name: known.get(name, pa.string()) for name in table.columns}
    runner_up = pa.struct({"prediction": pa.string(), "confidence": pa.float64()})
    token = pa.struct({"text": pa.string(), "probability": pa.float64()})
    ours = {
        "prediction": pa.string(),
        "confidence": pa.float64(),
        "abstained": pa.bool_(),
        "runners_up": pa.list_(runner_up),
        "generated": pa.string(),
        "tokens": pa.list_(token),
        "finished": pa.bool_(),
        "error": pa.string(),
    }
    schema = pa.schema({**types, **{name: ours[name] for name in added}})

    def text(value: Any) -> str | None:
        cell = _cell(value)
        return None if cell is None else str(cell)

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for window in windows(rows, 16 * WINDOW):
            columns = {
                name: [row.values.get(name) for row, _ in window]
                if name in known
                else [text(row.values.get(name)) for row, _ in window]
                for name in types
            }
            columns |= {name: [record[name] for _, record in window] for name in added}
            arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def student_identity(folder: Path, usage: Usage, *, raw: bool) -> str:
    """Return what identifies a student's answers: the weights' state, tokenizer, use, recalibrator.

    Weights count with their sizes and times, because reading them takes longer than a short file.

    Args:
        folder: the student's folder.
        usage: what its `firstcli.json` says.
        raw: whether the post-hoc recalibrator is left out.
    """
    answers = usage.model_dump(
        mode="json",
        exclude={
            "numbers",
            "raw_numbers",
            "validation",
            "raw_validation",
            "thresholds",
            "source",
            "firstcli",
        },
    )
    if raw:
        answers.pop("posthoc")
    content = {"use": json.dumps(answers, sort_keys=True)}
    for path in sorted(folder.glob("*.safetensors")):
        state = path.stat()
        content[path.name] = f"{state.st_size} bytes, {state.st_mtime_ns}"
    digests = Digests()
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        if (folder / name).is_file():
            content[name] = digests.of_file(folder / name)
    return fingerprint(content)
