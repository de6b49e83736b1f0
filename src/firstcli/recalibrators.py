"""The built-in recalibrators: what the teacher's top k probabilities should have been.

Everywhere `topk` is (N, k) float64, a row a position, from the most to the least likely token,
taken from the softmax over the whole vocabulary, so that a row sums to 1 or less.
The formulas are those of the paper (arXiv 2408.12168), section 4.2 and appendix A.1, and of
Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from firstcli.api import JSON, PluginOptions, Recalibrator
from firstcli.errors import UserError
from firstcli.metrics import FLOOR, ece

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray

EPSILON = 1e-6  # the paper's, appendix A.1
FEW_ROWS = 200  # below this a fitted T scatters by a tenth and more

Criterion = Literal["ece", "nll", "brier"]
Curve = dict[float, float]  # temperature -> value of the criterion, ascending


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
    keeps_ranks = False  # the first token can fall below the second; the paper says so too

    def transform(self, topk: FloatArray) -> FloatArray:
        if topk.shape[1] == 1:
            raise UserError(
                "recalibrator 'label-smoothing' needs at least two tokens to share between, but "
                "knowledge.top_k is 1; raise it or choose another recalibrator"
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
    def search(self, value_at: Callable[[float], float]) -> Curve:
        """Evaluate the criterion where its minimum may be."""

    def fit(self, topk: FloatArray, is_true: BoolArray, mass: FloatArray) -> None:
        if not self.needs_fit:
            return
        criterion, bins = self.options.criterion, self.options.bins
        mass = np.minimum(mass, 1.0)  # probabilities kept in float32 can sum to 1 + 1e-7
        used = judged_rows(criterion, is_true, mass)
        topk, is_true, mass = topk[used], is_true[used], mass[used]
        if not len(topk):
            raise UserError(_nothing_to_fit(self.name, criterion, len(used)))

        def value_at(temperature: float) -> float:
            return criterion_value(criterion, self.scaled(topk, temperature), is_true, mass, bins)

        curve = self.search(value_at)
        temperature = best_temperature(curve)
        ends = curve[min(curve)], curve[max(curve)]
        taught = true_probability(self.scaled(topk, temperature), is_true, mass)
        self._state = {
            "temperature": temperature,
            "criterion": criterion,
            "curve": [[t, value] for t, value in curve.items()],
            "rows": len(topk),
            "rows_left_out": len(used) - len(topk),
            "floored": int((taught < FLOOR).sum()) if criterion == "nll" else 0,
            "at_grid_end": min(ends) <= curve[temperature],
            "few_rows": len(topk) < FEW_ROWS,
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

    def search(self, value_at: Callable[[float], float]) -> Curve:
        return search_hundredths(value_at)


class LogitTemperature(SingleTemperature):
    """`logit-temperature`: classic temperature scaling, from the k probabilities alone."""

    name = "logit-temperature"

    def scaled(self, topk: FloatArray, temperature: float) -> FloatArray:
        return scale_logits(topk, temperature)

    def search(self, value_at: Callable[[float], float]) -> Curve:
        return search_log_spaced(value_at, unimodal=self.options.criterion == "nll")


def among_topk(is_true: BoolArray) -> BoolArray:
    """Return whether the true token is one of the k, (N,)."""
    among: BoolArray = np.logical_or.reduce(is_true, axis=1)
    return among


def judged_rows(criterion: Criterion, is_true: BoolArray, mass: FloatArray) -> BoolArray:
    """Return which rows a criterion is computed over, (N,).

    Where all the mass goes to the k tokens, `nll` and `brier` leave out the rows whose true token
    is not among them: no temperature could give it anything.
    """
    among = among_topk(is_true)
    return among if criterion != "ece" and (mass == 1).all() else np.ones_like(among)


def true_probability(target: FloatArray, is_true: BoolArray, mass: FloatArray) -> FloatArray:
    """Return what is taught of the outcome that came true, a token or "none of the k", (N,)."""
    inside = (mass[:, None] * target * is_true).sum(axis=1)
    return np.where(among_topk(is_true), inside, 1 - mass)


def criterion_value(
    criterion: Criterion, target: FloatArray, is_true: BoolArray, mass: FloatArray, bins: int
) -> float:
    """Judge what is taught, `mass * target` over the k tokens and `1 - mass` for all others."""
    if criterion == "ece":
        return ece(mass * target[:, 0], is_true[:, 0], bins=bins)
    if criterion == "nll":
        return float(-np.log(np.maximum(true_probability(target, is_true, mass), FLOOR)).mean())
    inside = ((mass[:, None] * target - is_true) ** 2).sum(axis=1)
    outside = (1 - mass - ~among_topk(is_true)) ** 2
    return float((inside + outside).mean())


def best_temperature(curve: Curve) -> float:
    """Return the T of the smallest value; of equal ones the larger T, which is less confident."""
    return min(curve, key=lambda temperature: (curve[temperature], -temperature))


def search_hundredths(value_at: Callable[[float], float]) -> Curve:
    """Search (0, 1] in steps of 0.10, then of 0.02 around the best (paper, section 5.5).

    T is counted in integer hundredths, so that 0.3 is 0.3 however it was reached.
    """
    coarse = {count / 100: value_at(count / 100) for count in range(10, 101, 10)}
    best = round(100 * best_temperature(coarse))
    fine = {
        count / 100: value_at(count / 100)
        for count in range(best - 10, best + 11, 2)
        if 0 < count <= 100
    }
    return dict(sorted((coarse | fine).items()))


def search_log_spaced(value_at: Callable[[float], float], unimodal: bool) -> Curve:
    """Search [0.1, 10] at 40 log-spaced values, then between the neighbours of the best.

    A criterion with one minimum is minimised there; the ECE jumps where a row changes its bin and
    the Brier score is not convex, so they are evaluated at finer values instead.
    """
    grid: list[float] = np.geomspace(0.1, 10, 40).tolist()
    coarse = {temperature: value_at(temperature) for temperature in grid}
    best = grid.index(best_temperature(coarse))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    if unimodal:
        inner = [_minimum(value_at, low, high)]
    else:
        inner = np.geomspace(low, high, 40)[1:-1].tolist()
    fine = {temperature: value_at(temperature) for temperature in inner}
    return dict(sorted((coarse | fine).items()))


def _minimum(value_at: Callable[[float], float], low: float, high: float) -> float:
    """Minimise over log T between two temperatures."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_temperature: value_at(float(np.exp(log_temperature))),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(found.x))


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
