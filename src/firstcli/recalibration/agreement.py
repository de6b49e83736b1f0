"""A temperature fitted without labels, where a model agrees with a reference.

DACA (Disagreement-Aware Confidence Alignment, Luo et al. 2025, arXiv 2505.16690): with the
probabilities f of a reference and g of the model over the candidates of a question,

    T = argmin  mean over the questions with argmax f = argmax g of  KL(f || softmax(log g / T))

Questions on which the two disagree are left out, because they would raise T without bound: there
the reference's probability of the model's answer is low however right the model is (Proposition
3.3 of the paper). The KL divergence is the cross-entropy up to a constant, and its minimum is
unique, because it is convex in 1 / T.
"""

from __future__ import annotations

import numpy as np

from firstcli.api import JSON, BoolArray, FloatArray, UserError
from firstcli.recalibration.builtin import MIN_STABLE_ROWS
from firstcli.recalibration.temperature_search import (
    MIN_ROWS_TO_RESAMPLE,
    RESAMPLES,
    SEED,
    CriterionValues,
    best_temperature,
    search_log_spaced,
    vertex,
)

NAME = "agreement"
"""Name of the criterion in states, tables and figures."""


def agreeing(probabilities: FloatArray, reference: FloatArray) -> BoolArray:
    """Return where both have the same most likely candidate, (N,); of equals the first counts.

    Args:
        probabilities: the model's, (N, C).
        reference: the reference's, of the same candidates, (N, C).
    """
    return np.asarray(probabilities.argmax(axis=1) == reference.argmax(axis=1))


def cross_entropies(
    probabilities: FloatArray, reference: FloatArray, temperature: float
) -> FloatArray:
    """Return -sum f log softmax(log g / T) of each question, (N,).

    Args:
        probabilities: g, (N, C); 0 for candidates that a question does not have.
        reference: f, (N, C); 0 for the same candidates.
        temperature: T.
    """
    with np.errstate(divide="ignore"):
        scores = np.log(probabilities)
    scores = (scores - scores.max(axis=1, keepdims=True)) / temperature
    log_q = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    # Without probability in the reference, a candidate does not count: 0 * -inf would be NaN.
    return np.asarray(-(reference * np.where(reference > 0, log_q, 0.0)).sum(axis=1))


def fit_temperature(probabilities: FloatArray, reference: FloatArray) -> dict[str, JSON]:
    """Fit T on the questions on which a model and a reference agree.

    Args:
        probabilities: the model's, (N, C); rows sum to 1.
        reference: the reference's, of the same candidates, (N, C); rows sum to 1.

    Returns:
        The state of a fitted `logit-temperature`.

    Raises:
        UserError: they agree on no question.
    """
    same = agreeing(probabilities, reference)
    if not same.any():
        raise UserError(
            f"the student agrees with the teacher on none of {len(same)} questions; set "
            "`fit: labels`"
        )
    model, target = probabilities[same], reference[same]
    order = np.lexsort((*target.T, *model.T))  # the result does not depend on the order
    model, target = model[order], target[order]
    losses: dict[float, FloatArray] = {}

    def of(temperature: float) -> FloatArray:
        if temperature not in losses:
            losses[temperature] = cross_entropies(model, target, temperature)
        return losses[temperature]

    curve = search_log_spaced(lambda temperature: float(of(temperature).mean()), True)
    best, ends = best_temperature(curve), [min(curve), max(curve)]
    interval, spread = _resampled(curve, np.stack([of(t) for t in curve]), best)
    points: JSON = [[temperature, value] for temperature, value in curve.items()]
    fit: dict[str, JSON] = {
        "temperature": best,
        "interval": interval,
        "spread": spread,
        "curve": points,
    }
    covered = float(np.diff(np.log(interval))[0] / np.diff(np.log(ends))[0])
    return fit | {
        "criterion": NAME,
        "rows": len(model),
        "rows_left_out": int((~same).sum()),
        "at_grid_end": best in ends,
        "few_rows": len(model) < MIN_STABLE_ROWS,
        "flat": covered > 0.5,
        "criteria": {NAME: fit},
    }


def _resampled(
    curve: CriterionValues, losses: FloatArray, best: float
) -> tuple[list[float], float]:
    """Return a bootstrap interval of 95 % that contains the best T, and the standard deviation.

    Args:
        curve: the criterion by temperature.
        losses: each question's at these temperatures, (temperatures, N).
        best: the temperature of the least value.
    """
    temperatures, count = list(curve), losses.shape[1]
    if count < MIN_ROWS_TO_RESAMPLE:
        low, high = temperatures[0], temperatures[-1]
        return [low, high], float((high - low) / 12**0.5)
    generator, share = np.random.default_rng(SEED), np.full(count, 1 / count)
    found = []
    for _ in range(RESAMPLES):  # one at a time: all together would take 200 numbers per question
        values = losses @ generator.multinomial(count, share) / count  # (temperatures,)
        found.append(vertex(dict(zip(temperatures, values.tolist(), strict=True))))
    low, high = (float(np.quantile(found, share)) for share in (0.025, 0.975))
    return [min(low, best), max(high, best)], float(np.std(found))
