"""When an arm stops before its budget is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firstcli.api import JSON
from firstcli.recipe.active import STOP_EVALUATION, Stop

LOWER_IS_BETTER = ("ece", "nll")


def has_stopped(stop: Stop | None, rounds: Sequence[Mapping[str, JSON]]) -> bool:
    """Return whether the last `patience` rounds brought no new best value of the metric.

    Args:
        stop: the rule, if there is one.
        rounds: the facts of every round so far, the one before the first annotations included.
    """
    if stop is None or len(rounds) <= stop.patience:
        return False
    sign = -1.0 if stop.metric in LOWER_IS_BETTER else 1.0
    values = [sign * _value(facts, stop.metric) for facts in rounds]
    return max(values[-stop.patience :]) <= max(values[: -stop.patience])


def _value(facts: Mapping[str, JSON], metric: str) -> float:
    """Return the metric of the student without a post-hoc recalibrator."""
    measured = facts["evaluations"][STOP_EVALUATION]
    return float(measured[str(facts["arm"])][metric])
