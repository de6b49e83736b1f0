"""Answers to a file: the same after a kill, in every format, and no row is lost."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstcli.errors import UserError
from firstcli.runtime.console import Console
from firstcli.student import files, output
from firstcli.student.files import Tally
from firstcli.student.load import TrainedStudent
from firstcli.student.output import OutputSettings
from support.command_line import write_rows
from support.tickets import LABELS, tickets

pytest_plugins = ["support.students"]

ROWS = tickets(40)
WINDOW = 8


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOW", WINDOW)


def answer(
    student: TrainedStudent,
    source: Path,
    out: Path,
    settings: OutputSettings | None = None,
    identity: str = "student",
) -> Tally:
    table = files.inspected(source, student.usage)
    settings = settings or OutputSettings()
    return files.predict_file(student, identity, table, out, settings, Console(quiet=True))


def work_file(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


class Killed(BaseException):
    pass


def kill_in_window(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the work end in a window; returns the sizes of the windows that are worked on."""
    sizes: list[int] = []

    def records(
        student: TrainedStudent, rows: Sequence[Any], settings: OutputSettings
    ) -> list[output.Record]:
        if len(sizes) == number:
            raise Killed
        sizes.append(len(rows))
        return output.records_of(student, rows, settings)

    monkeypatch.setattr(files, "records_of", records)
    return sizes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl", [*ROWS[:5], {"text": ""}, *ROWS[5:]])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    student: TrainedStudent,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    expected = answer(student, source, whole)
    with monkeypatch.context() as patch:
        kill_in_window(3, patch)
        with pytest.raises(Killed):
            answer(student, source, out)
    assert not out.exists()
    with work_file(out).open("a") as file:
        file.write('{"prediction": "bil')  # the line during which it was killed
    sizes = kill_in_window(99, monkeypatch)
    assert answer(student, source, out) == expected
    assert sum(sizes) == 41 - 3 * WINDOW
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, whole.name, out.name]
    )


