"""What the facts that plugins return must be: diagnostics, and how a teacher writes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from firstcli.api import Curve, Diagnostics, WritingSettings

FACT_TYPES: dict[str, Any] = {  # of the facts that reports know
    "temperature": (int, float),
    "interval": (list, tuple),
    "criterion": str,
    "temperatures": dict,
    "rows": int,
}


def diagnostics_problem(diagnostics: object) -> str | None:
    """Say what is wrong with diagnostics, in words that follow "`diagnostics`"; None if nothing."""
    if not isinstance(diagnostics, Diagnostics):
        return f"does not return Diagnostics, but a {type(diagnostics).__name__}"
    if problem := json_problem(dict(diagnostics.facts)):
        return problem
    for fact in FACT_TYPES.keys() & diagnostics.facts.keys():
        value = diagnostics.facts[fact]
        if not isinstance(value, FACT_TYPES[fact]):
            return f"returns a wrong fact: {fact} cannot be {value!r}"
    for warning in diagnostics.warnings:
        if not (isinstance(warning, str) and warning.strip() and len(warning.splitlines()) == 1):
            return f"returns {warning!r}, which is not a warning of one line"
    for criterion, curve in diagnostics.curves.items():
        if not _is_sound(curve):
            return f"is wrong: the curve '{criterion}' is malformed"
    return None


def writing_problem(writing: object) -> str | None:
    """Say what is wrong with writing settings, in words that follow "`writing`"; None if nothing.

    The bounds are those of a recipe's `knowledge.sampling`.
    """
    if not isinstance(writing, WritingSettings):
        return f"is a {type(writing).__name__}, expected a WritingSettings or None"
    temperature, top_p, tokens = writing.temperature, writing.top_p, writing.max_new_tokens
    if not _is_number(temperature) or temperature < 0:
        return f"has temperature={temperature!r}, expected a number of at least 0"
    if not _is_number(top_p) or not 0 < top_p <= 1:
        return f"has top_p={top_p!r}, expected a number greater than 0 and of at most 1"
    if type(tokens) is not int or tokens < 1:
        return f"has max_new_tokens={tokens!r}, expected a whole number above 0"
    return None


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def json_problem(content: object) -> str | None:
    """Say why content is not JSON, in words that follow a method's name; None if it is."""
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"is not valid JSON: {error}"
    return None


def _is_sound(curve: Curve) -> bool:
    try:
        parameters = [float(parameter) for parameter, _ in curve.points]
        low, high = curve.interval or (curve.best, curve.best)
        return (
            bool(np.isfinite([*curve.points, (low, high)]).all())
            and parameters == sorted(set(parameters))
            and curve.best in parameters
            and low <= curve.best <= high
        )
    except (TypeError, ValueError, AttributeError):
        return False
