"""A recalibrator that needs more than probabilities: vector scaling (Guo et al. 2017).

    score(token) = w log p(token) + b(candidate of the token),    score(tail) = w log(1 - mass)

The softmax runs over the k tokens and, with mass `teacher`, over the tail. The bias of the tail and
of tokens that stand for no candidate is 0. The weights minimise the mean negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from firstcli.api import (
    JSON,
    BoolArray,
    FloatArray,
    PluginOptions,
    Recalibrator,
    TopKRows,
    UserError,
)

TINY = 1e-30
PENALTY = 1e-3


class VectorScaling(Recalibrator[PluginOptions]):
    order_preserving = False

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}

    @property
    def needs_fit(self) -> bool:
        return True

    def check(self, k: int, rows: int) -> None:
        if rows < 8:
            raise UserError(f"recalibrator 'vector-scaling' needs 8 rows, but there are {rows}")

    def fit_rows(self, rows: TopKRows, is_label: BoolArray) -> None:
        from scipy.optimize import minimize

        outcome = np.hstack([is_label, ~is_label.any(axis=1, keepdims=True)])  # (N, k + 1)
        if rows.mass_mode == "one":
            rows, outcome = rows.rows(is_label.any(axis=1)), is_label[is_label.any(axis=1)]
        if not len(rows):
            raise UserError("recalibrator 'vector-scaling' has no row to be fitted on")

        def loss(weights: FloatArray) -> tuple[float, FloatArray]:
            target = _target(weights, rows)
            likelihood = np.maximum((target * outcome).sum(axis=1), TINY)
            slopes = (target - outcome) / len(outcome)  # with respect to the scores
            by_bias = [(slopes[:, :k] * (rows.candidate == c)).sum() for c in range(candidates)]
            gradient = np.array([(slopes * _logs(rows)).sum(), *by_bias])
            gradient[1:] += 2 * PENALTY * weights[1:]
            penalty = PENALTY * float((weights[1:] ** 2).sum())
            return penalty - float(np.log(likelihood).mean()), gradient

        k, candidates = rows.topk.shape[1], int(rows.candidate.max(initial=-1)) + 1
        start = np.append(1.0, np.zeros(candidates))
        result = minimize(loss, start, method="L-BFGS-B", jac=True, options={"gtol": 1e-9})
        self._state = {"weight": float(result.x[0]), "biases": result.x[1:].tolist()}

    def transform_rows(self, rows: TopKRows) -> FloatArray:
        if not self._state:
            raise RuntimeError("fit comes first")
        return _target(np.array([self._state["weight"], *self._state["biases"]]), rows)

    def state(self) -> dict[str, JSON]:
        return dict(self._state)

    def restore(self, state: Mapping[str, JSON]) -> None:
        self._state = dict(state)

    def summary(self) -> str:
        biases = ", ".join(f"{bias:+.2f}" for bias in self._state["biases"])
        return f"w {self._state['weight']:.2f}, biases {biases}"


def _logs(rows: TopKRows) -> FloatArray:
    """Return log-probabilities of the tokens and, with mass `teacher`, of the tail."""
    tail = np.maximum(1 - rows.mass, 0.0)[:, None]
    outcomes = np.hstack([rows.topk, tail]) if rows.mass_mode == "teacher" else rows.topk
    return np.log(np.maximum(outcomes, TINY))


def _target(weights: FloatArray, rows: TopKRows) -> FloatArray:
    logs, biases = _logs(rows), np.append(weights[1:], 0.0)  # -1 is the last: no bias
    shift = np.zeros_like(logs)
    shift[:, : rows.topk.shape[1]] = biases[np.minimum(rows.candidate, len(biases) - 1)]
    scores = weights[0] * logs + shift
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    target: FloatArray = odds / odds.sum(axis=1, keepdims=True)
    return target
