"""Questions that are also in the training data: refused, warned of, or meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from firstcli.errors import UserError
from firstcli.recipe.schema import Recipe
from firstcli.runtime.console import Console
from firstcli.stages import checks
from firstcli.tasks.multiple_choice import MultipleChoice, MultipleChoiceOptions
from firstcli.workspace.run import Run
from support.command_line import of_files, recipe, sums, write_rows


def opened(folder: Path, task: Any, evaluate: Any, **train: Any) -> Run:
    sections = recipe(train={"task": task, **train}, evaluate=evaluate)
    return Run(Recipe.model_validate(sections), folder / "run", Console(quiet=True))


def found(run: Run) -> list[str]:
    """Return the warnings of the check."""
    with run.console.collect_warnings() as warnings:
        checks.OVERLAP.run(run)
    return list(warnings)


def refused(run: Run) -> str:
    with pytest.raises(UserError) as caught:
        checks.OVERLAP.run(run)
    return str(caught.value)


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "all.jsonl", sums(1200))


def test_the_same_file_for_training_and_evaluation_is_refused(
    tmp_path: Path, one_file: Path
) -> None:
    run = opened(tmp_path, of_files(one_file), [{"name": "tickets"}])
    assert refused(run) == (
        "evaluate 'tickets': all 1,200 questions are also in the training split; give a file with "
        "other questions; or state `split: train` to evaluate on the training data"
    )
    limited = opened(tmp_path, of_files(one_file), [{"limit": 100}, {"name": "b"}], limit=900)
    first, second = refused(limited).splitlines()
    assert "all 100 questions" in first
    assert "evaluate 'b': 900 of 1,200 questions (75.0 %) are also" in second


class CuttingOptions(MultipleChoiceOptions):
    test: float | None = Field(None, description="share of the rows that is the test split")


class Cutting(MultipleChoice):
    """A task that cuts a test part off its file, if asked to."""

    Options = CuttingOptions

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation") if "folder" in str(self.options.path) else ("train", "test")


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> None:
    from firstcli import plugins

    load = plugins.load

    def patched(kind: plugins.Kind, name: str) -> Any:
        return Cutting if name == "multiple-choice" else load(kind, name)

    monkeypatch.setattr(plugins, "load", patched)


@pytest.mark.usefixtures("cutting")
def test_a_task_that_can_cut_a_test_part_is_advised_to(tmp_path: Path, one_file: Path) -> None:
    whole = opened(tmp_path, of_files(one_file), None)
    advice = "; cut a test part off its data with the task's option `test: 0.2`, or give"
    assert advice in refused(whole)
    cut = of_files(one_file, test=0.2)
    separate = opened(tmp_path, cut, [{"task": of_files(one_file)}])
    assert "; the training task cuts a test part off its data, so leave out `task`" in refused(
        separate
    )
    folder = of_files(tmp_path / "folder")
    with pytest.raises(UserError, match=r"no split 'test'.*; it has train, validation; cut a test"):
        opened(tmp_path, folder, [{"name": "x"}]).evaluation_samples("x")


def test_evaluation_on_the_training_data_must_be_stated(tmp_path: Path, one_file: Path) -> None:
    run = opened(tmp_path, of_files(one_file), [{"split": "train", "name": "seen"}])
    [warning] = found(run)
    assert "evaluate 'seen': all 1,200 questions are also in the training split, as" in warning
    assert "what the models remember" in warning


@pytest.mark.parametrize(("shared", "is_error"), [(1, False), (5, False), (6, True), (10, True)])
def test_more_than_half_is_an_error_and_less_a_warning(
    tmp_path: Path, shared: int, is_error: bool
) -> None:
    write_rows(tmp_path / "mc" / "train.jsonl", sums(20))
    write_rows(tmp_path / "mc" / "test.jsonl", sums(10, first=20 - shared))
    run = opened(tmp_path, of_files(tmp_path / "mc"), None)
    if is_error:
        assert f"{shared} of 10" in refused(run) or "all 10" in refused(run)
        return
    [warning] = found(run)
    assert f"{shared} of 10 questions ({10 * shared}.0 %) are also in the training" in warning
    assert "remove these rows from one of the two" in warning


def test_separate_questions_are_not_mentioned(tmp_path: Path) -> None:
    write_rows(tmp_path / "mc" / "train.jsonl", sums(20))
    write_rows(tmp_path / "mc" / "test.jsonl", sums(10, first=20))
    assert found(opened(tmp_path, of_files(tmp_path / "mc"), None)) == []


def test_unlabelled_rows_in_the_test_data_are_warned_of_but_leak_no_label(tmp_path: Path) -> None:
    write_rows(tmp_path / "mc" / "train.jsonl", sums(20))
    write_rows(tmp_path / "mc" / "test.jsonl", sums(10, first=20))
    pool = write_rows(tmp_path / "pool.jsonl", sums(10, first=20))
    run = opened(tmp_path, of_files(tmp_path / "mc"), None, unlabelled={"path": str(pool)})
    [warning] = found(run)
    assert "all 10 questions are also among the unlabelled samples" in warning
    assert "transductive" in warning and "remove these rows from the unlabelled data" in warning
