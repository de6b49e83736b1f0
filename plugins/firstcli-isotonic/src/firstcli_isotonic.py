"""A recalibrator for firstcli: isotonic regression of the teacher's top-1 probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from firstcli.api import JSON, PluginOptions, Recalibrator
from firstcli.errors import UserError

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

EPSILON = 1e-6  # a block of rows without one hit must not teach a probability of 0, nor of 1


class Isotonic(Recalibrator[PluginOptions]):
    """Teach the top-1 token the share of cases in which a teacher this sure is right."""

    order_preserving = False

    def __init__(self, options: PluginOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}

    @property
    def needs_fit(self) -> bool:
        return True

    def fit(self, topk: FloatArray, is_label: BoolArray, mass: FloatArray) -> None:
        from sklearn.isotonic import IsotonicRegression

        _check_width(topk)
        if not len(topk):
            raise UserError(
                "recalibrator 'isotonic' cannot be fitted: the validation part has no rows; "
                "raise train.validation"
            )
        regression = IsotonicRegression(y_min=0, y_max=1)
        regression.fit(topk[:, 0], is_label[:, 0].astype(np.float64))
        self._state = {
            "top1": regression.X_thresholds_.tolist(),
            "right": regression.y_thresholds_.tolist(),
            "mass": "one" if (mass == 1).all() else "teacher",
            "rows": len(topk),
        }

    def transform(self, topk: FloatArray) -> FloatArray:
        if not self._state:
            raise RuntimeError("'isotonic' has no curve yet: call fit or restore first")
        _check_width(topk)
        right = np.interp(topk[:, 0], self._state["top1"], self._state["right"])  # (N,)
        # What is taught is mass * target, and it is this product that shall be `right`.
        mass = topk.sum(axis=1) if self._state["mass"] == "teacher" else 1.0
        first = np.clip(right / mass, EPSILON, 1 - EPSILON)[:, None]  # (N, 1)
        return np.hstack([first, (1 - first) * _shares(topk[:, 1:])])

    def state(self) -> dict[str, JSON]:
        return dict(self._state)

    def restore(self, state: Mapping[str, JSON]) -> None:
        self._state = dict(state)


def _shares(rest: FloatArray) -> FloatArray:
    """Make the rows of (N, k - 1) sum to 1; a row of zeros is spread evenly."""
    rest = np.where(rest.any(axis=1, keepdims=True), rest, 1.0)
    shares: FloatArray = rest / rest.sum(axis=1, keepdims=True)
    return shares


def _check_width(topk: FloatArray) -> None:
    if topk.shape[1] == 1:
        raise UserError(
            "recalibrator 'isotonic' needs at least two tokens to share between, but "
            "knowledge.top_k is 1; raise it or choose another recalibrator"
        )
