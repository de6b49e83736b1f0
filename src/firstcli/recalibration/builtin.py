"""The built-in recalibrators; `topk` is (N, k), as `firstcli.api.Recalibrator` describes it.

The formulas are those of the paper (arXiv 2408.12168), section 4.2 and appendix A.1, and of
Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

import numpy as np
from pydantic import Field

from firstcli.api import (
    JSON,
    BoolArray,
    Curve,
    Diagnostics,
    FitInputs,
    FloatArray,
    MassMode,
    PluginOptions,
    Recalibrator,
    UserError,
)
from firstcli.recalibration.criteria import Criterion
from firstcli.recalibration.temperature_search import (
    CriterionValues,
    ValueAt,
    fit_temperatures,
    search_hundredths,
    search_log_spaced,
)

EPSILON = 1e-6  # the paper's, appendix A.1
PER_CRITERION = ("temperature", "interval", "spread", "curve")  # kept in the state of a fit
MIN_STABLE_ROWS = 200  # with fewer rows, the spread of a fitted T is a tenth or more


def normalized(weights: FloatArray) -> FloatArray:
    """Divide each row by its sum."""
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def softmax(scores: FloatArray, temperature: float) -> FloatArray:
    """Return the softmax of each row divided by T; a score of -inf gets exactly 0."""
    below_top = scores - scores.max(axis=1, keepdims=True)  # before dividing: a tiny T overflows
    return normalized(np.exp(below_top / temperature))


def scale_logits(topk: FloatArray, temperature: float) -> FloatArray:
    """Return the normalised p^(1/T) (Guo et al. 2017); a probability of 0 stays 0.

    Logits and log-probabilities differ by a constant per row, which the softmax cancels.
    """
    with np.errstate(divide="ignore"):
        return softmax(np.log(topk), temperature)


class NoRecalibration(Recalibrator[PluginOptions]):
    """`none`: the teacher's probabilities, normalised over the k tokens."""

    def transform(self, topk: FloatArray) -> FloatArray:
        return normalized(topk + EPSILON)


class LabelSmoothingOptions(PluginOptions):
    """Options of `label-smoothing`."""

    delta: float = Field(
        default=0.1, ge=0, lt=1, description="Probability taken from the most likely token."
    )


class LabelSmoothing(Recalibrator[LabelSmoothingOptions]):
    """`label-smoothing`: move `delta` from the first token to the others in equal parts (Eq. 3)."""

    Options = LabelSmoothingOptions
    order_preserving = False  # the first token can fall below the second, as the paper notes

    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] == 1:
            raise UserError(
                "recalibrator 'label-smoothing' needs at least two tokens, but top_k is 1; raise "
                "it or choose a different recalibrator"
            )
        shares, delta = normalized(topk), self.options.delta
        smoothed = shares + delta / (topk.shape[1] - 1)
        smoothed[:, 0] = shares[:, 0] - delta
        return normalized(np.maximum(smoothed, EPSILON))


class TemperatureOptions(PluginOptions):
    """Options of a recalibrator with one temperature."""

    temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="A fixed T; omit it to fit T."
    )
    criterion: Criterion = Field(
        default="ece", description="Criterion that the fitted T minimises on the validation part."
    )
    bins: int = Field(default=10, ge=1, description="Number of bins of the criterion `ece`.")


class TemperatureScalingOptions(TemperatureOptions):
    """Options of `temperature-scaling`."""

    temperature: float | None = Field(
        default=None, gt=0, le=1, description="A fixed T in (0, 1]; omit it to fit T."
    )


