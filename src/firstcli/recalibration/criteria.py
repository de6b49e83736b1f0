"""How good what is taught is: the criteria that a temperature is fitted by.

What is taught is `mass * target` over the k tokens and `1 - mass` for all others. Shapes: `topk`,
`target` and `is_label` are (N, k), `mass` is (N,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from firstcli.metrics import FLOOR, ece

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

Criterion = Literal["ece", "nll", "brier"]
CRITERIA: tuple[Criterion, ...] = ("ece", "nll", "brier")


def among_topk(is_label: BoolArray) -> BoolArray:
    """Return whether the true token is one of the k, (N,)."""
    among: BoolArray = np.logical_or.reduce(is_label, axis=1)
    return among


def judged_rows(criterion: Criterion, is_label: BoolArray, mass: FloatArray) -> BoolArray:
    """Return which rows a criterion is computed over, (N,).

    Where all the mass goes to the k tokens, `nll` and `brier` leave out the rows whose true token
    is not among them: no temperature could give it anything.
    """
    among = among_topk(is_label)
    return among if criterion != "ece" and (mass == 1).all() else np.ones_like(among)


def true_probability(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return what is taught of the outcome that came true, a token or "none of the k", (N,)."""
    inside = (mass[:, None] * target * is_label).sum(axis=1)
    return np.where(among_topk(is_label), inside, 1 - mass)


def log_losses(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return each row's -log of what is taught of the outcome, (N,)."""
    losses: FloatArray = -np.log(np.maximum(true_probability(target, is_label, mass), FLOOR))
    return losses


def brier_losses(target: FloatArray, is_label: BoolArray, mass: FloatArray) -> FloatArray:
    """Return each row's squared distance of what is taught and the outcome, (N,)."""
    inside: FloatArray = ((mass[:, None] * target - is_label) ** 2).sum(axis=1)
    outside: FloatArray = (1 - mass - ~among_topk(is_label)) ** 2
    return inside + outside


def criterion_value(
    criterion: Criterion, target: FloatArray, is_label: BoolArray, mass: FloatArray, bins: int
) -> float:
    """Judge what is taught."""
    if criterion == "ece":
        return ece(mass * target[:, 0], is_label[:, 0], bins=bins)
    losses = log_losses if criterion == "nll" else brier_losses
    return float(losses(target, is_label, mass).mean())
