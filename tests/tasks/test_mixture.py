"""Several tasks as one: samples with their domain, in turn, and what cannot be mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Adaptation, Sample, UserError
from firstcli.plugins import calls
from firstcli.tasks.mixture import MixtureOfTexts, MixtureOptions, MixtureTask
from firstcli.testing import check_task
from support.command_line import of_files, sums, write_rows


def two(folder: Path, **second: Any) -> MixtureTask:
    write_rows(folder / "a" / "train.jsonl", sums(4))
    write_rows(folder / "a" / "test.jsonl", sums(2, 4))
    write_rows(folder / "b" / "train.jsonl", sums(2, 10))
    tasks = {"one": of_files(folder / "a"), "two": of_files(folder / "b", **second)}
    return MixtureTask(MixtureOptions.model_validate({"tasks": tasks}))


def samples(task: MixtureTask, split: str = "train") -> list[Sample]:
    return list(task.load(split).samples)


def test_samples_come_in_turn_and_keep_their_domain(tmp_path: Path) -> None:
    task, rows = two(tmp_path), [*sums(4), *sums(2, 10)]
    check_task(task, rows={"train": [rows[i] for i in (0, 4, 1, 5, 2, 3)]})
    found = samples(task)
    ids = ["one/q0", "two/q10", "one/q1", "two/q11", "one/q2", "one/q3"]
    assert [sample.id for sample in found] == ids
    assert [sample.group for sample in found] == ["one", "two", "one", "two", "one", "one"]
    alone = calls.task("multiple-choice", task.options.tasks["one"].options)
    assert [s.prompt for s in found if s.group == "one"] == [
        s.prompt for s in alone.load("train").samples
    ]


def test_splits_are_those_of_all_tasks(tmp_path: Path) -> None:
    assert two(tmp_path).splits == ("train",)


def test_sources_are_the_files_of_all_tasks(tmp_path: Path) -> None:
    files = two(tmp_path).sources("train")
    assert files is not None
    assert {file.parent.name for file in files} == {"a", "b"}


def test_options_survive_a_round_trip_with_those_of_the_tasks(tmp_path: Path) -> None:
    options = two(tmp_path, prompt="{question}?{choices}").options
    given = options.model_dump(mode="json", exclude_unset=True)
    assert given["tasks"]["two"]["options"] == {
        "path": str(tmp_path / "b"),
        "prompt": "{question}?{choices}",
    }
    assert MixtureOptions.model_validate(given) == options
    everything = options.model_dump(mode="json")["tasks"]["one"]["options"]
    assert "response" in everything  # defaults belong to what identifies the task


def test_each_task_is_adapted_to_the_tokenizers(tmp_path: Path) -> None:
    for name in "ab":
        rows = [{"text": f"t{i}", "label": f"{name}{i % 2}"} for i in range(4)]
        write_rows(tmp_path / name / "train.jsonl", rows)
    tasks = {
        name: {"name": "classification", "options": {"path": str(tmp_path / name)}} for name in "ab"
    }
    task = MixtureTask(MixtureOptions.model_validate({"tasks": tasks}))

    def tokens(prompt: str, responses: Any) -> list[list[tuple[int, ...]]]:
        return [[tuple(response.encode()) for response in responses]]

    adapted: Adaptation[MixtureOptions] = task.adapted(tokens, None)
    labels = [each.options.model_dump()["labels"] for each in adapted.options.tasks.values()]
    assert labels == [["a0", "a1"], ["b0", "b1"]]
    assert "a: 2 labels" in adapted.note and "b: 2 labels" in adapted.note
    again = MixtureTask(adapted.options).adapted(tokens, None)
    assert again.options == adapted.options


@pytest.mark.parametrize("name", ["unlabelled", "copy3", "a/b", ""])
def test_names_that_begin_ids_of_other_samples_are_refused(tmp_path: Path, name: str) -> None:
    tasks = {name: of_files(tmp_path), "two": of_files(tmp_path)}
    with pytest.raises(ValidationError, match="expected names of letters"):
        MixtureOptions.model_validate({"tasks": tasks})


def test_tasks_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    texts = {"name": "instruction", "options": {"path": str(tmp_path)}}
    with pytest.raises(ValidationError, match="'one' has candidates, and 'two' has none"):
        MixtureOptions.model_validate({"tasks": {"one": of_files(tmp_path), "two": texts}})
    options = MixtureOptions.model_validate({"tasks": {"one": texts, "two": texts}})
    with pytest.raises(UserError, match="'one' has no candidates; use the task 'mixture-texts'"):
        MixtureTask(options)
    assert not MixtureOfTexts(options).has_candidates


def test_a_mistake_in_a_task_names_its_option(tmp_path: Path) -> None:
    tasks = {"one": of_files(tmp_path), "two": {"name": "multiple-choice", "options": {"pth": 1}}}
    with pytest.raises(ValidationError) as caught:
        MixtureOptions.model_validate({"tasks": tasks})
    assert ("tasks", "two", "options", "pth") in [error["loc"] for error in caught.value.errors()]
    tasks["two"] = {"name": "nothing"}
    with pytest.raises(ValidationError, match="nothing"):
        MixtureOptions.model_validate({"tasks": tasks})
