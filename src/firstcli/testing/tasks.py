"""Check the contract of a task: every split loads reproducibly and has valid samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from firstcli.api import JSON, Adaptation, ExplanationForm, Sample, Task, TaskUsage, UserError
from firstcli.plugins.samples import MAX_CANDIDATES, sample_name, sample_problem
from firstcli.tasks.formats import data_file
from firstcli.tasks.tables import TableRow, read_rows
from firstcli.tasks.usage import built_prompt
from firstcli.testing.requirements import require

Rows = Mapping[str, Iterable[Mapping[str, JSON]]]


def check_task(task: Task[Any], rows: Rows | None = None) -> None:
    """Check the contract of a task, with the options that it was built with.

    If the task describes its use, every sample must be rebuilt from a row of the data. Splits whose
    rows are neither given nor in table files are not rebuilt.

    Args:
        task: the task.
        rows: the rows of each split in order, if `sources` returns no table files.

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
    if (usage := task.usage()) is not None:
        require(isinstance(usage, TaskUsage), f"{name}.usage returns no TaskUsage")
        again = TaskUsage.model_validate_json(usage.model_dump_json())
        require(again == usage, f"{name}.usage changes when it is written as JSON and read again")
        for split in task.splits:
            _check_usage(task, usage, split, rows)


def _check_usage(task: Task[Any], usage: TaskUsage, split: str, given: Rows | None) -> None:
    """Rebuild the samples from rows in the same order; the task may have left rows out.

    Conversations are left out: a row holds them whole, and a student is given a new prompt.
    Students that explain their answers write text, also where there are candidates.
    """
    name = f"{type(task).__name__}.usage"
    generates = not task.has_candidates or task.explanations() is not None
    problem = f"{name} has the kind '{usage.kind}', which does not fit `has_candidates`"
    if task.explanations() is not None:
        problem = f"{name} has the kind '{usage.kind}', expected 'instruction' with `explanations`"
    require((usage.kind == "instruction") == generates, problem)
    samples = [sample for sample in _loaded(task, split)[0] if not sample.messages]
    rows = _rows_of(task, usage, split, samples, given)
    if rows is None:
        return
    remaining = _built(usage, rows)
    for index, sample in enumerate(samples):
        wanted = (sample.prompt, () if generates else sample.candidates)
        problem = f"{name} does not rebuild {sample_name(sample, index)} of split '{split}'"
        require(any(built == wanted for built in remaining), f"{problem} from its row")


def _rows_of(
    task: Task[Any],
    usage: TaskUsage,
    split: str,
    samples: Sequence[Sample],
    given: Rows | None,
) -> Iterable[TableRow] | None:
    where = f"split '{split}', row"
    if given is not None:
        return (TableRow(f"{where} {i}", row) for i, row in enumerate(given.get(split, ()), 1))
    if usage.kind == "prompt":
        rows = ({"prompt": sample.prompt, "choices": [*sample.candidates]} for sample in samples)
        return (TableRow(f"{where} {i}", row) for i, row in enumerate(rows, 1))
    tables = [path for path in task.sources(split) or () if data_file(path)]
    return read_rows(tables) if tables else None


def _built(usage: TaskUsage, rows: Iterable[TableRow]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for row in rows:
        try:
            built = built_prompt(usage, row)
        except UserError:  # a row that the task leaves out
            continue
        yield built.prompt, built.candidates


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
    form = task.explanations()
    for index, sample in enumerate(samples):
        _check_sample(sample, f"{where}, {sample_name(sample, index)}", task.has_candidates)
        _check_explanation(sample, form, f"{where}, {sample_name(sample, index)}")
    ids = [sample.id for sample in samples if sample.id is not None]
    require(len(set(ids)) == len(ids), f"{where}: two samples have the same id")
    if task.has_candidates:
        count = len(samples)
        grouped = sum(sample.group is not None for sample in samples)
        problem = f"{grouped} of {count} samples have a group; only all or none may"
        require(grouped in (0, count), f"{where}: {problem}")
        learnable = any(sample.answer is not None for sample in samples) or split != "train"
        require(learnable, f"{where}: no sample has a right answer, so no teacher can learn it")


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
    problem = "has candidates, but the task has no candidates"
    require(not sample.candidates, f"{where}: {problem}")


def _check_explanation(sample: Sample, form: ExplanationForm | None, where: str) -> None:
    """Check that responses are made as the task says, and that their answers can be read."""
    if form is None:
        require(not sample.steps, f"{where}: has steps, but the task has no `explanations`")
        return
    prefix = form.prefix(sample.steps)
    responses = sample.candidates or ((sample.response,) if sample.response else ())
    for response in responses:
        problem = f"{where}: {response!r} is not made of the steps as `explanations` says"
        require(response.startswith(prefix), problem)
        problem = f"{where}: no answer can be read off {response!r} as `explanations` says"
        require(form.read(response).answer is not None, problem)
        stated = form.stated(response[len(prefix) :]) or ""
        problem = f"{where}: the answer that is read off {response!r} is not {stated!r}"
        require(form.reads(response, stated), problem)
