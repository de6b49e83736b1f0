"""A recalibrator for firstcli: each row gets a temperature of its own, from what its top k shows.

    target(i) ~ p(i)^(1/T(x)),    log T(x) = w0 + w1 f1(x) + w2 f2(x) + w3 f3(x)

Shapes: `topk` is (N, k), features are (N, F), weights are (1 + F,) with w0 first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from firstcli.api import JSON, PluginOptions, Recalibrator
from firstcli.errors import UserError

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

FLOOR = 1e-12  # smallest probability that a logarithm is taken of, as in firstcli's own NLL
SMALLEST_TAIL = 1e-4  # what is below it may come from the rounding of stored knowledge
LARGEST = math.log(10)  # of |log T|: the range of `logit-temperature`

FOLDS = 5
FEWEST_ROWS = 100  # with fewer there is one temperature for all
STRENGTHS = (math.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Of the penalty on w1 ... wF, strongest first; infinite: one temperature."""


class Data(NamedTuple):
    """What weights are fitted on: rows whose true token is among the k."""

    features: FloatArray  # (N, F), standardised
    log_odds: FloatArray  # (N, k), log p(i) / p(1), 0 where p(i) is
    present: BoolArray  # (N, k), whether p(i) > 0
    true: FloatArray  # (N,), the true token's log-odds

    def where(self, chosen: BoolArray) -> Data:
        """Keep some rows."""
        return Data(
            self.features[chosen], self.log_odds[chosen], self.present[chosen], self.true[chosen]
        )


class Adaptive(Recalibrator[PluginOptions]):
    """`adaptive`: how far a row's probabilities are flattened depends on how sure the row is."""

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(self, topk: FloatArray, is_label: BoolArray, mass: FloatArray) -> None:
        # What is taught outside the k does not depend on T, so these rows say nothing about it;
        # nor do those whose true token has a probability of 0, which every T leaves there.
        used = (is_label & (topk > 0)).any(axis=1)
        if not used.any():
            raise UserError(
                f"recalibrator 'adaptive' cannot be fitted: none of the {len(topk)} true tokens of "
                "the validation part is among the teacher's top k; raise train.validation"
            )
        raw = features(topk[used])
        scale = standardisation(raw)
        data = _data(topk[used], is_label[used], standardised(raw, scale))
        judged = cross_validated(data)
        strength = chosen_strength(judged)
        self._state = {
            "weights": fitted(data, strength).tolist(),
            **scale,
            "strength": None if math.isinf(strength) else strength,
            "temperature_of_all": math.exp(fitted(data, math.inf)[0]),
            "cross_validated": [
                [None if math.isinf(one) else one, float(losses.mean())]
                for one, losses in judged.items()
            ],
            "rows": len(data.true),
            "rows_left_out": len(topk) - len(data.true),
        }

    def temperatures(self, topk: FloatArray) -> FloatArray:
        """Return T of every row, (N,)."""
        if not self._state:
            raise RuntimeError("'adaptive' has no weights yet: call fit or restore first")
        weights = np.array(self._state["weights"])
        return np.exp(log_temperatures(weights, standardised(features(topk), self._state)))

    def transform(self, topk: FloatArray) -> FloatArray:
        log_odds, present = _log_odds(topk)
        return _target(log_odds / self.temperatures(topk)[:, None], present)

    def state(self) -> dict[str, JSON]:
        return dict(self._state)

    def restore(self, state: Mapping[str, JSON]) -> None:
        self._state = dict(state)


# What a row shows.


def features(topk: FloatArray) -> FloatArray:
    """Return entropy, margin and tail of every row, (N, 3), in nats."""
    log_odds, present = _log_odds(topk)
    shares = topk / topk.sum(axis=1, keepdims=True)
    log_shares = np.log(np.where(present, shares, 1.0))
    entropy = -(shares * log_shares).sum(axis=1)
    margin = -np.maximum(np.where(present, log_odds, -np.inf), math.log(FLOOR))[:, 1:2].sum(axis=1)
    tail = np.log(np.maximum(1 - topk.sum(axis=1), SMALLEST_TAIL))
    return np.stack([entropy, margin, tail], axis=1)


def standardisation(raw: FloatArray) -> dict[str, JSON]:
    """Return what `standardised` needs of the rows that are fitted on."""
    deviation = raw.std(axis=0)
    return {
        "centre": raw.mean(axis=0).tolist(),
        "scale": np.where(deviation > 1e-9, deviation, 1.0).tolist(),
        "low": raw.min(axis=0).tolist(),
        "high": raw.max(axis=0).tolist(),
    }


