"""Check the contract of a task: every split loads reproducibly and has valid samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from firstcli.api import Adaptation, Sample, Task
from firstcli.plugins.samples import MAX_CANDIDATES, sample_name, sample_problem
from firstcli.testing.requirements import require


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
    _check_adaptation(task, name)


def _check_adaptation(task: Task[Any], name: str) -> None:
    """Check `adapted` with a stand-in tokenizer that makes one token of each character."""
    if type(task).adapted is Task.adapted:
        return

    def tokens(prompt: str, responses: Sequence[str]) -> list[list[tuple[int, ...] | None]]:
        return [[(*map(ord, response), 0) for response in responses]]

    adaptation = task.adapted(tokens, None)
    require(isinstance(adaptation, Adaptation), f"{name}.adapted returns no Adaptation")
    options = adaptation.options
    require(isinstance(options, type(task).Options), f"{name}.adapted returns no options of {name}")
    dumped = options.model_dump(mode="json", exclude_unset=True)
    restored = type(task).Options.model_validate(dumped)
    require(restored == options, f"{name}.adapted: the options do not survive being saved as JSON")
    again = type(task)(options).adapted(tokens, None).options
    require(again == options, f"{name}.adapted: adapting the adapted options changes them")


def _check_split(task: Task[Any], split: str, where: str) -> None:
    samples, dropped = _loaded(task, split)
    require(samples, f"{where}: has no samples")
    again = _loaded(task, split)
    require(again == (samples, dropped), f"{where}: loading it twice gives different samples")
    for index, sample in enumerate(samples):
        _check_sample(sample, f"{where}, {sample_name(sample, index)}", task.has_candidates)
    ids = [sample.id for sample in samples if sample.id is not None]
    require(len(set(ids)) == len(ids), f"{where}: two samples have the same id")
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
    problem = sample_problem(sample)
    require(not problem, f"{where}: {problem}")
    if has_candidates:
        expected = f"expected 2 to {MAX_CANDIDATES:,}"
        require(sample.candidates, f"{where}: has 0 candidates, {expected}")
        return
    require(sample.response, f"{where}: the response is empty")
    problem = "has candidates, but the task has no candidates"
    require(not sample.candidates, f"{where}: {problem}")
