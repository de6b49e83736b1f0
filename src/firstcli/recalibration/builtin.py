"""The built-in recalibrators: what the teacher's top k probabilities should have been.

Everywhere `topk` is (N, k) float64, a row a position, from the most to the least likely token,
taken from the softmax over the whole vocabulary, so that a row sums to 1 or less.
The formulas are those of the paper (arXiv 2408.12168), section 4.2 and appendix A.1, and of
Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from firstcli.api import JSON, PluginOptions, Recalibrator
from firstcli.errors import UserError
from firstcli.metrics import FLOOR
from firstcli.recalibration.criteria import Criterion, judged_rows, true_probability
from firstcli.recalibration.temperature_search import (
    Curve,
    Fit,
    Rows,
    ValueAt,
    fits,
    search_hundredths,
    search_log_spaced,
)

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

EPSILON = 1e-6  # the paper's, appendix A.1
FEW_ROWS = 200  # below this a fitted T scatters by a tenth and more


def normalized(weights: FloatArray) -> FloatArray:
    """Divide each row by its sum."""
    sums: FloatArray = weights.sum(axis=1, keepdims=True)  # (N, 1)
    return weights / sums


def softmax(scores: FloatArray, temperature: float) -> FloatArray:
    """Softmax of each row divided by T; a score of -inf gets exactly 0."""
    below_top = scores - scores.max(axis=1, keepdims=True)  # first, so that no tiny T overflows
    return normalized(np.exp(below_top / temperature))


def smooth_labels(topk: FloatArray, delta: float) -> FloatArray:
    """Move `delta` from the first token to the others in equal parts (Eq. 3)."""
    shares = normalized(topk)
    smoothed = shares + delta / (topk.shape[1] - 1)
    smoothed[:, 0] = shares[:, 0] - delta
    return normalized(np.maximum(smoothed, EPSILON))


def scale_probabilities(topk: FloatArray, temperature: float) -> FloatArray:
    """Softmax over the probabilities themselves (Eq. 4)."""
    return softmax(topk, temperature)


def scale_logits(topk: FloatArray, temperature: float) -> FloatArray:
    """Return p^(1/T), normalised; logits and log-probabilities differ by a constant per row.

    A probability of 0 stays 0 at every temperature, as the formula has it.
    """
    with np.errstate(divide="ignore"):
        return softmax(np.log(topk), temperature)


class NoRecalibration(Recalibrator[PluginOptions]):
    """`none`: the teacher's probabilities, made to sum to 1 over the k tokens."""

    def transform(self, topk: FloatArray) -> FloatArray:
        return normalized(topk + EPSILON)


class LabelSmoothingOptions(PluginOptions):
    """Options of `label-smoothing`."""

    delta: float = Field(
        default=0.1, ge=0, lt=1, description="Probability taken from the most likely token."
    )


class LabelSmoothing(Recalibrator[LabelSmoothingOptions]):
    """`label-smoothing`: a constant share moves from the first token to the others."""

    Options = LabelSmoothingOptions
    order_preserving = False  # the first token can fall below the second; the paper says so too

    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] == 1:
            raise UserError(
                "recalibrator 'label-smoothing' needs at least two tokens to share between, but "
                "top_k is 1; raise it or choose another recalibrator"
            )
        return smooth_labels(topk, self.options.delta)


class TemperatureOptions(PluginOptions):
    """Options of a recalibrator with one temperature."""

    temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="A fixed T; leave out to fit it."
    )
    criterion: Criterion = Field(
        default="ece", description="What the fitted T makes smallest on the validation part."
    )
    bins: int = Field(default=10, ge=1, description="Number of bins of the criterion `ece`.")


class TemperatureScalingOptions(TemperatureOptions):
    """Options of `temperature-scaling`."""

    temperature: float | None = Field(
        default=None, gt=0, le=1, description="A fixed T in (0, 1]; leave out to fit it."
    )


