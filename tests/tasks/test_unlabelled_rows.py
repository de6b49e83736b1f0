"""Rows without a label of the tasks over tables, also where a test part is cut off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.tasks.classification import Classification, ClassificationOptions
from firstcli.tasks.multiple_choice import MultipleChoice, MultipleChoiceOptions
from firstcli.testing import check_task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def tickets(count: int, *, labelled: bool = True) -> list[dict[str, Any]]:
    labels = ("billing", "login", "other")
    kind = "ticket" if labelled else "new"
    return [
        {"text": f"{kind} {n}", "label": labels[n % 3] if labelled else ""} for n in range(count)
    ]


def classification(path: Path, **options: Any) -> Classification:
    return Classification(ClassificationOptions(path=path, **options))


def test_a_row_with_an_empty_label_is_unlabelled(tmp_path: Path) -> None:
    rows = [*tickets(4), {"text": "new", "label": None}, {"text": "", "label": "login"}]
    task = classification(write(tmp_path / "a.jsonl", rows))
    loaded = task.load("train")
    samples = list(loaded.samples)
    assert [sample.answer for sample in samples] == [0, 1, 2, 0, None]
    assert samples[-1].candidates == samples[0].candidates
    assert loaded.dropped == {"empty text": 1}
    check_task(task)


def test_unlabelled_files_have_the_labels_of_the_training_split(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", tickets(6))
    rows = [{"text": "p"}, {"text": "q", "label": "unheard of"}]
    pool = write(tmp_path / "pool.jsonl", rows)
    task = classification(train).unlabelled(pool)
    first, second = task.load("train").samples
    assert first.candidates == second.candidates == (" billing", " login", " other")
    assert first.answer is None and second.answer is None
    assert first.prompt == "p\n\nLabel:"
    assert task.sources("train") == (pool, train)
    listed = classification(train, labels=["a", "b"]).unlabelled(pool)
    assert listed.sources("train") == (pool,)
    assert next(iter(listed.load("train").samples)).candidates == (" a", " b")
    other = classification(train, text="body", labels=["a", "b"]).unlabelled(pool)
    with pytest.raises(UserError, match="there is no column 'body'"):
        list(other.load("train").samples)


def test_rows_without_a_label_are_never_cut_off_for_testing(tmp_path: Path) -> None:
    """They test nothing; and further files are used whole."""
    path = write(tmp_path / "a.jsonl", [*tickets(40), *tickets(20, labelled=False)])
    task = classification(path, test=0.3)
    answers = {
        split: [sample.answer for sample in task.load(split).samples] for split in ("train", "test")
    }
    assert answers["train"].count(None) == 20
    assert None not in answers["test"]
    assert len(answers["train"]) + len(answers["test"]) == 60
    assert len(list(task.unlabelled(path).load("train").samples)) == 60

    rows = [*tickets(40), *tickets(20, labelled=False)]
    questions = [{"question": r["text"], "answer": "x" if r["label"] else None} for r in rows]
    options = MultipleChoiceOptions(
        path=write(tmp_path / "b.jsonl", questions), choices=["x", "y"], test=0.3
    )
    choice = MultipleChoice(options)
    test = [sample.answer for sample in choice.load("test").samples]
    train = [sample.answer for sample in choice.load("train").samples]
    assert (train.count(None), test.count(None), len(train) + len(test)) == (20, 0, 60)
    assert len(list(choice.unlabelled(options.path).load("train").samples)) == 60


def test_with_a_column_of_splits_further_files_need_none(tmp_path: Path) -> None:
    rows = [row | {"part": "dev" if n % 4 == 0 else "train"} for n, row in enumerate(tickets(12))]
    task = classification(write(tmp_path / "a.jsonl", rows), split_column="part")
    pool = write(tmp_path / "pool.jsonl", [{"text": "p"}])
    assert len(list(task.unlabelled(pool).load("train").samples)) == 1
