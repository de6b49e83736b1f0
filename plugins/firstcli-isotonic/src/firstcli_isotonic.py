"""Recalibrator `isotonic`: isotonic regression of the teacher's top-1 probability."""

from __future__ import annotations

from collections.abc import Mapping

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

MIN_ROWS = 1000  # isotonic regression has as many parameters as the data require
EPSILON = 1e-6  # a block of rows that are all wrong or all right must not give exactly 0 or 1


class Isotonic(Recalibrator[PluginOptions]):
    """Give the top-1 token the accuracy that the teacher has at this confidence."""

    order_preserving = False

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}

    @property
    def needs_fit(self) -> bool:
        return True

    def check(self, k: int, rows: int) -> None:
        _check_width(k)
        _check_rows(rows)

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        from sklearn.isotonic import IsotonicRegression

        self.check(topk.shape[1], len(topk))
        regression = IsotonicRegression(y_min=0, y_max=1)
        regression.fit(topk[:, 0], is_label[:, 0].astype(np.float64))
        self._state = {
            "top1": regression.X_thresholds_.tolist(),
            "right": regression.y_thresholds_.tolist(),
            "mass": mass_mode,
            "rows": len(topk),
        }

    def transform(self, topk: FloatArray) -> FloatArray:
        if not self._state:
            raise RuntimeError("'isotonic' has no curve yet: call fit or restore first")
        _check_width(topk.shape[1])
        right = np.interp(topk[:, 0], self._state["top1"], self._state["right"])  # (N,)
        # The soft target is mass * target; this product must equal `right`.
        mass = topk.sum(axis=1) if self._state["mass"] == "teacher" else 1.0
        first = np.clip(right / mass, EPSILON, 1 - EPSILON)[:, None]  # (N, 1)
        return np.hstack([first, (1 - first) * _shares(topk[:, 1:])])

    def state(self) -> dict[str, JSON]:
        return dict(self._state)

    def restore(self, state: Mapping[str, JSON]) -> None:
        self._state = dict(state)

    def summary(self) -> str:
        right = self._state["right"]
        return f"{len(right)} points from {right[0]:.2f} to {right[-1]:.2f}"

    def diagnostics(self) -> Diagnostics:
        rows, points = self._state["rows"], len(self._state["top1"])
        warning = (
            f"fitted {points} points on {rows} rows, which may overfit; raise train.validation to "
            f"get at least {MIN_ROWS} rows, or use a recalibrator with one temperature"
        )
        facts = {"rows": rows, "curve_points": points}
        return Diagnostics(facts, (warning,) if rows < MIN_ROWS else ())


def _shares(rest: FloatArray) -> FloatArray:
    """Normalise the rows of (N, k - 1); a row of zeros becomes uniform."""
    rest = np.where(rest.any(axis=1, keepdims=True), rest, 1.0)
    shares: FloatArray = rest / rest.sum(axis=1, keepdims=True)
    return shares


def _check_rows(rows: int) -> None:
    if not rows:
        raise UserError(
            "recalibrator 'isotonic' cannot be fitted: the validation part has no rows; "
            "raise train.validation"
        )


def _check_width(k: int) -> None:
    if k == 1:
        raise UserError(
            "recalibrator 'isotonic' needs at least two tokens, but knowledge.top_k is 1; raise it "
            "or choose a different recalibrator"
        )
