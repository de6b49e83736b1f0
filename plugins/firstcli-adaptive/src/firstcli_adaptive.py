"""Recalibrator `adaptive`: one temperature per row, predicted from features of its top k.

    target(i) ~ p(i)^(1/T(x)),    log T(x) = w0 + w1 f1(x) + w2 f2(x) + w3 f3(x)

Shapes: `topk` is (N, k), features are (N, F), weights are (1 + F,) with w0 first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from firstcli.api import (
    JSON,
    BoolArray,
    Diagnostics,
    FloatArray,
    MassMode,
    PluginOptions,
    Recalibrator,
    UserError,
)

FLOOR = 1e-12  # smallest probability inside a logarithm, as in firstcli's own NLL
SMALLEST_TAIL = 1e-4  # a smaller tail may be a rounding error of stored knowledge
MAX_LOG_T = math.log(10)  # limit of |log T|: the range of `logit-temperature`

FEATURES = ("entropy", "margin", "log tail")
FOLDS = 5
MIN_ROWS = 100  # fewer rows share one temperature
STRENGTHS = (math.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Strengths of the penalty on w1 ... wF, strongest first; infinite means one temperature."""


class FitData(NamedTuple):
    """The rows that weights are fitted on; the label of each is in the top k."""

    features: FloatArray  # (N, F), standardised
    log_odds: FloatArray  # (N, k), log p(i) / p(1); 0 where p(i) is 0
    present: BoolArray  # (N, k), whether p(i) > 0
    label: FloatArray  # (N,), log-odds of the label

    def where(self, chosen: BoolArray) -> FitData:
        """Return the chosen rows."""
        return FitData(
            self.features[chosen], self.log_odds[chosen], self.present[chosen], self.label[chosen]
        )


class Adaptive(Recalibrator[PluginOptions]):
    """`adaptive`: the temperature of a row depends on how confident the row is."""

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        # T changes neither the mass outside the top k nor a probability of 0, so rows with such
        # labels do not determine it, in either mass mode.
        used = (is_label & (topk > 0)).any(axis=1)
        if not used.any():
            raise UserError(
                f"recalibrator 'adaptive' cannot be fitted: none of the {len(topk)} labels of the "
                "validation part is in the teacher's top k; raise train.validation"
            )
        raw = features(topk[used])
        scale = standardisation(raw)
        data = _data(topk[used], is_label[used], standardised(raw, scale))
        held_out = cross_validated(data)
        strength = chosen_strength(held_out)
        self._state = {
            "weights": fitted(data, strength).tolist(),
            **scale,
            "strength": None if math.isinf(strength) else strength,
            "temperature_of_all": math.exp(fitted(data, math.inf)[0]),
            "cross_validated": [
                [None if math.isinf(penalty) else penalty, float(losses.mean())]
                for penalty, losses in held_out.items()
            ],
            "rows": len(data.label),
            "rows_left_out": len(topk) - len(data.label),
        }

    def temperatures(self, topk: FloatArray) -> FloatArray:
        """Return the temperature of each row, (N,)."""
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

    def summary(self) -> str:
        if self._state["strength"] is None:
            return f"T = {self._state['temperature_of_all']:.3g} for all rows"
        weights = zip(FEATURES, self._state["weights"][1:], strict=True)
        return "log T by " + ", ".join(f"{name} {weight:+.2g}" for name, weight in weights)

    def diagnostics(self) -> Diagnostics:
        facts = {name: self._state[name] for name in ("rows", "strength", "temperature_of_all")}
        warning = (
            f"{facts['rows']} rows are too few to predict a temperature per row, so all share one; "
            f"raise train.validation to get at least {MIN_ROWS} rows"
        )
        return Diagnostics(facts, (warning,) if facts["rows"] < MIN_ROWS else ())


# Features of a row.


def features(topk: FloatArray) -> FloatArray:
    """Return entropy, margin and log tail of each row, (N, 3), in nats."""
    log_odds, present = _log_odds(topk)
    shares = topk / topk.sum(axis=1, keepdims=True)
    log_shares = np.log(np.where(present, shares, 1.0))
    entropy = -(shares * log_shares).sum(axis=1)
    margin = -np.maximum(np.where(present, log_odds, -np.inf), math.log(FLOOR))[:, 1:2].sum(axis=1)
    tail = np.log(np.maximum(1 - topk.sum(axis=1), SMALLEST_TAIL))
    return np.stack([entropy, margin, tail], axis=1)