@pytest.mark.parametrize("keep", [0, 3, 40])
def test_a_truncated_work_file_is_resumed_at_a_window(
    student: TrainedStudent,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: int,
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    answer(student, source, whole)
    with monkeypatch.context() as patch:
        kill_in_window(2, patch)
        with pytest.raises(Killed):
            answer(student, source, out)
    content = work_file(out).read_bytes()
    work_file(out).write_bytes(content[: len(content) * keep // 40])
    answer(student, source, out)
    assert out.read_bytes() == whole.read_bytes()


def change_input(source: Path) -> dict[str, Any]:
    write_rows(source, ROWS[1:])
    return {}


@pytest.mark.parametrize(
    "change",
    [
        change_input,
        lambda _: {"identity": "another student"},
        lambda _: {"settings": OutputSettings(top=1)},
    ],
)
def test_work_on_something_else_starts_again(
    student: TrainedStudent,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], dict[str, Any]],
) -> None:
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        kill_in_window(2, patch)
        with pytest.raises(Killed):
            answer(student, source, out)
    changed = change(source)
    answer(student, source, out, **changed)
    fresh = tmp_path / "fresh.jsonl"
    answer(student, source, fresh, **changed)
    assert out.read_bytes() == fresh.read_bytes()


def test_no_answer_joins_a_row_that_has_taken_the_place_of_another(
    student: TrainedStudent, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"

    def records(*arguments: Any) -> list[output.Record]:
        write_rows(source, ROWS[::-1])
        return output.records_of(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "records_of", records)
        with pytest.raises(UserError, match="changed while its rows were answered"):
            answer(student, source, out)
    assert not out.exists()
    answer(student, source, out)
    fresh = tmp_path / "fresh.jsonl"
    answer(student, source, fresh)
    assert out.read_bytes() == fresh.read_bytes()


def test_the_formats_hold_the_same(student: TrainedStudent, source: Path, tmp_path: Path) -> None:
    outs = {ending: tmp_path / f"out.{ending}" for ending in ("jsonl", "csv", "parquet")}
    settings = OutputSettings(top=1, threshold=0.4)
    tallies = [answer(student, source, out, settings) for out in outs.values()]
    lines = [json.loads(line) for line in outs["jsonl"].read_text("utf-8").splitlines()]
    assert [line["text"] for line in lines] == [
        *(r["text"] for r in ROWS[:5]),
        "",
        *(r["text"] for r in ROWS[5:]),
    ]
    assert lines[0].keys() == {
        *("text", "label", "no", "prediction", "confidence", "abstained", "runners_up", "error")
    }
    bad = lines.pop(5)
    assert bad["error"] and bad["prediction"] is bad["confidence"] is bad["abstained"] is None
    with outs["csv"].open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert cells.pop(5)["error"] == bad["error"]
    stored = pq.read_table(outs["parquet"]).to_pylist()
    assert stored.pop(5)["error"] == bad["error"]
    for line, cell, row in zip(lines, cells, stored, strict=True):
        assert line["abstained"] == (line["confidence"] < 0.4)
        assert (line["prediction"] is None) == line["abstained"]
        assert cell["prediction"] == (line["prediction"] or "")
        assert float(cell["confidence"]) == line["confidence"] == row["confidence"]
        assert cell["abstained"] == str(line["abstained"]).lower()
        (other,) = line["runners_up"]
        assert (cell["runner_up_1"], float(cell["runner_up_1_confidence"])) == (
            other["prediction"],
            other["confidence"],
        )
        assert row["runners_up"] == line["runners_up"]
    (tally,) = {(t.rows, t.abstained, t.bad) for t in tallies}
    assert tally == (41, sum(line["abstained"] for line in lines), 1)
    assert tallies[0].first_bad[0].startswith(f"{source}:6: ")


def test_a_parquet_input_keeps_its_types(student: TrainedStudent, tmp_path: Path) -> None:
    table = pa.table({"text": [row["text"] for row in ROWS], "no": pa.array(range(40), pa.int16())})
    pq.write_table(table, tmp_path / "in.parquet")
    answer(student, tmp_path / "in.parquet", tmp_path / "out.parquet")
    stored = pq.read_table(tmp_path / "out.parquet")
    assert stored.select(table.column_names).equals(table)
    assert set(stored["prediction"].to_pylist()) <= {*LABELS}


def test_ragged_json_rows_keep_all_columns(student: TrainedStudent, tmp_path: Path) -> None:
    rows = [{"text": ROWS[0]["text"], "tags": ["a", "b"]}, {"text": ROWS[1]["text"], "late": True}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    answer(student, source, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [cell["tags"] for cell in cells] == ['["a", "b"]', ""]
    assert [cell["late"] for cell in cells] == ["", "true"]


def test_mistakes_are_found_before_any_work(student: TrainedStudent, tmp_path: Path) -> None:
    missing = write_rows(tmp_path / "missing.jsonl", [{"body": "a"}])
    with pytest.raises(UserError, match=r"missing.jsonl: has no column text, .* are body"):
        files.inspected(missing, student.usage)
    taken = write_rows(tmp_path / "taken.jsonl", [{"text": "a", "confidence": 1}])
    with pytest.raises(UserError, match="already has the column 'confidence'"):
        answer(student, taken, tmp_path / "out.csv")
    for out, message in (
        (taken, "this is the input"),
        (tmp_path / "out.xlsx", "ends in"),
        (tmp_path / "no" / "out.csv", "no folder"),
    ):
        with pytest.raises(UserError, match=message):
            files.check_output(out, taken)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_a_user_error(
    student: TrainedStudent, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        answer(student, source, folder / "out.csv")


def test_the_identity_covers_what_changes_answers(student: TrainedStudent, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    usage = student.usage

    def identity(usage: Any = usage, raw: bool = False) -> str:
        return files.student_identity(tmp_path, usage, raw=raw)

    known = identity()
    assert known != identity(raw=True)
    assert known == identity(usage.model_copy(update={"numbers": {}, "source": "other"}))
    assert known != identity(usage.model_copy(update={"prompt": "{text}?"}))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert known != identity()
