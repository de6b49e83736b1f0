"""Splits out of one table: by a share of the prompts, or by a column."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from firstcli.api import Sample, Task
from firstcli.errors import UserError
from firstcli.tasks.classification import Classification
from firstcli.tasks.instruction import Instruction
from firstcli.tasks.multiple_choice import MultipleChoice
from firstcli.testing import check_task

TASKS: dict[type[Task[Any]], dict[str, Any]] = {
    Classification: {"label": "answer"},
    Instruction: {"prompt": "{text}", "response": "{answer}"},
    MultipleChoice: {
        "question_column": "text",
        "choices": ["yes", "no"],
        "respond_with": "text",
        "prompt": "{question}",
        "answer_as": "text",
    },
}
KINDS = pytest.mark.parametrize("kind", TASKS)


def build(kind: type[Task[Any]], path: Path, **options: Any) -> Task[Any]:
    return kind(kind.Options.model_validate({"path": str(path), **TASKS[kind], **options}))


def write(path: Path, texts: Sequence[str], **columns: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "answer", *columns])
        for number, text in enumerate(texts):
            answer = "yes" if number % 2 else "no"
            writer.writerow([text, answer, *(column[number] for column in columns.values())])
    return path


def prompts(task: Task[Any], split: str) -> list[str]:
    return [sample.prompt for sample in task.load(split).samples]


@KINDS
def test_a_share_is_cut_by_the_prompt(tmp_path: Path, kind: type[Task[Any]]) -> None:
    path = write(tmp_path / "all.csv", [f"text {n // 3}" for n in range(600)])  # each thrice
    task = build(kind, path, test=0.25)
    assert task.splits == ("train", "test")
    assert task.sources("test") == task.sources("train") == (path,)
    train, test = prompts(task, "train"), prompts(task, "test")
    assert len(train) + len(test) == 600
    assert not {*train} & {*test}
    assert 0.15 < len(test) / 600 < 0.35
    check_task(task)
    with pytest.raises(UserError, match=r"no split 'validation'.*there is train, test"):
        task.load("validation")
        list(task.load("validation").samples)


TEXTS = st.lists(st.text("abcd", min_size=1, max_size=3), min_size=40, max_size=80)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, TEXTS, st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_other_rows_and_their_order_move_no_row(
    tmp_path: Path, texts: list[str], more: list[str], share: float, random: Any
) -> None:
    path = write(tmp_path / "all.csv", texts)
    task = build(Classification, path, test=share)
    test = {sample.prompt for sample in task.load("test").samples}
    train = {sample.prompt for sample in task.load("train").samples}
    assert not train & test
    shuffled = [*texts, *more]
    random.shuffle(shuffled)
    write(path, shuffled)
    after = {sample.prompt for sample in task.load("test").samples}
    assert after & (train | test) == test


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_about_the_one_asked_for(tmp_path: Path, share: float) -> None:
    count = 4000
    path = write(tmp_path / "all.csv", [f"text {n}" for n in range(count)])
    part = len(prompts(build(Instruction, path, test=share), "test")) / count
    assert abs(part - share) < 4 * (share * (1 - share) / count) ** 0.5  # 4 standard errors


def test_a_new_label_or_listed_labels_move_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "all.csv", [f"text {n}" for n in range(200)])
    cut = {split: ids(build(Classification, path, test=0.3), split) for split in ("train", "test")}
    assert len(cut["test"]) > 20
    for options in (
        {"labels": ["no", "yes", "maybe"]},
        {"labels": {"no": "it is not", "yes": ""}},
        {"answers": "codes", "labels": ["yes", "no"], "codes": {"yes": "A", "no": "B"}},
    ):
        task = build(Classification, path, test=0.3, **options)
        assert {split: ids(task, split) for split in cut} == cut


def ids(task: Task[Any], split: str) -> list[str]:
    """The numbers in the texts of a split."""
    return [_number(sample) for sample in task.load(split).samples]


def _number(sample: Sample) -> str:
    return sample.prompt.partition("text ")[2].split()[0]


@KINDS
def test_a_column_names_the_split(tmp_path: Path, kind: type[Task[Any]]) -> None:
    texts = [f"text {n}" for n in range(8)]
    names = ["train", "Train ", "dev", "TEST", "training", "valid", "test", "train"]
    path = write(tmp_path / "all.csv", texts, part=names)
    task = build(kind, path, split_column="part")
    assert task.splits == ("train", "validation", "test")
    assert ids(task, "train") == ["0", "1", "4", "7"]
    assert ids(task, "validation") == ["2", "5"]
    assert ids(task, "test") == ["3", "6"]
    assert task.sources("test") == (path,)


@KINDS
def test_mistakes_in_a_split_column(tmp_path: Path, kind: type[Task[Any]]) -> None:
    path = write(tmp_path / "all.csv", ["a", "b", "c"], part=["train", "train", "tset"])
    task = build(kind, path, split_column="part")
    with pytest.raises(
        UserError,
        match=r"all.csv:4: column 'part': found \"tset\" \(did you mean 'test'\?\), expected the "
        "name of a split: train, validation, test",
    ):
        prompts(task, "train")
    write(path, ["a", "b", "c"], part=["train", "train", "train"])
    with pytest.raises(UserError, match="no row has the split 'test' in column 'part'"):
        prompts(task, "test")
    with pytest.raises(UserError, match=r"there is no column 'parts'.*did you mean 'part'"):
        prompts(build(kind, path, split_column="parts"), "train")


@KINDS
def test_data_with_a_test_split_are_not_divided_again(
    tmp_path: Path, kind: type[Task[Any]]
) -> None:
    write(tmp_path / "train.csv", [f"text {n}" for n in range(40)])
    write(tmp_path / "dev.csv", ["d", "e"])
    task = build(kind, tmp_path, test=0.5)
    assert set(task.splits) == {"train", "validation", "test"}
    assert len(ids(task, "train")) + len(ids(task, "test")) == 40
    assert len(prompts(task, "validation")) == 2
    write(tmp_path / "test.csv", ["x", "y"])
    message = "the data have the splits train, validation, test, so `{}` cannot divide them again"
    with pytest.raises(UserError, match=message.format("test")):
        assert task.splits
    with pytest.raises(UserError, match=message.format("split_column")):
        assert build(kind, tmp_path, split_column="part").splits
    (tmp_path / "train.csv").unlink()
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UserError, match=r"no split 'train' from which `test` can be cut"):
        assert task.splits


@KINDS
def test_options_that_exclude_each_other(tmp_path: Path, kind: type[Task[Any]]) -> None:
    with pytest.raises(ValidationError, match="both `test` and `split_column`"):
        build(kind, tmp_path, test=0.2, split_column="part")
    for share in (0.0, 1.0):
        with pytest.raises(ValidationError):
            build(kind, tmp_path, test=share)


def test_unreadable_answers_of_another_part_do_not_matter(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "choices": ["a", "b"], "answer": "B", "part": "train"},
        {"question": "r", "choices": ["a", "b"], "answer": "", "part": "test"},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(path), "split_column": "part"}
    task = MultipleChoice(MultipleChoice.Options.model_validate(options))
    (sample,) = task.load("train").samples
    assert sample.answer == 1
    (unlabelled,) = task.load("test").samples
    assert unlabelled.answer is None