class SingleTemperature(Recalibrator[TemperatureOptions]):
    """A recalibrator whose one parameter T is given, or searched on the validation part."""

    Options = TemperatureOptions
    name: ClassVar[str]

    def __init__(self, options: TemperatureOptions) -> None:
        super().__init__(options)
        self._state: dict[str, JSON] = {}
        if options.temperature is not None:
            self._state = {"temperature": options.temperature}

    @property
    def needs_fit(self) -> bool:
        return self.options.temperature is None

    @abstractmethod
    def scaled(self, topk: FloatArray, temperature: float) -> FloatArray:
        """Apply one temperature."""

    @abstractmethod
    def search(self, value_at: ValueAt, unimodal: bool) -> Curve:
        """Evaluate a criterion where its minimum may be."""

    def fit(self, topk: FloatArray, is_label: BoolArray, mass: FloatArray) -> None:
        if not self.needs_fit:
            return
        # Probabilities kept in float32 can sum to 1 + 1e-7.
        rows = Rows(topk, is_label, np.minimum(mass, 1.0))
        found = fits(self.scaled, self.search, rows, self.options.bins)
        if self.options.criterion not in found:
            raise UserError(_nothing_to_fit(self.name, self.options.criterion, len(topk)))
        self._state = self._told(found, rows)

    def _told(self, found: Mapping[Criterion, Fit], rows: Rows) -> dict[str, JSON]:
        criterion = self.options.criterion
        chosen = found[criterion]
        used = rows.where(judged_rows(criterion, rows.is_label, rows.mass))
        taught = true_probability(
            self.scaled(used.topk, chosen.temperature), used.is_label, used.mass
        )
        return {
            **chosen.state(),
            "criterion": criterion,
            "rows": chosen.rows,
            "rows_left_out": len(rows.topk) - chosen.rows,
            "floored": int((taught < FLOOR).sum()) if criterion == "nll" else 0,
            "resamples": chosen.resamples,
            "at_grid_end": chosen.at_grid_end,
            "flat": chosen.flat,
            "few_rows": chosen.rows < FEW_ROWS,
            "criteria": {name: fit.state() for name, fit in found.items()},
        }

    def transform(self, topk: FloatArray) -> FloatArray:
        if not self._state:
            raise RuntimeError(f"'{self.name}' has no temperature yet: call fit or restore first")
        return self.scaled(topk, self._state["temperature"])

    def state(self) -> dict[str, JSON]:
        return dict(self._state)

    def restore(self, state: Mapping[str, JSON]) -> None:
        if self.needs_fit:
            self._state = dict(state)


class TemperatureScaling(SingleTemperature):
    """`temperature-scaling`: the paper's softmax over probabilities."""

    Options = TemperatureScalingOptions
    name = "temperature-scaling"

    def scaled(self, topk: FloatArray, temperature: float) -> FloatArray:
        return scale_probabilities(topk, temperature)

    def search(self, value_at: ValueAt, unimodal: bool) -> Curve:
        return search_hundredths(value_at)


class LogitTemperature(SingleTemperature):
    """`logit-temperature`: classic temperature scaling, from the k probabilities alone."""

    name = "logit-temperature"

    def scaled(self, topk: FloatArray, temperature: float) -> FloatArray:
        return scale_logits(topk, temperature)

    def search(self, value_at: ValueAt, unimodal: bool) -> Curve:
        return search_log_spaced(value_at, unimodal)


def _nothing_to_fit(name: str, criterion: Criterion, rows: int) -> str:
    found = (
        f"none of the {rows} true tokens of the validation part is among the teacher's top k, "
        f"which criterion '{criterion}' needs with mass 'one'"
        if rows
        else "the validation part has no rows"
    )
    return (
        f"recalibrator '{name}' cannot be fitted: {found}; raise train.validation, or set its "
        "option 'temperature'"
    )
