"""The per-sample log of lm-evaluation-harness (`samples_<task>_<date>.jsonl`), as records.

A line is a question under one filter. `filtered_resps` holds a pair (log-likelihood, is greedy) for
each choice, `arguments` the context and the text of each, `target` the right one: its index or its
text, as the task has it. Newer versions write all of these as strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstcli.errors import UserError
from firstcli.metrics.records import MASS_SLACK, EvalRecords, Scope

_NEEDED = ("doc_id", "target", "filtered_resps")


@dataclass(frozen=True, slots=True)
class _Line:
    """One question: what was logged of it."""

    number: int
    id: str
    log_likelihoods: tuple[float, ...]
    choices: tuple[str, ...]  # empty where the log does not hold their texts
    target: str
    acc: float | None

    def answer_by_index(self) -> int | None:
        """Take the target for the right choice's index."""
        index = int(self.target) if self.target.isdecimal() else -1
        return index if 0 <= index < len(self.log_likelihoods) else None

    def answer_by_text(self) -> int | None:
        """Take the target for the right choice's text; the first of equal ones, as the harness."""
        return self.choices.index(self.target) if self.target in self.choices else None

    def agrees(self, answer: int | None) -> bool:
        """Say whether an answer is possible and gives the accuracy that the harness logged."""
        right = int(np.argmax(self.log_likelihoods)) == answer
        return answer is not None and (self.acc is None or right == (self.acc > 0))


_READINGS: tuple[Callable[[_Line], int | None], ...] = (_Line.answer_by_index, _Line.answer_by_text)


def read(path: Path) -> EvalRecords:
    """Read a log of a multiple-choice task.

    Log-likelihoods are those of whole continuations, summed over their tokens, as `acc` uses them.
    Where those of a question sum to more than 1, as texts that begin alike may, the records compare
    the choices only: their scope is `candidates`.

    Raises:
        UserError: names the line that is damaged or no multiple-choice question.
    """
    lines = list(_lines(path))
    if not lines:
        raise UserError(f"{path}: holds no samples")
    rows = [line.log_likelihoods for line in lines]
    overlap = any(sum(map(math.exp, row)) > 1.0 + MASS_SLACK for row in rows)
    scope: Scope = "candidates" if overlap else "vocabulary"
    answers = _answers(path, lines)
    try:
        return EvalRecords.from_log_probs([line.id for line in lines], answers, rows, scope=scope)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the lines of one filter: `none`, which changes nothing, or else the first."""
    found: dict[str, list[_Line]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    place = f"{path}:{number}"
                    sample = _sample(place, text)
                    line = _line(place, number, sample)
                    found.setdefault(str(sample.get("filter", "none")), []).append(line)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    chosen = "none" if "none" in found else next(iter(found), "")
    yield from found.get(chosen, ())


def _sample(place: str, text: str) -> dict[str, Any]:
    try:
        sample = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: is no JSON ({error})") from error
    missing = [key for key in _NEEDED if not isinstance(sample, dict) or key not in sample]
    if missing:
        raise UserError(
            f"{place}: is no sample of lm-evaluation-harness, which has a `{missing[0]}`"
        )
    return dict(sample)


def _line(place: str, number: int, sample: dict[str, Any]) -> _Line:
    values = _log_likelihoods(place, sample["filtered_resps"])
    arguments = _arguments(sample.get("arguments"))
    if len(arguments) == len(values) and _has_unconditional(arguments):
        half = len(values) // 2  # acc_mutual_info also asks for each choice without its context
        values, arguments = values[:half], arguments[:half]
    choices = tuple(text.strip() for _, text in arguments)
    if len(values) < 2:
        raise UserError(f"{place}: has {len(values)} choice and is no multiple-choice question")
    if len(choices) == len(values) and len(set(choices)) == 1:  # such as winogrande
        raise UserError(
            f"{place}: its choices differ in the context and not in the text that is scored, so "
            "how likely each choice is was not asked; such a task cannot be judged"
        )
    acc = sample.get("acc")
    return _Line(
        number,
        f"{sample['doc_id']}:{str(sample.get('doc_hash', ''))[:12]}".rstrip(":"),
        values,
        choices if len(choices) == len(values) else (),
        str(sample["target"]).strip(),
        float(acc) if isinstance(acc, int | float) else None,
    )


def _log_likelihoods(place: str, responses: Any) -> tuple[float, ...]:
    """Read the pairs; whatever else is logged there is what a model wrote."""
    try:
        values = tuple(float(value) for value, _ in responses if not isinstance(value, list))
        if len(values) != len(responses) or any(isinstance(one, str) for one in responses):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{place}: holds no log-likelihood for each choice; only multiple-choice tasks can be "
            "judged, not those that generate text"
        ) from None
    if any(math.isnan(value) or value > 1e-3 for value in values):
        raise UserError(f"{place}: {list(values)} are no log-likelihoods")
    return tuple(min(value, 0.0) for value in values)


def _arguments(logged: Any) -> list[tuple[str, str]]:
    """Return context and continuation of each request, in either form of the log."""
    if isinstance(logged, dict):
        logged = [[one.get("arg_0"), one.get("arg_1")] for one in logged.values()]
    return [(str(one[0]), str(one[1])) for one in logged or [] if len(one) > 1]


def _has_unconditional(arguments: Sequence[tuple[str, str]]) -> bool:
    half = len(arguments) // 2
    asked, alone = arguments[:half], arguments[half:]
    return [text for _, text in asked] == [text for _, text in alone] and (
        all(not context for context, _ in alone) and any(context for context, _ in asked)
    )


def _answers(path: Path, lines: Sequence[_Line]) -> list[int]:
    """Return the right choices by the reading of `target` that fits all lines."""
    for reading in _READINGS:
        found = [reading(line) for line in lines]
        if all(line.agrees(answer) for line, answer in zip(lines, found, strict=True)):
            return [answer for answer in found if answer is not None]
    for line in lines:
        if all(reading(line) is None for reading in _READINGS):
            raise UserError(
                f"{path}:{line.number}: the target '{line.target}' is neither the index nor the "
                f"text of one of the {len(line.log_likelihoods)} choices"
            )
    for line in lines:
        if not any(line.agrees(reading(line)) for reading in _READINGS):
            raise UserError(
                f"{path}:{line.number}: the harness logged acc = {line.acc:g}, which the target "
                f"'{line.target}' and the log-likelihoods do not give"
            )
    raise UserError(f"{path}: some targets are the choices' indices, others their texts")
