"""Prediction sets: the candidates among which the right one is, with a promised frequency.

Split-conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002) with the score 1 minus the
probability of the right candidate, which gives the smallest sets on average (LAC: Sadinle et al.
2019). With n validation questions and the coverage c, the candidates of a new question whose
probability is at least that of the right candidate in ceil((n + 1) c) of the validation questions
contain the right one with a probability of at least c, and of at most c + 1 / (n + 1) if no two
probabilities are equal. This holds for any model, if the questions are of the same kind, and on
average over draws of the validation questions: the coverage of one draw varies, as
`coverage_range` says.

A set is never empty: the most likely candidate always belongs to it, which only adds coverage.

All computation is in float64. Shapes: N questions, C the largest number of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import unit
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.thresholds import clopper_pearson

_ROUNDING = 1e-9  # of (n + 1) c, which may be a whole number


@dataclass(frozen=True, slots=True)
class SetSizes:
    """The prediction sets of some questions."""

    questions: int
    covered: int
    """Number of questions whose set contains the right candidate."""
    mean_size: float
    singletons: int
    """Number of questions whose set is a single candidate."""

    @property
    def coverage(self) -> float:
        """The share of questions whose set contains the right candidate."""
        return self.covered / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the coverage."""
        return clopper_pearson(self.covered, self.questions)


def least_probability(true_probability: FloatArray, coverage: float) -> float:
    """Return the probability from which on a candidate belongs to a set.

    With too few questions for the coverage it is 0: all candidates belong to the set.

    Args:
        true_probability: probability of the right candidate of each validation question, (N,).
        coverage: promised share of sets with the right candidate, between 0 and 1.
    """
    known = unit(true_probability, "true_probability")
    rank = _rank(len(known), coverage)
    return float(np.sort(known)[len(known) - rank]) if rank <= len(known) else 0.0


def prediction_sets(
    probabilities: FloatArray, least: float, count: np.ndarray | None = None
) -> BoolArray:
    """Return which candidates belong to each question's set, (N, C).

    Args:
        probabilities: the candidates' probabilities, (N, C).
        least: the result of `least_probability`.
        count: each question's number of candidates, if they differ, (N,).
    """
    chosen = probabilities >= least
    if count is not None:
        chosen &= np.arange(probabilities.shape[1]) < count[:, None]
    chosen[np.arange(len(probabilities)), probabilities.argmax(axis=1)] = True
    return np.asarray(chosen)


def set_sizes(records: EvalRecords, least: float) -> SetSizes:
    """Measure the sets of a model's answers to questions with a right candidate.

    Args:
        records: the answers.
        least: the result of `least_probability` on other questions.
    """
    sets = prediction_sets(records.probabilities, least, records.count)
    sizes = sets.sum(axis=1)
    covered = sets[np.arange(len(records)), records.answer]
    return SetSizes(len(records), int(covered.sum()), float(sizes.mean()), int((sizes == 1).sum()))


def coverage_range(validation: int, questions: int, coverage: float) -> tuple[float, float]:
    """Return the range that holds the observed coverage of 95 % of correct promises.

    Over draws of the validation questions, the coverage has a beta distribution (Vovk 2012), so
    the number of covered questions has a beta-binomial one. Equal probabilities and the rule that
    no set is empty only add coverage.

    Args:
        validation: number of validation questions.
        questions: number of other questions, on which the coverage is observed.
        coverage: the promised coverage.
    """
    from scipy.stats import betabinom

    rank = _rank(validation, coverage)
    if rank > validation:
        return 1.0, 1.0
    ends = betabinom.ppf([0.025, 0.975], questions, rank, validation + 1 - rank)
    low, high = (float(end) / questions for end in ends)
    return low, high


def _rank(questions: int, coverage: float) -> int:
    """Return how many validation questions must be covered; more than there are if too few."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, not {coverage}")
    return math.ceil((questions + 1) * coverage - _ROUNDING)
