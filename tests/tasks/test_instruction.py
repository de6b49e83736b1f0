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


def test_a_row_without_the_key_of_the_response_is_a_prompt_alone(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "b", "response": "c"}, {"prompt": "d"})
    assert [sample.response for sample in loaded(task(path)).samples] == ["", "c", ""]
    with pytest.raises(UserError, match="no columns 'response' and 'prompt'"):
        loaded(task(written(tmp_path, {"id": 1})))


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


# Conversations.

ASKED = {"role": "user", "content": "Hello"}
SAID = {"role": "assistant", "content": "Hi"}
AGAIN = {"role": "user", "content": "Bye"}
CONTINUED = {"role": "assistant", "content": "Good bye"}


def messages_of(sample: Sample) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in sample.messages]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.parquet"])
@pytest.mark.parametrize("style", ["messages", "conversations"])
def test_conversations_in_every_format(tmp_path: Path, name: str, style: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns: list[dict[str, Any]] = [ASKED, SAID, AGAIN, CONTINUED]
    if style == "conversations":
        names = {"user": "human", "assistant": "gpt"}
        turns = [{"from": names[one["role"]], "value": one["content"]} for one in turns]
    rows = [{"id": "a", style: turns}, {"id": "b", style: turns[:2]}]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text(
            json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
        )
    chosen = task(tmp_path)
    check_task(chosen)
    first, second = loaded(chosen).samples
    assert messages_of(first) == [
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Bye"),
        ("assistant", "Good bye"),
    ]
    assert (first.id, first.supervised) == ("a", (1, 3))
    assert first.prompt == "Hello"
    assert first.response == "assistant: Hi\n\nuser: Bye\n\nassistant: Good bye"
    assert (second.prompt, second.response, second.supervised) == ("Hello", "Hi", (1,))
    last, _ = loaded(task(tmp_path, supervise="last")).samples
    assert last.supervised == (3,)
    assert last.prompt == "user: Hello\n\nassistant: Hi\n\nuser: Bye"
    assert last.response == "Good bye"


def test_a_column_of_conversations_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "x", "response": "y", "chat": [ASKED, SAID]})
    (sample,) = loaded(task(path, messages="chat")).samples
    assert messages_of(sample) == [("user", "Hello"), ("assistant", "Hi")]
    assert loaded(task(path)) == Split([Sample("x", "y")])


def test_templates_and_conversations_exclude_one_another(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="so `prompt` has no meaning; remove one"):
        task(tmp_path, messages="chat", prompt="{a}")
    path = written(tmp_path, {"messages": [ASKED, SAID], "question": "q", "answer": "a"})
    (sample,) = loaded(task(path, prompt="{question}", response="{answer}")).samples
    assert not sample.messages


def test_conversations_without_an_answer_are_counted(tmp_path: Path) -> None:
    system, empty = {"role": "system", "content": ""}, {"role": "assistant", "content": " \n"}
    path = written(
        tmp_path,
        {"messages": [system, ASKED, SAID]},
        {"messages": [ASKED, empty]},
        {"messages": [ASKED]},
        {"messages": [SAID, ASKED]},
        {"messages": [{"role": "user", "content": ""}, SAID]},
    )
    found = loaded(task(path))
    assert [messages_of(sample) for sample in found.samples] == [
        [("user", "Hello"), ("assistant", "Hi")]  # an empty system message is none
    ]
    assert found.dropped == {
        "empty turn of the assistant": 1,
        "no turn of the assistant": 2,
        "empty turn of the user": 1,
    }


def test_names_line_and_key_of_a_bad_message(tmp_path: Path) -> None:
    for bad, expected in (
        ([ASKED, {"role": "asistant", "content": "x"}], '[1].role: found "asistant" (did you'),
        ([ASKED, {"role": None, "content": "x"}], "[1].role: found null, expected system, user,"),
        ([{"role": "user", "content": None}, SAID], "[0].content: found null, expected text"),
        ([ASKED, {"role": "assistant"}], '[1]: found the object {"role": "assistant"}, expect'),
        ([ASKED, "Hi"], '[1]: found "Hi", expected an object with `role` and `content`'),
        ("Hi", "column 'messages': found \"Hi\", expected a list of messages"),
        ([ASKED, {"role": "assistant", "content": "\ud800"}], "[1].content' contains half of"),
    ):
        path = written(tmp_path, {"messages": [ASKED, SAID]}, {"messages": bad})
        with pytest.raises(UserError) as caught:
            loaded(task(path, messages="messages"))
        assert f"{path}:2: " in str(caught.value)
        assert expected in str(caught.value)
    with pytest.raises(UserError, match=r"no column 'turns'.*; set messages"):
        loaded(task(path, messages="turns"))


def test_equal_prompts_of_conversations_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"{n // 3}"}, SAID, AGAIN, CONTINUED][
                : 2 + n % 3
            ]
        }
        for n in range(60)
    ]
    path = written(tmp_path, *rows)
    chosen = task(path, test=0.5)
    sides = [{sample.prompt for sample in chosen.load(name).samples} for name in ("train", "test")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
