"""`first predict` as a user calls it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.metrics.thresholds import threshold_for
from firstcli.student.files import inspected
from firstcli.student.load import TrainedStudent
from firstcli.student.output import threshold_of
from firstcli.student.usage import AnswerThreshold, ValidationAnswers
from support import command_line
from support.command_line import Result, first, write_rows
from support.tickets import LABELS, TrainedRun, sidecar, tickets

pytest_plugins = ["support.students"]

ROWS = tickets(12, 200)
TEXTS = [row["text"] for row in ROWS]


def lines(result: Result) -> list[Any]:
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_texts_are_answered_as_json_lines(classifier: TrainedRun, student: TrainedStudent) -> None:
    found = lines(first("predict", classifier.folder, *TEXTS[:3]))
    expected = student.predict(TEXTS[:3])
    assert [line["text"] for line in found] == TEXTS[:3]
    assert [line["prediction"] for line in found] == expected.labels
    for number, line in enumerate(found):
        assert line["confidence"] == pytest.approx(expected.confidences[number], abs=1e-5)
        ranked = [line["prediction"], *(other["prediction"] for other in line["runners_up"])]
        assert ranked == [name for name, _ in expected.ranked(number)]
        assert line["error"] is None


def test_a_run_and_an_arm_name_the_student(classifier: TrainedRun) -> None:
    direct = first("predict", classifier.folder, TEXTS[0])
    for args in ((classifier.run,), (classifier.run, "--arm", "plain + T")):
        assert first("predict", *args, TEXTS[0]).out == direct.out
    raw = first("predict", classifier.folder, "--raw", TEXTS[0])
    assert raw.out != direct.out
    assert first("predict", classifier.run, "--arm", "plain", TEXTS[0]).out == raw.out


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{text}\n" for text in TEXTS),
        "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
        "no,text\r\n" + "".join(f'{i},"{text}"\r\n' for i, text in enumerate(TEXTS)),
    ],
    ids=["text", "jsonl", "csv"],
)
def test_standard_input_is_read_by_its_content(
    classifier: TrainedRun, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    piped(monkeypatch, text)
    found = lines(first("predict", classifier.folder, "--top", 0))
    assert [line["text"] for line in found] == TEXTS
    assert all("runners_up" not in line for line in found)


def test_a_blank_line_is_a_row_with_an_error(
    classifier: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, f"{TEXTS[0]}\n\n{TEXTS[1]}")
    result = first("predict", classifier.folder)
    assert [line["error"] is None for line in lines(result)] == [True, False, True]
    assert "line 2: the row has no text (text)" in result.err
    assert "3 rows, 2 answered, 1 with an error" in result.err


def test_the_format_of_standard_input_can_be_stated(
    classifier: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "text\nanother line\n")
    found = lines(first("predict", classifier.folder, "--format", "text"))
    assert [line["text"] for line in found] == ["text", "another line"]
    piped(monkeypatch, "text\nanother line\n")  # a header of CSV
    assert [line["text"] for line in lines(first("predict", classifier.folder))] == ["another line"]
    piped(monkeypatch, '{"text": "a"}\nnot json\n')
    first("predict", classifier.folder).mistake("line 2: not JSON", "--format text")
    piped(monkeypatch, 'text,no\n"a",1\nb\n')
    first("predict", classifier.folder).mistake("line 3: found 1 cells")


def test_below_a_confidence_there_is_no_prediction(classifier: TrainedRun) -> None:
    plain = lines(first("predict", classifier.folder, *TEXTS))
    limit = sorted(line["confidence"] for line in plain)[6]
    result = first("predict", classifier.folder, *TEXTS, "--abstain-below", limit)
    for before, after in zip(plain, lines(result), strict=True):
        assert after["confidence"] == before["confidence"]
        assert after["abstained"] == (before["confidence"] < limit)
        if after["abstained"]:
            assert after["prediction"] is None
            assert after["runners_up"][0]["prediction"] == before["prediction"]
        else:
            assert after["prediction"] == before["prediction"]
    assert "12 rows, 6 answered, 6 below the confidence" in result.err


def test_a_target_accuracy_needs_validation_answers(
    classifier: TrainedRun, student: TrainedStudent
) -> None:
    args = ("predict", classifier.folder, *TEXTS[:2], "--target-accuracy", 0.9)
    first(*args).mistake("no answers to validation questions", "first report RECIPE --target")
    confidence, correct = [i / 200 for i in range(200)], [i > 60 for i in range(200)]
    answers = ValidationAnswers(confidence=confidence, correct=correct)
    usage = student.usage.model_copy(update={"validation": answers})
    import numpy as np

    promised = threshold_for(np.array(confidence), np.array(correct), 0.9)
    assert promised is not None and threshold_of(usage, 0.9) == promised.threshold
    with pytest.raises(UserError, match="no answers to validation questions"):
        threshold_of(usage, 0.9, raw=True)
    raw_usage = student.usage.model_copy(update={"raw_validation": answers})
    assert threshold_of(raw_usage, 0.9, raw=True) == promised.threshold
    with pytest.raises(UserError, match="no confidence promises this accuracy"):
        threshold_of(usage, 0.9999)
    stored = (AnswerThreshold(target_accuracy=0.9, threshold=0.42),)
    assert threshold_of(student.usage.model_copy(update={"thresholds": stored}), 0.9) == 0.42


def test_a_file_is_answered_into_a_file(classifier: TrainedRun, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*ROWS, {"text": 5.5, "no": 0, "label": None}])
    out = tmp_path / "out.csv"
    result = first("predict", classifier.folder, "--file", source, "--out", out)
    assert (result.code, result.out) == (0, "")
    assert f"{out}: 13 rows, 12 answered, 1 with an error" in result.err
    assert f"{source}:13: column 'text': found 5.5" in result.err
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [*TEXTS, "5.5"]
    assert {row["prediction"] for row in rows[:12]} <= {*LABELS}
    printed = lines(first("predict", classifier.folder, "--file", source))
    assert [line["prediction"] or "" for line in printed] == [row["prediction"] for row in rows]


def test_if_all_rows_are_bad_the_command_fails(classifier: TrainedRun) -> None:
    result = first("predict", classifier.folder, " ", "")
    result.mistake("none of the 2 rows can be answered", "text 1")
    assert [json.loads(line)["prediction"] for line in result.out.splitlines()] == [None, None]


def test_wrong_options_are_named(
    classifier: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*args: object) -> str:
        return first("predict", classifier.folder, *args).mistake()

    source = write_rows(tmp_path / "in.jsonl", ROWS)
    assert "not both" in mistake("a", "--file", source)
    assert "--out needs --file" in mistake("a", "--out", "x.csv")
    assert "--format tsv" in mistake("--format", "tsv")
    assert "between 0 and 1" in mistake("a", "--abstain-below", 1.5)
    assert "--abstain-below or --target" in mistake(
        *("a", "--abstain-below", 0.5, "--target-accuracy", 0.5)
    )
    assert "writes no text" in mistake("a", "--max-new-tokens", 5)
    assert "no such file" in mistake("--file", tmp_path / "missing.csv", "--out", "x.csv")
    assert "device: 'quantum' is not usable" in mistake("a", "--device", "quantum")
    monkeypatch.setattr("sys.stdin", _Terminal())
    assert "nothing to answer" in mistake()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, *args: object) -> str:
    """Return what a terminal with 80 columns shows."""
    from firstcli import cli

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.argv", ["first", "predict", *map(str, args)])
    out = _Terminal()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main()
    return out.getvalue()


def test_a_terminal_shows_a_table(classifier: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, classifier.folder, *TEXTS[:2], " ", "[bold]x")
    assert "confidence" in text and "runners-up" in text and "%" in text
    assert "error" in text and "[bold]x" in text
    assert max(map(len, text.splitlines())) < 200  # with control codes
    as_json = shown(monkeypatch, classifier.folder, TEXTS[0], "--json")
    assert json.loads(as_json)["prediction"] in LABELS


def test_an_instruction_student_shows_coloured_text(
    writer: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (writer.folder, "Say 1.", "--max-new-tokens", 4)
    (line,) = lines(first("predict", *args))
    assert line["generated"] == "".join(token["text"] for token in line["tokens"])
    assert all(0 < token["probability"] <= 1 for token in line["tokens"])
    text = shown(monkeypatch, *args)
    assert "\x1b[" in text and "least confident token" in text
    first("predict", *args, "--abstain-below", 0.5).mistake("cannot abstain")


def test_a_killed_process_is_resumed(classifier: TrainedRun, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", tickets(3072))
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    args = ("predict", classifier.folder, "--file", source, "--batch-size", 4, "--out")
    process = command_line.start(*args, out)
    work = out.with_name(f".{out.name}.partial")
    while not (work.exists() and work.read_bytes().count(b"\n") > 1024):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    resumed = first(*args, out)
    assert resumed.code == 0 and "rows were answered before; going on" in resumed.err
    assert first(*args, whole).code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sidecar(classifier.folder)["kind"] == "classification"


def test_the_help_has_an_example() -> None:
    assert "first predict runs/" in first("predict", "--help").out


def test_inspecting_counts_rows_and_columns(student: TrainedStudent, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"more": 1, "text": "b"}])
    table = inspected(source, student.usage)
    assert (table.rows, table.columns) == (2, ("text", "more"))
