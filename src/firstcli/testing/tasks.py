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
    require(
        _loaded(task, split) == (samples, dropped),
        f"{where}: loading it twice gives different samples",
    )
    ids = [sample.id for sample in samples if sample.id is not None]
    require(len(set(ids)) == len(ids), f"{where}: two samples have the same id")
    for index, sample in enumerate(samples):
        sample_name = f"number {index}" if sample.id is None else f"'{sample.id}'"
        _check_sample(sample, f"{where}, sample {sample_name}", task.has_candidates)
    if task.has_candidates:
        _check_answers(samples, split, where)


def _check_answers(samples: list[Sample], split: str, where: str) -> None:
    without = sum(sample.answer is None for sample in samples)
    require(
        without in (0, len(samples)),
        f"{where}: {without} of {len(samples)} samples have no right answer; only all or none may",
    )
    require(
        not without or split != "train",
        f"{where}: samples without a right answer cannot be learned from",
    )


def _loaded(task: Task[Any], split: str) -> tuple[list[Sample], dict[str, int]]:
    loaded = task.load(split)
    return list(loaded.samples), loaded.dropped


def _check_sample(sample: Sample, where: str, has_candidates: bool) -> None:
    require(sample.prompt.strip(), f"{where}: the prompt is empty")
    if has_candidates:
        _check_candidates(sample, where)
    else:
        require(sample.response, f"{where}: the response is empty")
        require(
            not sample.candidates and sample.answer is None and sample.truth is None,
            f"{where}: has candidates, an answer or a truth, but the task has no candidates",
        )


def _check_candidates(sample: Sample, where: str) -> None:
    count = len(sample.candidates)
    require(
        2 <= count <= MAX_CANDIDATES,
        f"{where}: has {count} candidates, expected 2 to {MAX_CANDIDATES}",
    )
    require(len(set(sample.candidates)) == count, f"{where}: two candidates are the same")
    require(all(sample.candidates), f"{where}: a candidate is empty")
    if sample.answer is None:
        require(
            not sample.response and sample.truth is None,
            f"{where}: has no right answer, but has a response or a truth",
        )
        return
    require(
        0 <= sample.answer < count,
        f"{where}: answer is {sample.answer}, expected 0 to {count - 1}",
    )
    require(
        sample.response == sample.candidates[sample.answer],
        f"{where}: the response is not the right candidate",
    )
    if sample.truth is not None:
        require(
            len(sample.truth) == count, f"{where}: truth does not have one number per candidate"
        )
        require(min(sample.truth) >= 0, f"{where}: a true probability is negative")
        require(abs(sum(sample.truth) - 1) <= 1e-9, f"{where}: truth does not sum to 1")