def standardised(raw: FloatArray, scale: Mapping[str, JSON]) -> FloatArray:
    """Give features mean 0 and variance 1, (N, F).

    Beyond what was seen in fitting they stay at its border: a teacher is surer of the rows that it
    was trained on than of any that T was fitted on.
    """
    clipped = np.clip(raw, scale["low"], scale["high"])
    standard: FloatArray = (clipped - np.array(scale["centre"])) / np.array(scale["scale"])
    return standard


def _log_odds(topk: FloatArray) -> tuple[FloatArray, BoolArray]:
    present = topk > 0
    ratios = np.where(present, topk, topk[:, :1]) / topk[:, :1]
    return np.log(ratios), present


def _target(scaled: FloatArray, present: BoolArray) -> FloatArray:
    weights = np.where(present, np.exp(scaled), 0.0)
    target: FloatArray = weights / weights.sum(axis=1, keepdims=True)
    return target


def _data(topk: FloatArray, is_label: BoolArray, standard: FloatArray) -> Data:
    log_odds, present = _log_odds(topk)
    return Data(standard, log_odds, present, (log_odds * is_label).sum(axis=1))


# Fitting.


def log_temperatures(weights: FloatArray, standard: FloatArray) -> FloatArray:
    """Return log T of every row, (N,)."""
    logs: FloatArray = np.clip(weights[0] + standard @ weights[1:], -LARGEST, LARGEST)
    return logs


def losses_of(weights: FloatArray, data: Data) -> FloatArray:
    """Return -log of what the true token is given among the k, (N,)."""
    return _losses_and_slopes(weights, data)[0]


def _losses_and_slopes(weights: FloatArray, data: Data) -> tuple[FloatArray, FloatArray]:
    """Return losses and their derivatives by log T, both (N,)."""
    free = weights[0] + data.features @ weights[1:]
    coldness = np.exp(-np.clip(free, -LARGEST, LARGEST))  # (N,), 1 / T
    target = _target(data.log_odds * coldness[:, None], data.present)
    weighed = np.where(data.present, np.exp(data.log_odds * coldness[:, None]), 0.0)
    losses = np.log(weighed.sum(axis=1)) - coldness * data.true
    slopes = coldness * (data.true - (target * data.log_odds).sum(axis=1))
    moving = (np.abs(free) < LARGEST) & (losses < -math.log(FLOOR))
    return np.minimum(losses, -math.log(FLOOR)), slopes * moving


def objective(weights: FloatArray, data: Data, strength: float) -> tuple[float, FloatArray]:
    """Return the mean loss with its penalty, and its gradient."""
    losses, slopes = _losses_and_slopes(weights, data)
    gradient = np.concatenate([[slopes.mean()], slopes @ data.features / len(slopes)])
    gradient[1:] += strength * weights[1:]
    return float(losses.mean() + strength * (weights[1:] ** 2).sum() / 2), gradient


def fitted(data: Data, strength: float) -> FloatArray:
    """Return the weights that make the objective smallest, (1 + F,)."""
    from scipy.optimize import minimize

    weights = np.zeros(1 + data.features.shape[1])
    if math.isinf(strength):
        data = data._replace(features=data.features[:, :0])
        strength = 0.0
    count = 1 + data.features.shape[1]
    found = minimize(
        objective,
        weights[:count],
        (data, strength),
        method="L-BFGS-B",
        jac=True,
        bounds=[(-LARGEST, LARGEST)] + [(None, None)] * (count - 1),
        options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 500},
    )
    weights[:count] = found.x
    return weights


def cross_validated(data: Data) -> dict[float, FloatArray]:
    """Return what each strength loses on rows that it was not fitted on, strength -> (N,)."""
    if len(data.true) < FEWEST_ROWS:
        return {math.inf: losses_of(fitted(data, math.inf), data)}
    fold = np.random.default_rng(0).permutation(len(data.true)) % FOLDS
    judged = {strength: np.empty(len(fold)) for strength in STRENGTHS}
    for number in range(FOLDS):
        kept, held_out = data.where(fold != number), data.where(fold == number)
        for strength, losses in judged.items():
            losses[fold == number] = losses_of(fitted(kept, strength), held_out)
    return judged


def chosen_strength(judged: Mapping[float, FloatArray]) -> float:
    """Return the strongest penalty that is no worse than the best by more than a standard error.

    The standard error is that of the mean difference between the two, over the same rows.
    """
    best = judged[min(judged, key=lambda strength: float(judged[strength].mean()))]
    for strength, losses in judged.items():
        behind = losses - best
        if behind.mean() <= behind.std() / math.sqrt(len(behind)):
            return strength
    raise AssertionError("the best is no worse than itself")
