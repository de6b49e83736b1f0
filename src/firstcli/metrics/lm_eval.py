"""Reader of the per-sample log of lm-evaluation-harness (`samples_<task>_<date>.jsonl`).

Each sample is one question under one filter. `filtered_resps` contains a pair (log-likelihood, is
greedy) per choice, `arguments` the context and the text of each choice, and `target` the index or
the text of the right choice, depending on the task. Newer versions write all of them as strings.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from firstcli.errors import UserError
from firstcli.metrics.gold import Gold, LoggedQuestion, answers, target_text
from firstcli.metrics.records import MASS_SLACK, EvalRecords, Scope

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


def read(path: Path, gold: Gold | None = None) -> EvalRecords:
    """Read the log of a multiple-choice task.

    Log-likelihoods are sums over the tokens of whole continuations, as used by `acc`. If the
    choices' probabilities sum to more than 1 in any question, which is possible if one text begins
    with another, the records only compare the choices: their scope is `candidates`.

    Raises:
        UserError: a line is damaged or not a multiple-choice question, or it is not clear which
            choice is right; the message names it.
    """
    questions = _questions(path)
    rows = [question.log_likelihoods for question in questions]
    overlap = any(sum(map(math.exp, row)) > 1.0 + MASS_SLACK for row in rows)
    scope: Scope = "candidates" if overlap else "vocabulary"
    right = answers(questions, gold)
    ids = [question.id for question in questions]
    try:
        return EvalRecords.from_log_probs(ids, right, rows, scope=scope, candidates="whole")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _questions(path: Path) -> list[LoggedQuestion]:
    """Return the questions of one filter: `none` (unfiltered) if present, otherwise the first."""
    by_filter: dict[str, list[LoggedQuestion]] = {}
    for place, value in _values(path):
        sample = _sample(place, value)
        same_filter = by_filter.setdefault(str(sample.get("filter", "none")), [])
        same_filter.append(_question(place, sample))
    if not by_filter:
        raise UserError(f"{path}: contains no samples")
    return by_filter.get("none") or next(iter(by_filter.values()))


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the samples with their places: JSON after JSON, or the elements of one array.

    Whether and how the JSON is indented does not matter: early versions wrote an indented array
    into a `.jsonl` file. UTF-8 and UTF-16, with and without a byte order mark, are recognised.
    """
    try:
        data = path.read_bytes()
        text = data.decode(json.detect_encoding(data))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    array = text.lstrip().startswith("[")
    position = _next(text, text.index("[") + 1) if array else _next(text, 0)
    line = 1 + text.count("\n", 0, position)
    while position < len(text) and not (array and text[position] == "]"):
        place = f"{path}:{line}"
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: is not valid JSON ({error})") from error
        yield place, value
        start, position = position, _next(text, end)
        if array and text.startswith(",", position):
            position = _next(text, position + 1)
        elif array:
            break
        line += text.count("\n", start, position)
    if array and text[position:].strip() != "]":
        raise UserError(
            f"{path}:{line}: the array does not end after this sample; is the file complete?"
        )


def _next(text: str, position: int) -> int:
    """Return the position of the next character that is no white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _sample(place: str, sample: Any) -> dict[str, Any]:
    for key in ("doc_id", "target", "filtered_resps"):
        if not isinstance(sample, dict) or key not in sample:
            raise UserError(
                f"{place}: is not a sample of lm-evaluation-harness: the key `{key}` is missing"
            )
    return dict(sample)


def _question(place: str, sample: dict[str, Any]) -> LoggedQuestion:
    values = _log_likelihoods(place, sample["filtered_resps"])
    arguments = _arguments(place, sample.get("arguments"))
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
    choices = choices if len(choices) == len(values) else ()
    return LoggedQuestion(
        place=place,
        id=f"{sample['doc_id']}:{str(sample.get('doc_hash', ''))[:12]}".rstrip(":"),
        log_likelihoods=values,
        choices=choices,
        target=target_text(place, sample["target"], choices),
        acc=_acc(place, sample.get("acc")),
    )


def _acc(place: str, logged: Any) -> float | None:
    try:
        acc = float(logged)
    except (TypeError, ValueError):  # not logged, or a metric of the same name with other content
        return None
    if acc not in (0, 1):
        raise UserError(
            f"{place}: the logged acc = {acc:g} is neither 0 nor 1, as in tasks with several right "
            "answers (truthfulqa_mc2); only questions with exactly one can be evaluated"
        )
    return acc


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


def _arguments(place: str, logged: Any) -> list[tuple[str, str]]:
    """Return the context and continuation of each request, for both formats of the log."""
    try:
        if isinstance(logged, dict):
            logged = [[request.get("arg_0"), request.get("arg_1")] for request in logged.values()]
        return [(str(request[0]), str(request[1])) for request in logged or [] if len(request) > 1]
    except (TypeError, AttributeError, KeyError):
        raise UserError(
            f"{place}: `arguments` does not contain one pair of context and continuation per choice"
        ) from None


def _has_unconditional(arguments: Sequence[tuple[str, str]]) -> bool:
    half = len(arguments) // 2
    conditional, unconditional = arguments[:half], arguments[half:]
    return [text for _, text in conditional] == [text for _, text in unconditional] and (
        all(not context for context, _ in unconditional)
        and any(context for context, _ in conditional)
    )