def standardisation(raw: FloatArray) -> dict[str, JSON]:
    """Return the parameters of `standardised`, from the rows of the fit."""
    deviation = raw.std(axis=0)
    return {
        "centre": raw.mean(axis=0).tolist(),
        "scale": np.where(deviation > 1e-9, deviation, 1.0).tolist(),
        "low": raw.min(axis=0).tolist(),
        "high": raw.max(axis=0).tolist(),
    }


def standardised(raw: FloatArray, scale: Mapping[str, JSON]) -> FloatArray:
    """Scale features to mean 0 and variance 1, (N, F), clipped to the range of the fit.

    A teacher is more confident on rows that it was trained on than on any row of the fit.
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


def _data(topk: FloatArray, is_label: BoolArray, standard: FloatArray) -> FitData:
    log_odds, present = _log_odds(topk)
    return FitData(standard, log_odds, present, (log_odds * is_label).sum(axis=1))


# Fitting.


def log_temperatures(weights: FloatArray, standard: FloatArray) -> FloatArray:
    """Return log T of each row, (N,)."""
    logs: FloatArray = np.clip(weights[0] + standard @ weights[1:], -MAX_LOG_T, MAX_LOG_T)
    return logs


def losses_of(weights: FloatArray, data: FitData) -> FloatArray:
    """Return the negative log-likelihood of each label among the k tokens, (N,)."""
    return _losses_and_slopes(weights, data)[0]


def _losses_and_slopes(weights: FloatArray, data: FitData) -> tuple[FloatArray, FloatArray]:
    """Return losses and their derivatives with respect to log T, both (N,)."""
    unclipped = weights[0] + data.features @ weights[1:]
    coldness = np.exp(-np.clip(unclipped, -MAX_LOG_T, MAX_LOG_T))  # (N,), 1 / T
    target = _target(data.log_odds * coldness[:, None], data.present)
    powers = np.where(data.present, np.exp(data.log_odds * coldness[:, None]), 0.0)
    losses = np.log(powers.sum(axis=1)) - coldness * data.label
    slopes = coldness * (data.label - (target * data.log_odds).sum(axis=1))
    moving = (np.abs(unclipped) < MAX_LOG_T) & (losses < -math.log(FLOOR))
    return np.minimum(losses, -math.log(FLOOR)), slopes * moving


def objective(weights: FloatArray, data: FitData, strength: float) -> tuple[float, FloatArray]:
    """Return the penalised mean loss and its gradient."""
    losses, slopes = _losses_and_slopes(weights, data)
    gradient = np.concatenate([[slopes.mean()], slopes @ data.features / len(slopes)])
    gradient[1:] += strength * weights[1:]
    return float(losses.mean() + strength * (weights[1:] ** 2).sum() / 2), gradient


def fitted(data: FitData, strength: float) -> FloatArray:
    """Return the weights that minimise the objective, (1 + F,)."""
    from scipy.optimize import minimize

    weights = np.zeros(1 + data.features.shape[1])
    if math.isinf(strength):
        data = data._replace(features=data.features[:, :0])
        strength = 0.0
    count = 1 + data.features.shape[1]
    result = minimize(
        objective,
        weights[:count],
        (data, strength),
        method="L-BFGS-B",
        jac=True,
        bounds=[(-MAX_LOG_T, MAX_LOG_T)] + [(None, None)] * (count - 1),
        options={"ftol": 1e-14, "gtol": 1e-10, "maxiter": 500},
    )
    weights[:count] = result.x
    return weights


def cross_validated(data: FitData) -> dict[float, FloatArray]:
    """Return the held-out losses of each strength, (N,) per strength."""
    if len(data.label) < MIN_ROWS:
        return {math.inf: losses_of(fitted(data, math.inf), data)}
    fold = np.random.default_rng(0).permutation(len(data.label)) % FOLDS
    held_out_losses = {strength: np.empty(len(fold)) for strength in STRENGTHS}
    for number in range(FOLDS):
        kept, held_out = data.where(fold != number), data.where(fold == number)
        for strength, losses in held_out_losses.items():
            losses[fold == number] = losses_of(fitted(kept, strength), held_out)
    return held_out_losses


def chosen_strength(held_out: Mapping[float, FloatArray]) -> float:
    """Return the strongest penalty within one standard error of the best.

    The standard error is that of the mean paired difference over the rows.
    """
    best = held_out[min(held_out, key=lambda strength: float(held_out[strength].mean()))]
    for strength, losses in held_out.items():
        excess = losses - best
        if excess.mean() <= excess.std() / math.sqrt(len(excess)):
            return strength
    raise AssertionError("the best strength is within one standard error of itself")
