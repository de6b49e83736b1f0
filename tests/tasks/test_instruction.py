"""The task `instruction`: templates over a user's own columns, empty responses left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample, Split
from firstcli.errors import UserError
from firstcli.tasks.instruction import Instruction, InstructionOptions
from firstcli.testing import check_task


def task(path: Path, **options: Any) -> Instruction:
    return Instruction(InstructionOptions.model_validate({"path": str(path), **options}))


def loaded(task: Instruction) -> Split:
    split = task.load("train")
    return Split(list(split.samples), split.dropped)


def written(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompt_and_response_are_verbatim(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": 3, "prompt": "Say {hi}:\n", "response": " hi\n"})
    samples = [Sample("Say {hi}:\n", " hi\n", id="3")]
    assert loaded(task(path)) == Split(samples)
    assert samples[0].candidates == ()


def test_a_prompt_of_several_columns(tmp_path: Path) -> None:
    path = written(tmp_path, {"instruction": "Add.", "input": "", "output": 4})
    (sample,) = (
        task(path, prompt="{instruction}\n{input}\n=", response=" {output}").load("train").samples
    )
    assert (sample.prompt, sample.response) == ("Add.\n\n=", " 4")


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.json", "train.jsonl"])
def test_conforms_in_every_format_and_counts_empty_responses(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "a", "response": "b"}, {"prompt": "c", "response": " "}]
    if name.endswith("csv"):
        (tmp_path / name).write_text("prompt,response\na,b\nc, \n")
    elif name.endswith("parquet"):
        pq.write_table(
            pa.Table.from_pylist([*rows, {"prompt": "d", "response": None}][:3]), tmp_path / name
        )
    else:
        (tmp_path / name).write_text(
            json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
        )
    chosen = task(tmp_path)
    check_task(chosen)
    assert chosen.sources("train") == (tmp_path / name,)
    assert chosen.splits == ("train",) and not chosen.has_candidates
    found = loaded(chosen)
    assert next(iter(found.samples)) == Sample("a", "b")
    assert [each.response.strip() for each in found.samples][1:] == [""] * (
        2 if name.endswith("parquet") else 1
    )


def test_a_template_without_values_is_an_empty_response(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a", "response": ""}, {"prompt": "a", "response": "b"})
    found = loaded(task(path, response=" {response} END"))
    assert [sample.response for sample in found.samples] == ["", " b END"]


def test_names_line_and_column_of_a_bad_row(tmp_path: Path) -> None:
    good = {"prompt": "a", "response": "b"}
    for bad, expected in (
        ({"prompt": " ", "response": "b"}, ":2: nothing in 'prompt'"),
        ({"prompt": ["a"], "response": "b"}, ":2: column 'prompt': found the list"),
        ({"prompt": "a", "respons": "b"}, "no column 'response' (did you mean 'respons'?)"),
    ):
        with pytest.raises(UserError) as caught:
            loaded(task(written(tmp_path, good, bad)))
        assert expected in str(caught.value)


def test_options_are_checked() -> None:
    for options in ({"prompt": "fixed"}, {"response": "{"}, {"input": "x"}, {"path": 3}):
        with pytest.raises(ValidationError):
            InstructionOptions.model_validate({"path": "x.csv", **options})
