"""Reading rows in every format, and the message for every malformed file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.errors import UserError
from firstcli.tasks import layout
from firstcli.tasks.tables import TableRow, read_rows

ROWS = [{"q": "a, b", "n": "1"}, {"q": 'say "x"\nor \u2028 y', "n": "2"}]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows in the format of the path's ending."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert len(caught.value.messages) == 1
    return str(caught.value).replace(str(path), "FILE")


def of_bytes(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".CSV"])
def test_reads_every_format_alike(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"data{ending.lower()}", ROWS)
    path = path.rename(tmp_path / f"data{ending}")
    assert [dict(row.values) for row in read_rows(path)] == ROWS


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT, "b, c": TEXT}), min_size=1, max_size=5))
def test_any_text_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    for ending in (".jsonl", ".json", ".csv", ".parquet"):
        path = write(folder / f"data{ending}", rows)
        assert [dict(row.values) for row in read_rows(path)] == rows


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60), ending=st.sampled_from([".jsonl", ".json", ".csv"]))
def test_any_bytes_are_rows_or_one_clear_mistake(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = of_bytes(tmp_path_factory.mktemp("bytes") / f"data{ending}", content)
    try:
        assert list(read_rows(path))
    except UserError as error:
        assert str(error).startswith(str(path))


def test_rows_know_their_line(tmp_path: Path) -> None:
    lines = of_bytes(tmp_path / "a.jsonl", '\n{"a": 1}\r\n\n{"a": 2}')
    assert [row.where for row in read_rows(lines)] == [f"{lines}:2", f"{lines}:4"]
    cells = of_bytes(tmp_path / "a.csv", 'a,b\n"1\n2",3\n\n4,5\n')
    assert [row.where for row in read_rows(cells)] == [f"{cells}:2", f"{cells}:5"]
    listed = of_bytes(tmp_path / "a.json", '[{"a": 1}, {"a": 2}]')
    assert [row.where for row in read_rows(listed)] == [f"{listed}, row 1", f"{listed}, row 2"]


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = of_bytes(tmp_path / "a.json", '\ufeff \n{"a": 1}\n{"a": 2}\n')
    assert [row.value("a") for row in read_rows(path)] == [1, 2]
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:3"]


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = of_bytes(tmp_path / "a.csv", b"\xef\xbb\xbfa,b\n1,2\n")
    assert dict(next(read_rows(path)).values) == {"a": "1", "b": "2"}
    array = of_bytes(tmp_path / "a.json", b'\xef\xbb\xbf [{"a": "1"}]')
    assert dict(next(read_rows(array)).values) == {"a": "1"}


def test_a_json_array_larger_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_bytes(tmp_path / "a.json", '[{"a": 1}]')

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", out_of_memory)
    assert "does not fit into memory; save the data as .jsonl" in complaint(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", "FILE: there are no rows"),
        ("a.jsonl", "\n \n", "FILE: there are no rows"),
        ("a.json", "[]", "FILE: there are no rows"),
        ("a.csv", "a,b\n", "FILE: there are no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "FILE:2: not valid JSON at column 7"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', "FILE:3: not valid JSON at column 6"),
        ("a.json", '[{"a": 1}', "FILE:1: not valid JSON at column 10"),
        ("a.json", '[{"a": 1}] x', "FILE:1: not valid JSON at column 12"),
        ("a.json", "[" * 100_000, "FILE:1: not valid JSON: "),
        ("a.json", b'[{"a": "\xe9"}]', "FILE:1: not UTF-8 text (byte 0xe9 at offset 8)"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "FILE:2: found the list [1], expected a row as an object"),
        ("a.json", "[3]", "FILE, row 1: found 3, expected a row as an object"),
        ("a.jsonl", "null", "FILE:1: found null, expected a row"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xe9"}', "FILE:2: not UTF-8 text (byte 0xe9 at offset 16)"),
        ("a.csv", b"a\n\xff\xfe", "FILE:2: not UTF-8 text"),
        ("a.jsonl", "[" * 100_000, "FILE:1: not valid JSON: "),
        ("a.jsonl", '{"a": ' + "1" * 5000 + "}", "FILE:1: not valid JSON: "),
        ("a.csv", "a,b\n1,2\n3\n", "FILE:3: found 1 cells, but the header names 2 columns"),
        ("a.csv", "a,b\n1,2,3\n", "FILE:2: found 3 cells, but the header names 2 columns"),
        ("a.csv", "a,b,a\n1,2,3\n", "FILE:1: the header names 'a' more than once"),
        ("a.csv", 'a\n1\n"open\n', "FILE:3: not valid CSV"),
        ("a.parquet", "no parquet", "FILE: not a readable Parquet file"),
        ("a.xlsx", "x", "FILE: expected the path of a file that ends in .jsonl, .json, .csv, .tsv"),
        ("data", "x", "FILE: expected the path of a file that ends in"),
    ],
)
def test_the_message_names_the_mistake_and_the_line(
    tmp_path: Path, name: str, content: bytes | str, expected: str
) -> None:
    assert complaint(of_bytes(tmp_path / name, content)).startswith(expected)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, ending: str) -> None:
    assert complaint(tmp_path / f"none{ending}") == "FILE: there is no such file"
    (tmp_path / f"folder{ending}").mkdir()
    assert complaint(tmp_path / f"folder{ending}") == "FILE: this is a folder, expected a file"


def refused(row: TableRow, column: str) -> str:
    with pytest.raises(UserError) as caught:
        row.filled(column)
    return str(caught.value)


def test_columns_are_text_whole_numbers_or_missing() -> None:
    row = TableRow("f:1", {"a": "x", "b": 7, "c": None, "d": True, "e": 0.5, "f": ["x"], "g": " "})
    assert [row.text(column) for column in "abcg"] == ["x", "7", "", " "]
    assert row.filled("b") == "7"
    assert refused(row, "c") == "f:1: column 'c' is empty"
    assert refused(row, "g") == "f:1: column 'g' is empty"
    assert refused(row, "d") == "f:1: column 'd': found true, expected text or a whole number"
    assert refused(row, "e") == "f:1: column 'e': found 0.5, expected text or a whole number"
    assert refused(row, "f").startswith("f:1: column 'f': found the list [\"x\"], expected")


def test_a_missing_column_shows_what_there_is() -> None:
    row = TableRow("f.csv:3", {"question": "x", "label": "y"})
    assert refused(row, "qestion") == (
        "f.csv:3: there is no column 'qestion' (did you mean 'question'?); "
        "the row has 'question', 'label'"
    )


def test_an_unpaired_surrogate_is_refused() -> None:
    row = TableRow("f:1", {"a": json.loads('"\\ud83d"'), "b": "ä\U0001f600"})
    assert "unpaired surrogate" in refused(row, "a")
    assert row.text("b") == "ä\U0001f600"


def test_ids_come_from_the_named_column_or_from_id() -> None:
    assert TableRow("f:1", {"id": 7}).id(None) == "7"
    assert TableRow("f:1", {"id": ""}).id(None) is None
    assert TableRow("f:1", {"a": "x"}).id(None) is None
    assert TableRow("f:1", {"a": "x", "id": "y"}).id("a") == "x"
    with pytest.raises(UserError, match="no column 'b'"):
        TableRow("f:1", {"a": "x", "id": "y"}).id("b")


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl", "test.json", "hard.parquet"):
        write(tmp_path / name, [{"name": name}])
    (tmp_path / "README.md").write_text("about")
    assert layout.splits_at(tmp_path) == ("train", "validation", "test", "hard")
    for split, name in (
        ("train", "train.csv"),
        ("validation", "dev.jsonl"),
        ("hard", "hard.parquet"),
    ):
        assert [row.text("name") for row in read_rows(layout.split_files(tmp_path, split))] == [
            name
        ]
    with pytest.raises(UserError, match=r"split 'tests' \(did you mean 'test'\?\); there is"):
        layout.split_files(tmp_path, "tests")


def test_a_single_file_serves_as_any_split(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", ROWS)
    assert layout.splits_at(path) == ("train", "validation", "test")
    assert layout.split_files(path, "test") == (path,)


def test_a_folder_must_be_unambiguous(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file that ends in"):
        layout.splits_at(tmp_path)
    write(tmp_path / "dev.csv", ROWS)
    write(tmp_path / "validation.csv", ROWS)
    with pytest.raises(UserError, match=r"both 'dev\.csv' and 'validation\.csv' can be the split"):
        layout.splits_at(tmp_path)
