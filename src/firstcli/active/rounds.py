"""What a finished round has cost and brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from firstcli.api import JSON
from firstcli.recipe.active import STOP_EVALUATION
from firstcli.stages.evaluate import EVALUATE, load_records
from firstcli.workspace.units import of_arms

if TYPE_CHECKING:
    from firstcli.workspace.run import Run

SHOWN = (("accuracy", "accuracy"), ("ece", "ECE"), ("trust", "Trust"))
"""Metrics in a round's line, and what they are called."""


def measured(student: Run, arm: str) -> dict[str, dict[str, JSON]]:
    """Return the metrics of a round's student, by evaluation and row.

    Args:
        student: the round's run, whose evaluations are up to date.
        arm: the student's arm.
    """
    from firstcli import metrics

    settings = student.recipe.metrics
    found: dict[str, dict[str, JSON]] = {}
    for unit in of_arms(EVALUATE.units(student.recipe, student.folder), [arm]):
        if student.recipe.is_validation(unit.evaluation):
            continue
        (records,) = load_records([unit], settings.candidates).values()
        summary = asdict(metrics.summarize(records, settings.confidence, settings.bins))
        values = {key: value for key, value in summary.items() if value is not None}
        found.setdefault(unit.evaluation, {})[unit.model.row] = values
    return found


def in_words(facts: Mapping[str, JSON]) -> str:
    """Describe a finished round in one line."""
    from firstcli.runtime.console import percent

    parts = [f"{facts['annotations']} annotations"]
    if tokens := facts["tokens_read"] + facts["tokens_written"]:
        parts.append(f"{tokens:,} tokens")
    if "cost" in facts:
        parts.append(f"cost {facts['cost']:.4g}")
    for name, plural in (("failures", "failed"), ("contradictions", "contradict the label")):
        parts += [f"{facts[name]} {plural}"] if facts.get(name) else []
    for evaluation, rows in facts["evaluations"].items():
        if evaluation == STOP_EVALUATION:
            continue
        for row, values in rows.items():
            shown = [f"{title} {percent(values[key])}" for key, title in SHOWN if key in values]
            parts.append(f"{evaluation} / {row}: {', '.join(shown)}")
    return " · ".join(parts)
