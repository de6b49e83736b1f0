"""`benchmarks/tickets.py`: a deterministic table with the stated share of wrong labels."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections import Counter

from support.paths import ROOT


def table(*args: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "tickets.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def test_tickets() -> None:
    text = table()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 3000
    assert list(rows[0]) == ["id", "text", "label"]
    assert len({row["id"] for row in rows}) == 3000
    assert len({row["text"] for row in rows}) > 2900
    counts = Counter(row["label"] for row in rows)
    assert len(counts) == 12
    assert min(counts.values()) > 200
    assert table("--seed", 2) != text


def test_the_same_arguments_give_the_same_bytes() -> None:
    assert table("--rows", 50, "--seed", 5) == table("--rows", 50, "--seed", 5)


def test_exactly_the_stated_share_is_wrong() -> None:
    given, truth = (
        list(csv.DictReader(io.StringIO(table(*args)))) for args in ((), ("--wrong", 0))
    )
    assert [row["text"] for row in given] == [row["text"] for row in truth]
    assert sum(row["label"] != true["label"] for row, true in zip(given, truth, strict=True)) == 360
    assert set(Counter(row["label"] for row in truth).values()) == {250}


def test_a_reader_that_stops_early_ends_it_quietly() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "tickets.py"), "--rows", "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
