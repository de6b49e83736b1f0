"""Check the contract of a task: every split loads reproducibly and has valid samples."""

from __future__ import annotations

from typing import Any

from firstcli.api import Sample, Task
from firstcli.testing.requirements import require

MAX_CANDIDATES = 26  # they are named by letters


def check_task(task: Task[Any]) -> None:
    """Check the contract of a task, with the options that it was built with.

    Raises:
        AssertionError: the task breaks the contract.
    """
    name = type(task).__name__
    require(isinstance(task, Task), f"{name} is not a firstcli.api.Task")
    require(task.splits, f"{name}.splits is empty")
    require(len(set(task.splits)) == len(task.splits), f"{name}.splits names a split twice")
    for split in task.splits:
        _check_split(task, split, f"{name}, split '{split}'")


def _check_split(task: Task[Any], split: str, where: str) -> None:
    samples, dropped = _loaded(task, split)
    require(samples, f"{where}: has no samples")
    again = _loaded(task, split)
    require(again == (samples, dropped), f"{where}: loading it twice gives different samples")
    ids = [sample.id for sample in samples if sample.id is not None]
    require(len(set(ids)) == len(ids), f"{where}: two samples have the same id")
    for index, sample in enumerate(samples):
        name = f"number {index}" if sample.id is None else f"'{sample.id}'"
        _check_sample(sample, f"{where}, sample {name}", task.has_candidates)
    if task.has_candidates:
        without, count = sum(sample.answer is None for sample in samples), len(samples)
        problem = f"{without} of {count} samples have no right answer; only all or none may"
        require(without in (0, count), f"{where}: {problem}")
        grouped = sum(sample.group is not None for sample in samples)
        problem = f"{grouped} of {count} samples have a group; only all or none may"
        require(grouped in (0, count), f"{where}: {problem}")
        learnable = not without or split != "train"
        require(learnable, f"{where}: samples without a right answer cannot be learned from")


def _loaded(task: Task[Any], split: str) -> tuple[list[Sample], dict[str, int]]:
    loaded = task.load(split)
    return list(loaded.samples), loaded.dropped


def _check_sample(sample: Sample, where: str, has_candidates: bool) -> None:
    require(sample.prompt.strip(), f"{where}: the prompt is empty")
    if has_candidates:
        _check_candidates(sample, where)
        return
    require(sample.response, f"{where}: the response is empty")
    plain = not sample.candidates and sample.answer is None and sample.truth is None
    problem = "has candidates, an answer or a truth, but the task has no candidates"
    require(plain, f"{where}: {problem}")


def _check_candidates(sample: Sample, where: str) -> None:
    candidates, answer, truth = sample.candidates, sample.answer, sample.truth
    count, last = len(candidates), len(candidates) - 1
    expected = f"expected 2 to {MAX_CANDIDATES}"
    require(2 <= count <= MAX_CANDIDATES, f"{where}: has {count} candidates, {expected}")
    require(len(set(candidates)) == count, f"{where}: two candidates are the same")
    require(all(candidates), f"{where}: a candidate is empty")
    if answer is None:
        empty = not sample.response and truth is None
        require(empty, f"{where}: has no right answer, but has a response or a truth")
        return
    require(0 <= answer < count, f"{where}: answer is {answer}, expected 0 to {last}")
    is_right = sample.response == candidates[answer]
    require(is_right, f"{where}: the response is not the right candidate")
    if truth is not None:
        require(len(truth) == count, f"{where}: truth does not have one number per candidate")
        require(min(truth) >= 0, f"{where}: a true probability is negative")
        require(abs(sum(truth) - 1) <= 1e-9, f"{where}: truth does not sum to 1")
