"""Rows that are kept in a file come back as they were, or not at all."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstcli.data import token_files
from firstcli.data.encoding import EncodedQuestion, EncodedSample

SAMPLES = [
    EncodedSample("a", np.array([1, 2**31 - 1], np.int32), 1, None),
    EncodedSample("half of a character: \ud800", np.array([3], np.int32), 1, 7),
    EncodedSample("", np.array([], np.int32), 1, 0),
    EncodedSample("turns", np.arange(9, dtype=np.int32), 2, None, ((3, 5), (6, 8))),
]
QUESTIONS = [
    EncodedQuestion("a", np.array([5, 6], np.int32), (7, 8), 1, ((6, 7), (6, 8, 9)), 1, (0.1, 0.9)),
    EncodedQuestion("b", np.array([5], np.int32), (7, 8, 9), 1, ((7,), (8,), (9,)), None, None),
]


def values(row: Any) -> list[object]:
    found = [getattr(row, field.name) for field in fields(row)]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in found]


@pytest.mark.parametrize("rows", [SAMPLES, QUESTIONS, SAMPLES[:0]], ids=["train", "test", "none"])
def test_rows_come_back(tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_BATCH", 2)
    kind: Any = EncodedQuestion if rows is QUESTIONS else EncodedSample
    path = tmp_path / "tokens"
    token_files.write(path, "key", rows, kind, ["a warning"])
    again = token_files.read(path, "key", kind)
    assert again is not None and again[1] == ["a warning"]
    found = list(again[0])
    assert [values(row) for row in found] == [values(row) for row in rows]
    assert all(row.input_ids.dtype == np.int32 for row in found)
    assert token_files.read(path, "another key", kind) is None


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    assert token_files.read(path, "key", EncodedSample) is None
    token_files.write(path, "key", SAMPLES * 50, EncodedSample, [])
    content = path.read_bytes()
    for place in range(0, len(content), max(len(content) // 40, 1)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert token_files.read(path, "key", EncodedSample) is None
    path.write_bytes(content[:-20])
    assert token_files.read(path, "key", EncodedSample) is None
