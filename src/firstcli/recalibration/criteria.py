"""The criteria that a temperature is fitted by: ECE, NLL and Brier score of the soft targets.

A soft target gives `mass * target` to the k tokens and `1 - mass` to all other tokens together. The
outcome is one of the k tokens or "none of them". Shapes: `target` and `is_label` are (N, k), `mass`
is (N,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from firstcli.api import BoolArray, FitInputs, FloatArray
from firstcli.metrics import FLOOR, ece

Criterion = Literal["ece", "nll", "brier"]
CRITERIA: tuple[Criterion, ...] = ("ece", "nll", "brier")


def in_top_k(is_label: BoolArray) -> BoolArray:
    """Return whether the label is one of the k tokens, (N,)."""
    return np.asarray(is_label.any(axis=1))


def scored_rows(criterion: Criterion, rows: FitInputs) -> BoolArray:
    """Return whether each row counts for a criterion, (N,).

    If the k tokens get all the mass, `nll` and `brier` skip rows whose label is not among them:
    no temperature could give that label any probability.
    """
    inside = in_top_k(rows.is_label)
    return inside if criterion != "ece" and rows.mass_mode == "one" else np.ones_like(inside)


def outcome_probability(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return the soft target's probability of the outcome, (N,)."""
    inside = (mass[:, None] * target * is_label).sum(axis=1)
    return np.where(in_top_k(is_label), inside, 1 - mass)


def log_losses(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return the negative log-likelihood of each row, (N,)."""
    return np.asarray(-np.log(np.maximum(outcome_probability(target, is_label, mass), FLOOR)))


def brier_losses(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return the squared distance between soft target and outcome of each row, (N,)."""
    inside: FloatArray = ((mass[:, None] * target - is_label) ** 2).sum(axis=1)
    outside: FloatArray = (1 - mass - ~in_top_k(is_label)) ** 2
    return inside + outside


Losses = Callable[[FloatArray, BoolArray, FloatArray], FloatArray]
LOSSES: dict[Criterion, Losses] = {"nll": log_losses, "brier": brier_losses}


def criterion_value(
    criterion: Criterion, target: FloatArray, is_label: BoolArray, mass: FloatArray, bins: int
) -> float:
    """Compute a criterion over all rows given.

    Args:
        criterion: which one.
        target: distribution over the k tokens, (N, k).
        is_label: whether each of the k tokens is the label, (N, k).
        mass: total probability of the k tokens, (N,).
        bins: number of bins of the ECE.
    """
    if criterion == "ece":
        return ece(mass * target[:, 0], is_label[:, 0], bins=bins)
    return float(LOSSES[criterion](target, is_label, mass).mean())
