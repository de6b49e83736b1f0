"""`first init`: prints starters and the JSON Schema, and writes a recipe for a data file."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from firstcli.recipe.starters import OWN_DATA, starter, starters
from support.command_line import Result, first, write_rows
from support.paths import SHARED


def test_the_list_names_and_describes_every_starter() -> None:
    lines = first("init").out.splitlines()
    for each in starters():
        assert any(each.name in line and each.description in line for line in lines)


def test_starters_for_own_data_are_listed_first_under_a_heading() -> None:
    lines = first("init").out.splitlines()
    heading = lines.index("your own data:")
    own = lines[heading + 1 :][: len(OWN_DATA)]
    assert [line.split()[0] for line in own] == [*OWN_DATA]
    assert heading < lines.index("examples:") < lines.index("the paper's settings:")


def test_a_starter_is_printed_as_it_ships() -> None:
    assert first("init", "llama2-csqa").out == starter("paper/llama2-csqa").path.read_text("utf-8")


def test_an_unknown_starter_is_a_mistake() -> None:
    first("init", "quikstart").mistake("unknown starter 'quikstart' (did you mean 'quickstart'?)")


def test_the_schema_is_json() -> None:
    assert json.loads(first("init", "--schema").out)["title"] == "Recipe"


TEXT_ROWS = [
    (f"the parcel {n} is late, again", ["bug", "billing", "login"][n % 3]) for n in range(60)
]


def write_csv(path: Path, rows: Sequence[Sequence[object]], **style: Any) -> Path:
    with path.open("w", newline="", encoding=style.pop("encoding", "utf-8")) as file:
        csv.writer(file, **style).writerows(rows)
    return path


def task_of(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    task: dict[str, Any] = yaml.safe_load(result.out)["train"]["task"]
    return task


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("a.csv", {}),
        ("a.csv", {"delimiter": ";"}),
        ("a.csv", {"delimiter": "|"}),
        ("a.csv", {"delimiter": "\t"}),
        ("a.tsv", {"delimiter": "\t"}),
        ("a.csv", {"encoding": "utf-8-sig"}),
        ("a.csv", {"quoting": csv.QUOTE_ALL, "lineterminator": "\r\n"}),
    ],
)
def test_a_table_becomes_a_recipe(tmp_path: Path, name: str, style: dict[str, Any]) -> None:
    rows = [(text + (",\n" if n % 5 else ";"), label) for n, (text, label) in enumerate(TEXT_ROWS)]
    path = write_csv(tmp_path / name, [("body", "kind"), *rows], **style)
    result = first("init", "--from", path)
    assert task_of(result) == {
        "name": "classification",
        "options": {"path": str(path), "text": "body", "label": "kind", "test": 0.2},
    }
    assert "60 rows" in result.err
    assert "read as classification: text `body`, label `kind`" in result.err
    assert re.search(r"^  billing +20 +33.3%  #+$", result.err, re.MULTILINE)


def test_findings_are_warnings(tmp_path: Path) -> None:
    rows = [("text", "label"), *[(f"a ticket {n}", "bug") for n in range(50)]]
    rows += [("late", "Billing"), ("late", "billing "), ("late", "billing"), ("once", "rare")]
    rows += [("", "bug"), ("no label", "")]
    result = first("init", "--from", write_csv(tmp_path / "a.csv", rows))
    assert result.code == 0
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    expected = (
        "1 row has nothing in column 'text'",
        "1 row has nothing in column 'label'",
        "1 row has white space around the label",
        "count as different labels: 'billing' (2), 'Billing' (1); write them in one way",
        "2 labels have a single row: 'Billing', 'rare'",
        "1 label has fewer than 20 rows: 'billing'",
        "'bug' has 51 rows, 'rare' has 1",
        "2 rows have a text that occurred before",
        f"labels in 3 rows, such as {tmp_path}/a.csv:52 and {tmp_path}/a.csv:53",
    )
    for part, line in zip(expected, warnings, strict=True):
        assert part in line


def test_numbers_as_labels_and_repeated_ids_are_pointed_out(tmp_path: Path) -> None:
    rows = [("id", "text", "label"), *[(n // 2, f"a ticket {n}", n % 2) for n in range(40)]]
    result = first("init", "--from", write_csv(tmp_path / "a.csv", rows))
    assert "the labels in column 'label' are numbers" in result.err
    assert "20 rows have a value in column 'id' that occurred before" in result.err


def test_the_recipe_is_saved_beside_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "a.csv", [("text", "label"), *TEXT_ROWS])
    (tmp_path / "recipes").mkdir()
    command = ("init", "--from", "a.csv", "--out", "recipes/mine.yaml", "--teacher", "x/y")
    result = first(*command)
    assert (result.code, result.out) == (0, "")
    recipe = yaml.safe_load((tmp_path / "recipes" / "mine.yaml").read_text("utf-8"))
    assert recipe["train"]["task"]["options"]["path"] == "../a.csv"
    assert recipe["teacher"]["model"]["checkpoint"] == "x/y"
    first(*command).mistake("--out recipes/mine.yaml: this file exists")
    first(*command[:4], "no/such/folder.yaml").mistake(
        "--out no/such/folder.yaml: cannot be written"
    )


def two_label_columns(folder: Path) -> Path:
    sizes = ["big" if n % 4 else "small" for n in range(60)]
    rows = [(*row, size) for row, size in zip(TEXT_ROWS, sizes, strict=True)]
    return write_csv(folder / "a.csv", [("text", "team", "size"), *rows])


def test_unclear_columns_are_refused_without_a_terminal(tmp_path: Path) -> None:
    rows = [
        ("text", "team", "size"),
        *[(*row, "big" if n % 4 else "small") for n, row in enumerate(TEXT_ROWS)],
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    result = first("init", "--from", path)
    result.mistake(f"{path}: which column is the label? found 'team', 'size'; state --label, for")
    assert result.out == ""
    assert task_of(first("init", "--from", path, "--label", "size"))["options"]["label"] == "size"
    first("init", "--from", path, "--label", "sise").mistake("did you mean 'size'?")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pty")
def test_unclear_columns_are_asked_in_a_terminal(tmp_path: Path) -> None:
    import pty

    rows = [
        ("text", "team", "size"),
        *[(*row, "big" if n % 4 else "small") for n, row in enumerate(TEXT_ROWS)],
    ]
    path = write_csv(tmp_path / "a.csv", rows)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "firstcli", "init", "--from", str(path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    while b"number" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, b"7\n2\n")  # 7 is none of them
    reader = threading.Thread(target=_drain, args=(ours,))
    reader.start()
    out, _ = process.communicate(timeout=60)
    reader.join()
    os.close(ours)
    assert process.returncode == 0
    assert yaml.safe_load(out)["train"]["task"]["options"]["label"] == "size"


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # raised when the other side is closed
        while os.read(terminal, 4096):
            pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "there are no rows"),
        ("header.csv", b"text,label\n", "there are no rows"),
        ("junk.csv", bytes(range(256)) * 20, "not"),
        ("junk.parquet", bytes(range(256)) * 20, "not a readable Parquet file"),
        ("utf16.csv", "text,label\na,b\n".encode("utf-16"), "not UTF-8 text"),
        ("a.xlsx", b"PK", "expected the path of a file that ends in"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "broken.jsonl:2: not valid JSON"),
        ("ragged.csv", b"text,label\na,b\na,b,c\n", "ragged.csv:3: found 3 cells"),
        ("one.csv", b"text\na long text\nanother one\n", "no column looks like a label"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = first("init", "--from", tmp_path / name)
    assert message in result.mistake()
    assert result.out == ""
    first("init", "--from", tmp_path / "none.csv").mistake("there is no such file")


def test_huge_cells_and_nulls(tmp_path: Path) -> None:
    rows: list[object] = [{"text": f"t {n}", "label": "ab"[n % 2], "x": None} for n in range(30)]
    rows.append({"text": "w" * 3_000_000, "label": None})
    path = write_rows(tmp_path / "a.jsonl", rows)
    result = first("init", "--from", path)
    assert task_of(result)["options"]["label"] == "label"
    assert "too_long: drop  # the longest text has about 3,000,000 characters" in result.out


def test_data_cannot_write_control_codes_to_the_terminal(tmp_path: Path) -> None:
    rows = [(f"\x1b[2J{text}", f"\x1b{label}") for text, label in TEXT_ROWS]
    path = write_csv(tmp_path / "a.csv", [("te\x1b[31mxt", "label"), *rows])
    result = first("init", "--from", path)
    assert result.code == 0
    assert "\x1b" not in result.err + result.out


def test_a_test_split_without_labels_is_not_used(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [("text", "label"), *TEXT_ROWS])
    write_csv(tmp_path / "test.csv", [("text",), *[row[:1] for row in TEXT_ROWS]])
    result = first("init", "--from", tmp_path)
    options = task_of(result)["options"]
    assert (options["path"], options["test"]) == (str(tmp_path / "train.csv"), 0.2)
    assert "rows by split: train 60, test 60" in result.err
    assert "the split 'test' has no labels in column 'label'" in result.err
    write_csv(tmp_path / "test.csv", [("text", "label"), *TEXT_ROWS[:9]])
    options = task_of(first("init", "--from", tmp_path))["options"]
    assert (options["path"], "test" in options) == (str(tmp_path), False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--label", "x"), "first init: --label needs --from FILE"),
        (("quickstart", "--from", "a.csv"), "leave out the starter 'quickstart'"),
        (("--schema", "--from", "a.csv"), "leave out --schema"),
    ],
)
def test_options_that_exclude_each_other(args: tuple[str, ...], message: str) -> None:
    first("init", *args).mistake(message)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "task", "columns"),
    [
        ("sst2", "classification", {"text": "sentence", "label": "label"}),
        ("trec", "multiple-choice", {"question_column": "question", "answer_column": "answer"}),
        ("boolq", "classification", {"text": ["question", "passage"], "label": "answer"}),
        ("openbook_qa", "multiple-choice", {"question_column": "question.stem"}),
        ("alpaca/alpaca.json", "instruction", {"response": " {output}"}),
    ],
)
def test_real_data(name: str, task: str, columns: dict[str, object]) -> None:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    found = task_of(first("init", "--from", path))
    assert found["name"] == task
    assert found["options"].items() >= columns.items()


@pytest.mark.shared
def test_files_that_broke_the_program_before() -> None:
    folder = SHARED / "cases" / "tables"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for path in sorted(folder.iterdir()):
        found = task_of(first("init", "--from", path))
        expected = "classification" if path.name == "bool-answer.parquet" else "multiple-choice"
        assert found["name"] == expected, path


def test_a_plan_accepts_the_recipe(tmp_path: Path, pico_folder: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("text", "label"), *TEXT_ROWS])
    models = ("--teacher", pico_folder, "--student", pico_folder)
    recipe = tmp_path / "recipe.yaml"
    assert first("init", "--from", path, *models, "--out", recipe).code == 0
    result = first("plan", recipe, "--run-dir", tmp_path / "run")
    assert result.code == 0, result.err


SHAPES: dict[str, dict[str, Any]] = {
    "labels": {"text": "words {n}", "label": "{parity}"},
    "choices": {"question": "which {n}?", "choices": ["one", "two"], "answer": "A"},
    "pairs": {"prompt": "say {n}", "response": "it is {n}, as we said before"},
    "prompts": {"prompt": "say {n} in a few words"},
    "messages": {
        "messages": [{"role": "user", "content": "{n}?"}, {"role": "assistant", "content": "No."}]
    },
}
CHAT = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant:\n{% endif %}"


@pytest.mark.shared
@pytest.mark.parametrize("shape", SHAPES)
def test_a_recipe_for_each_shape_of_data_passes_the_plan(shape: str, tmp_path: Path) -> None:
    text = json.dumps(SHAPES[shape])
    numbered = [
        text.replace("{n}", str(n)).replace("{parity}", ("even", "odd")[n % 2]) for n in range(40)
    ]
    data = write_rows(tmp_path / f"{shape}.jsonl", [json.loads(each) for each in numbered])
    models = [str(SHARED / "models" / name) for name in ("wiki-14m", "wiki-5m")]
    made = first("init", "--from", data, "--teacher", models[0], "--student", models[1])
    assert made.code == 0, made.err
    recipe = yaml.safe_load(made.out)
    for each in recipe.get("evaluate", ()):  # the data that would be downloaded
        each["task"]["options"] = {"path": str(SHARED / "data" / "openbook_qa")}
    if shape == "messages":
        assert "neither model has one" in made.err
        (tmp_path / "chat.jinja").write_text(CHAT)
        recipe["teacher"]["model"]["chat_template"] = "chat.jinja"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    planned = first("plan", path)
    assert planned.code == 0, planned.err
