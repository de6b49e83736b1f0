"""Compressed files, the separators of CSV, and JSON that is no array and has no row per line."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstcli.errors import UserError
from firstcli.tasks.instruction import Instruction, InstructionOptions
from firstcli.tasks.tables import TableRow, read_rows

TWO = b'{"a": "x"}\n{"a": "\xc3\xa4"}\n'


def rows(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(path)]


def of(path: Path, content: str | bytes) -> list[dict[str, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return rows(path)


def notes(path: Path, content: str) -> list[str]:
    path.write_text(content, newline="")
    found: list[str] = []
    list(read_rows(path, found))
    return [note.replace(f"{path}: ", "") for note in found]


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        rows(path)
    assert len(caught.value.messages) == 1
    return str(caught.value).replace(str(path), "FILE")


def packed(path: Path, content: bytes, inner: str = "data.jsonl") -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(content)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__MACOSX/._data", b"")
            archive.writestr(inner, content)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zip", "a.zip", "A.JSONL.GZ"]
)
def test_compressed_files_and_their_lines(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / name, TWO) if name != "A.JSONL.GZ" else tmp_path / name
    if not path.exists():
        path.write_bytes(gzip.compress(TWO[:11]) + gzip.compress(TWO[11:]))  # two members
    assert rows(path) == [{"a": "x"}, {"a": "ä"}]
    assert [row.where for row in read_rows(path)] == [f"{path}:1", f"{path}:2"]


def test_all_members_of_a_gzip_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "A.JSONL.GZ"
    path.write_bytes(gzip.compress(TWO[:11]) + gzip.compress(TWO[11:]))
    assert rows(path) == [{"a": "x"}, {"a": "ä"}]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".zip"])
def test_the_mistakes_of_compressed_files(tmp_path: Path, ending: str) -> None:
    path = packed(tmp_path / f"a.jsonl{ending}", b'{"a": 1}\n{"a": "\xe9"}')
    assert refused(path).startswith("FILE:2: not UTF-8 text (byte 0xe9 at offset 16)")
    whole = packed(path, b'{"a": 1}\n' * 2000).read_bytes()
    path.write_bytes(whole[:-9])
    assert refused(path).startswith("FILE: ")
    path.write_bytes(b"not compressed")
    assert refused(path).startswith("FILE: ")
    path.unlink()
    assert refused(path) == "FILE: there is no such file"


def test_an_archive_holds_one_file(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", b"x", inner="notes.txt")
    assert "found 'notes.txt' in this archive, expected a file that ends in" in refused(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b.jsonl", TWO)
    assert "found 2 files in this archive ('notes.txt', 'b.jsonl'), expected one" in refused(path)


@pytest.mark.parametrize("ending", [".gz", ".zst", ".zip"])
def test_compressed_parquet(tmp_path: Path, ending: str) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "plain")
    content = (tmp_path / "plain").read_bytes()
    assert rows(packed(tmp_path / f"a.parquet{ending}", content, "a.parquet")) == [{"a": 1}]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".jsonl.gz"])
def test_a_pointer_file_of_a_clone_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"train{ending}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert refused(path).startswith("FILE: this is a pointer of Git LFS, not the data; run 'git lf")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("q;a\nx, y;3,5\n", {"q": "x, y", "a": "3,5"}),
        ("\ufeffq;a\r\nx;y\r\n", {"q": "x", "a": "y"}),
        ("q\ta\nx, y; z\t1\n", {"q": "x, y; z", "a": "1"}),
        ("sep=;\r\nq;a\r\nx;y\r\n", {"q": "x", "a": "y"}),
        ('"sep=|"\nq|a\nx|y\n', {"q": "x", "a": "y"}),
        ("sep=,\nq,a\nx,y\n", {"q": "x", "a": "y"}),
        ('q;a\n"two\nlines; one cell";y\n', {"q": "two\nlines; one cell", "a": "y"}),
        ("sep=;\na,b;c\n1,5;1\n", {"a,b": "1,5", "c": "1"}),
    ],
)
def test_other_separators_are_found_and_reported(
    tmp_path: Path, content: str, expected: dict[str, str]
) -> None:
    assert of(tmp_path / "a.csv", content)[0] == expected
    (note,) = notes(tmp_path / "a.csv", content)
    assert note.startswith("its cells are separated by ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('q,"a;b;c"\nx,y\n', {"q": "x", "a;b;c": "y"}),
        ("q,choices\nx,a;b;c\ny,d;e;f\n", {"q": "x", "choices": "a;b;c"}),
        ('q\n"x, y"\n', {"q": "x, y"}),
        ("q,a\nNA,null\n", {"q": "NA", "a": "null"}),
        ("q,a\nnan,None\n,N/A\n", {"q": "nan", "a": "None"}),
    ],
)
def test_commas_are_not_mistaken(tmp_path: Path, content: str, expected: dict[str, str]) -> None:
    assert of(tmp_path / "a.csv", content)[0] == expected
    assert notes(tmp_path / "a.csv", content) == []


def test_lines_are_right_below_a_stated_separator_and_in_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sep=;\nq;a\n"x\ny";1\nz;2\n')
    assert [row.where for row in read_rows(path)] == [f"{path}:3", f"{path}:5"]
    path.write_text("q;a\nx;1\ny;1;2\n")
    assert refused(path).startswith("FILE:3: found 3 cells, but the header names 2 columns")
    assert notes(tmp_path / "a.tsv", "q\ta\nx\ty\n") == []
    assert rows(tmp_path / "a.tsv") == [{"q": "x", "a": "y"}]


def test_a_quoted_cell_across_the_end_of_the_sample(tmp_path: Path) -> None:
    long = "\n".join(f"line {number}; more" for number in range(300))
    assert of(tmp_path / "a.csv", f'q,a\nx,y\n"{long}",z\n')[1] == {"q": long, "a": "z"}


def test_cells_of_any_length(tmp_path: Path) -> None:
    assert of(tmp_path / "a.csv", f"q,a\n{'x' * 200_000},y\n")[0]["q"] == "x" * 200_000


def test_two_possible_separators_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("price, net;price, gross\n1,5;1,8\n")
    assert refused(path) == (
        "FILE: commas or semicolons can separate the cells; state which one in a new first line, "
        "such as sep=,"
    )


COLUMNS: dict[str, list[Any]] = {"q": ["x", "y"], "a": [1, 2]}
ROWS = [{"q": "x", "a": 1}, {"q": "y", "a": 2}]


@pytest.mark.parametrize(
    ("value", "where", "note"),
    [
        (ROWS, "FILE, row 2", None),
        ({"version": 1, "data": ROWS}, "FILE, 'data', row 2", "its rows are those under the key"),
        ({"features": [], "rows": ROWS}, "FILE, 'rows', row 2", "its rows are those under the key"),
        (COLUMNS, "FILE, row 2", "it holds the values of each column together"),
        (
            {key: {"0": column[0], "1": column[1]} for key, column in COLUMNS.items()},
            "FILE, row 2",
            "it holds the values of each column together",
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_and_columns_in_json(
    tmp_path: Path, value: Any, where: str, note: str | None, indent: int | None
) -> None:
    path, text = tmp_path / "a.json", json.dumps(value, indent=indent)
    assert of(path, text) == ROWS
    assert [row.where for row in read_rows(path)][1] == where.replace("FILE", str(path))
    assert [found.startswith(note or "") for found in notes(path, text)] == [True] * bool(note)


def test_columns_may_hold_objects_and_a_single_object_may_be_a_row(tmp_path: Path) -> None:
    columns = {"q": ["x"], "choices": [{"text": ["a", "b"]}]}
    assert of(tmp_path / "a.json", json.dumps(columns)) == [
        {"q": "x", "choices": {"text": ["a", "b"]}}
    ]
    row = {"q": "x", "choices": {"text": ["a", "b"]}}
    assert of(tmp_path / "a.json", json.dumps(row)) == [row]
    one = {"q": "x", "choices": [{"label": "A", "text": "a"}]}
    assert of(tmp_path / "a.jsonl", json.dumps(one)) == [one]


def test_ambiguous_or_uneven_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    assert "there are rows under several keys: 'train', 'test'" in refused(path)
    path.write_text(json.dumps({"q": ["x", "y"], "a": [1]}))
    assert "have different lengths: 'a' has 1 values, 'q' has 2" in refused(path)


@pytest.mark.parametrize("blank", ["", "\n\n"])
def test_indented_json_under_a_name_of_json_lines(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "a.jsonl"
    text = blank + "\n".join(json.dumps(row, indent=1) for row in ROWS)
    assert of(path, text) == ROWS
    first = 1 + len(blank)
    assert [row.where for row in read_rows(path)] == [f"{path}:{first}", f"{path}:{first + 4}"]
    expected = ["this file holds an array or indented objects instead of one JSON object per line"]
    assert notes(path, text) == notes(path, json.dumps(ROWS)) == expected
    path.write_text('{\n "q": 1\n}\n{\n "q" 2\n}\n')
    assert refused(path).startswith("FILE:5: not valid JSON at column 6")
    path.write_text('{ "q": 1,\n "a": 2 }\n')
    assert refused(path).endswith("each line must hold one complete row")


@pytest.mark.parametrize("value", [b"7", 7.0, float("nan"), None, "", True, ["x"], {"x": 1}])
def test_a_column_id_that_nobody_named_is_used_only_if_it_can_be(value: object) -> None:
    row = TableRow("f:1", {"id": value})
    assert row.id(None) is None
    with pytest.raises(UserError, match="column 'id'"):
        row.id("id")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", "y"]).dictionary_encode(),
        pa.array(["x", "y"], pa.large_string()),
        pa.array([1, 2], pa.int8()),
    ],
)
def test_the_types_of_parquet_columns(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"prompt": column, "response": column}), tmp_path / "a.parquet")
    options = InstructionOptions.model_validate({"path": str(tmp_path / "a.parquet")})
    split = Instruction(options).load("train")
    assert [sample.response for sample in split.samples] == list(map(str, column.to_pylist()))


def test_a_task_passes_the_notes_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;response\na;b\nc;\n")
    split = Instruction(InstructionOptions.model_validate({"path": str(tmp_path / "a.csv")})).load(
        "train"
    )
    assert [sample.response for sample in split.samples] == ["b", ""]
    assert split.notes == [f"{tmp_path / 'a.csv'}: its cells are separated by semicolons"]