class SingleTemperature(Recalibrator[TemperatureOptions]):
    """A recalibrator with one parameter T, either fixed or fitted on the validation part."""

    Options = TemperatureOptions
    name: ClassVar[str]
    scaled: ClassVar[staticmethod[[FloatArray, float], FloatArray]]  # applies a temperature
    search: ClassVar[staticmethod[[ValueAt, bool], CriterionValues]]  # evaluates a criterion

    def __init__(self, options: TemperatureOptions) -> None:
        super().__init__(options)
        fixed = options.temperature
        self._state: dict[str, JSON] = {} if fixed is None else {"temperature": fixed}

    @property
    def needs_fit(self) -> bool:
        return self.options.temperature is None

    def fit(
        self, topk: FloatArray, is_label: BoolArray, mass: FloatArray, mass_mode: MassMode
    ) -> None:
        if not self.needs_fit:
            return
        # Probabilities stored in float32 can sum to 1 + 1e-7.
        rows = FitInputs(topk, is_label, np.minimum(mass, 1.0), mass_mode)
        criterion = self.options.criterion
        fits = fit_temperatures(self.scaled, self.search, rows, self.options.bins)
        if criterion not in fits:
            reason = (
                f"none of the {len(topk)} labels of the validation part is in the teacher's top k, "
                f"as criterion '{criterion}' requires with mass 'one'"
                if len(topk)
                else "the validation part has no rows"
            )
            raise UserError(
                f"recalibrator '{self.name}' cannot be fitted: {reason}; raise train.validation, "
                "or set its option 'temperature'"
            )
        used = fits[criterion].rows
        self._state = {
            **asdict(fits[criterion]),
            "criterion": criterion,
            "rows_left_out": len(topk) - used,
            "few_rows": used < MIN_STABLE_ROWS,
            "criteria": {
                name: {key: getattr(fit, key) for key in PER_CRITERION}
                for name, fit in fits.items()
            },
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

    def diagnostics(self) -> Diagnostics:
        state = self._state  # earlier versions of firstcli wrote fewer keys
        names = ("temperature", "interval", "criterion", "at_grid_end", "flat", "rows")
        facts = {name: state[name] for name in names if name in state}
        fits: Mapping[str, Mapping[str, JSON]] = state.get("criteria", {})
        if fits:
            facts["temperatures"] = {name: fit["temperature"] for name, fit in fits.items()}
        curves = {
            name: Curve(
                points=tuple((temperature, value) for temperature, value in fit["curve"]),
                best=fit["temperature"],
                interval=(fit["interval"][0], fit["interval"][1]),
            )
            for name, fit in fits.items()
        }
        return Diagnostics(facts, _warnings(state) if fits else (), curves)


def _warnings(state: Mapping[str, JSON]) -> tuple[str, ...]:
    """Return what makes a fitted temperature doubtful, at most one sentence."""
    fitted = (
        f"T = {state['temperature']:.3g}, fitted by {state['criterion']} on {state['rows']} rows"
    )
    if state["at_grid_end"]:  # interval and spread mean little there
        return (
            f"{fitted}, is at the end of the searched range, so the optimum may be beyond it; one "
            "temperature may not suit these rows",
        )
    low, high = state["interval"]
    fitted += f" (95 % interval {low:.3g} to {high:.3g})"
    if state["few_rows"]:
        return (
            f"{fitted}, would vary by about {state['spread']:.2g} between validation parts of this "
            f"size; raise train.validation to get at least {MIN_STABLE_ROWS} rows",
        )
    if state["flat"]:
        return (
            f"{fitted}, is hardly determined by these rows; raise train.validation, or set a fixed "
            "`temperature`",
        )
    return ()


class TemperatureScaling(SingleTemperature):
    """`temperature-scaling`: the softmax over the probabilities themselves (Eq. 4)."""

    Options = TemperatureScalingOptions
    name = "temperature-scaling"
    scaled = staticmethod(softmax)
    search = staticmethod(search_hundredths)


class LogitTemperature(SingleTemperature):
    """`logit-temperature`: classic temperature scaling, from the k probabilities alone."""

    name = "logit-temperature"
    fits_subsets = True  # ratios of probabilities do not depend on other tokens
    scaled = staticmethod(scale_logits)
    search = staticmethod(search_log_spaced)
