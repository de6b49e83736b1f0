"""Reader of the per-sample log of lm-evaluation-harness (`samples_<task>_<date>.jsonl`).

Each line is one question under one filter. `filtered_resps` contains a pair (log-likelihood, is
greedy) per choice, `arguments` the context and the text of each choice, and `target` the index or
the text of the right choice, depending on the task. Newer versions write all of them as strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstcli.errors import UserError
from firstcli.metrics.records import MASS_SLACK, EvalRecords, Scope


@dataclass(frozen=True, slots=True)
class _Line:
    """One logged question."""

    place: str
    id: str
    log_likelihoods: tuple[float, ...]
    choices: tuple[str, ...]  # empty if the log has no texts
    target: str
    acc: float | None

    @property
    def readings(self) -> tuple[int | None, int | None]:
        """The right choice, if the target is its index, and if the target is its text."""
        index = int(self.target) if self.target.isdecimal() else -1
        by_index = index if 0 <= index < len(self.log_likelihoods) else None
        # of equal texts the first, as in the harness
        by_text = self.choices.index(self.target) if self.target in self.choices else None
        return by_index, by_text

    def agrees(self, answer: int | None) -> bool:
        """Return whether an answer is valid and consistent with the logged accuracy."""
        right = int(np.argmax(self.log_likelihoods)) == answer
        return answer is not None and (self.acc is None or right == (self.acc > 0))


def read(path: Path) -> EvalRecords:
    """Read the log of a multiple-choice task.

    Log-likelihoods are sums over the tokens of whole continuations, as used by `acc`. If the
    choices' probabilities sum to more than 1 in any question, which is possible if one text begins
    with another, the records only compare the choices: their scope is `candidates`.

    Raises:
        UserError: a line is damaged or not a multiple-choice question; the message names it.
    """
    lines = _lines(path)
    rows = [line.log_likelihoods for line in lines]
    overlap = any(sum(map(math.exp, row)) > 1.0 + MASS_SLACK for row in rows)
    scope: Scope = "candidates" if overlap else "vocabulary"
    answers = _answers(path, lines)
    try:
        return EvalRecords.from_log_probs([line.id for line in lines], answers, rows, scope=scope)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _lines(path: Path) -> list[_Line]:
    """Return the lines of one filter: `none` (unfiltered) if present, otherwise the first."""
    by_filter: dict[str, list[_Line]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    place = f"{path}:{number}"
                    sample = _sample(place, text)
                    same_filter = by_filter.setdefault(str(sample.get("filter", "none")), [])
                    same_filter.append(_line(place, sample))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not by_filter:
        raise UserError(f"{path}: contains no samples")
    return by_filter.get("none") or next(iter(by_filter.values()))


def _sample(place: str, text: str) -> dict[str, Any]:
    try:
        sample: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: is not valid JSON ({error})") from error
    for key in ("doc_id", "target", "filtered_resps"):
        if not isinstance(sample, dict) or key not in sample:
            raise UserError(
                f"{place}: is not a sample of lm-evaluation-harness: the key `{key}` is missing"
            )
    return sample


def _line(place: str, sample: dict[str, Any]) -> _Line:
    values = _log_likelihoods(place, sample["filtered_resps"])
    arguments = _arguments(sample.get("arguments"))
    if len(arguments) == len(values) and _has_unconditional(arguments):
        half = len(values) // 2  # acc_mutual_info also scores each choice without context
        values, arguments = values[:half], arguments[:half]
    choices = tuple(text.strip() for _, text in arguments)
    if len(values) < 2:
        raise UserError(f"{place}: is not a multiple-choice question: it has {len(values)} choice")
    if len(choices) == len(values) and len(set(choices)) == 1:  # for example in winogrande
        raise UserError(
            f"{place}: the choices differ in the context, not in the scored text, so that the log "
            "has no probability of each choice; such tasks cannot be evaluated"
        )
    acc = sample.get("acc")
    return _Line(
        place,
        f"{sample['doc_id']}:{str(sample.get('doc_hash', ''))[:12]}".rstrip(":"),
        values,
        choices if len(choices) == len(values) else (),
        str(sample["target"]).strip(),
        float(acc) if isinstance(acc, int | float) else None,
    )


def _log_likelihoods(place: str, responses: Any) -> tuple[float, ...]:
    """Read the pairs; anything else in their place is generated text."""
    try:
        values = tuple(float(value) for value, _ in responses if not isinstance(value, list))
        if len(values) != len(responses) or any(isinstance(pair, str) for pair in responses):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{place}: does not contain one log-likelihood per choice; only multiple-choice tasks "
            "can be evaluated, not tasks that generate text"
        ) from None
    if any(math.isnan(value) or value > 1e-3 for value in values):
        raise UserError(f"{place}: {list(values)} are not log-likelihoods")
    return tuple(min(value, 0.0) for value in values)


def _arguments(logged: Any) -> list[tuple[str, str]]:
    """Return the context and continuation of each request, for both formats of the log."""
    if isinstance(logged, dict):
        logged = [[request.get("arg_0"), request.get("arg_1")] for request in logged.values()]
    return [(str(request[0]), str(request[1])) for request in logged or [] if len(request) > 1]


def _has_unconditional(arguments: Sequence[tuple[str, str]]) -> bool:
    half = len(arguments) // 2
    conditional, unconditional = arguments[:half], arguments[half:]
    return [text for _, text in conditional] == [text for _, text in unconditional] and (
        all(not context for context, _ in unconditional)
        and any(context for context, _ in conditional)
    )


def _answers(path: Path, lines: Sequence[_Line]) -> list[int]:
    """Return the right choices under the interpretation of `target` that fits all lines."""
    readings = [line.readings for line in lines]
    for answers in zip(*readings, strict=True):
        if all(line.agrees(answer) for line, answer in zip(lines, answers, strict=True)):
            return [answer for answer in answers if answer is not None]
    for line, reading in zip(lines, readings, strict=True):
        if reading == (None, None):
            raise UserError(
                f"{line.place}: the target '{line.target}' is neither the index nor the "
                f"text of one of the {len(line.log_likelihoods)} choices"
            )
    for line, reading in zip(lines, readings, strict=True):
        if not any(map(line.agrees, reading)):
            raise UserError(
                f"{line.place}: the logged acc = {line.acc:g} contradicts the target "
                f"'{line.target}' and the log-likelihoods"
            )
    raise UserError(f"{path}: some targets are indices of choices and others are texts")
