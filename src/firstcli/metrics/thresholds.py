"""Confidence thresholds with a promise: the answers above them are right often enough.

A model that answers only if its confidence reaches a threshold should be right in at least a target
share of its answers. The threshold is chosen on validation questions so that this holds, for
questions of the same kind, with 95 % certainty: repeated with other validation questions, the
choice breaks its promise at most once in twenty times.

Method. Let a be a number of questions, and t the (a + 1)-th highest confidence. Given t, the
questions above it are a random sample of all questions above t, so their errors are binomial, and

    p(a) = P(Binomial(answered, 1 - target) <= errors)

is a p-value of "the accuracy above t is below the target": it is at most x exactly where the
one-sided Clopper-Pearson bound (1934) with certainty 1 - x reaches the target. The p-values of
several a are combined by sequential tests, as in Learn then Test (Angelopoulos et al. 2021): from
few to many questions, over numbers that depend on the number of validation questions alone. Of the
permitted error of 5 %, each of four evenly spaced starting numbers has a quarter; a number that
passes hands its error on to the next one (the fallback procedure, Wiens 2003). The chance that any
number passes wrongly is at most 5 %. This takes the place of the union over a binary search of
Geifman and El-Yaniv (2017), which permits each threshold a small part of the 5 %.

Why the numbers may be fixed rather than the thresholds: the first number with a bad threshold, and
every later one, is known from the counts of questions between the confidences at which the accuracy
above crosses the target. Given these counts, the errors above a bad threshold are at least
binomial, as above. Equal confidences are answered together or not at all; a number that would split
them stands for the whole groups above. The argument then also needs that more confident groups are
right at least as often.

All computation is in float64. Shapes: N questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray
from firstcli.metrics.calibration import pair

CERTAINTY = 0.95
NUMBERS = 40
"""Numbers of answered questions that are tried, evenly spaced on a log scale."""
STARTS = 4
"""How many of them begin a sequence of tests."""
_FEWEST = 10  # answers whose accuracy says something about the validation questions needed
_MOST = 10_000_000  # answers beyond which an accuracy counts as not above the target

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PromisedThreshold:
    """A threshold, and what the validation questions show about it."""

    threshold: float
    """Questions with at least this confidence are answered; 0 answers all."""
    target: float
    """The promised accuracy of the answers."""
    questions: int
    """Number of validation questions."""
    answered: int
    """Number of them that are answered."""
    right: int
    """Number of them that are answered right."""
    bound: float
    """Lower Clopper-Pearson bound of the accuracy, after the correction for the search."""

    @property
    def share(self) -> float:
        """The share of questions that is answered."""
        return self.answered / self.questions

    @property
    def accuracy(self) -> float:
        """The accuracy of the answers."""
        return self.right / self.answered


@dataclass(frozen=True, slots=True)
class AnsweredPart:
    """What a threshold does to other questions."""

    questions: int
    answered: int
    right: int

    @property
    def share(self) -> float:
        """The share of questions that is answered."""
        return self.answered / self.questions

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the answers; None if there are none."""
        return self.right / self.answered if self.answered else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return clopper_pearson(self.right, self.answered)

    def keeps(self, target: float) -> bool:
        """Whether the accuracy reaches the target; without answers, nothing is broken."""
        return self.accuracy is None or self.accuracy >= target

    def refutes(self, target: float) -> bool:
        """Whether chance does not explain how far the accuracy is below the target."""
        return self.interval[1] < target


def threshold_for(
    confidence: FloatArray, correct: BoolArray, target: float, certainty: float = CERTAINTY
) -> PromisedThreshold | None:
    """Return the lowest threshold that can be promised; None if there is none.

    Args:
        confidence: the model's confidence in each of its predictions, (N,), within [0, 1].
        correct: whether each prediction is right, (N,).
        target: least accuracy of the answers, between 0 and 1.
        certainty: chance that the promise holds.

    Raises:
        ValueError: the arrays do not fit, or the target or certainty is not between 0 and 1.
    """
    from scipy.special import bdtr, betaincinv

    confidence, outcome = pair(confidence, correct)
    _check_share(target, "target")
    _check_share(certainty, "certainty")
    ordered, errors = _most_confident_first(confidence, outcome)
    numbers, alphas = _sequence(len(ordered), target, 1 - certainty)
    limits = np.append(ordered, -np.inf)[numbers]  # the answers are more confident than this
    answered = np.searchsorted(-ordered, -limits, side="left")  # (numbers,), fewer with ties
    wrong = errors[answered]
    p_values = bdtr(wrong, answered, 1 - target)  # 1 without answers
    level = best_level = 0.0
    best: int | None = None
    for i, (alpha, p_value) in enumerate(zip(alphas, p_values, strict=True)):
        level += alpha
        if p_value <= level:
            best, best_level = i, level
        else:
            level = 0.0
    if best is None:
        return None
    n, right = int(answered[best]), int(answered[best] - wrong[best])
    return PromisedThreshold(
        threshold=0.0 if n == len(ordered) else float(np.nextafter(limits[best], np.inf)),
        target=target,
        questions=len(ordered),
        answered=n,
        right=right,
        bound=float(betaincinv(right, n - right + 1, best_level)) if right else 0.0,
    )


def questions_needed(
    confidence: FloatArray, correct: BoolArray, target: float, certainty: float = CERTAINTY
) -> int | None:
    """Estimate how many validation questions would be needed to promise a threshold.

    It is the number with which some share of the questions would pass if its accuracy stayed as it
    is, with one error and one right answer added because few questions may flatter. None means that
    no share is accurate enough. An estimate, not a promise.

    Args:
        confidence: the model's confidence in each of its predictions, (N,).
        correct: whether each prediction is right, (N,).
        target: least accuracy of the answers, between 0 and 1.
        certainty: chance that the promise holds.
    """
    confidence, outcome = pair(confidence, correct)
    _check_share(target, "target")
    ordered, errors = _most_confident_first(confidence, outcome)
    n, alpha = len(ordered), (1 - certainty) / STARTS
    numbers = np.unique(np.geomspace(min(_FEWEST, n), n, NUMBERS).round().astype(int))
    rates = (errors[numbers] + 1) / (numbers + 2)
    needed = [
        math.ceil(answers * n / number)
        for number, rate in zip(numbers.tolist(), rates.tolist(), strict=True)
        if (answers := _answers_needed(rate, target, alpha))
    ]
    return max(n + 1, min(needed)) if needed else None


def answered_part(threshold: float, confidence: FloatArray, correct: BoolArray) -> AnsweredPart:
    """Apply a threshold to questions that it was not chosen on.

    Args:
        threshold: questions with at least this confidence are answered.
        confidence: the model's confidence in each of its predictions, (N,).
        correct: whether each prediction is right, (N,).
    """
    confidence, outcome = pair(confidence, correct)
    answered = confidence >= threshold
    return AnsweredPart(len(confidence), int(answered.sum()), int(outcome[answered].sum()))


def clopper_pearson(hits: int, trials: int, certainty: float = CERTAINTY) -> tuple[float, float]:
    """Return the exact two-sided interval of a share (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - certainty) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return low, high


def _most_confident_first(
    confidence: FloatArray, outcome: FloatArray
) -> tuple[FloatArray, IntArray]:
    """Return the confidences in descending order, and the errors of the first 0, 1 ... N of them.

    The errors within a group of equal confidences are in no particular order.
    """
    order = np.argsort(-confidence, kind="stable")
    errors = np.concatenate([[0], np.cumsum(1 - outcome[order])]).astype(np.int64)
    return confidence[order], errors


def _sequence(questions: int, target: float, error: float) -> tuple[IntArray, FloatArray]:
    """Return the numbers of answered questions to test, and the error that each starts with.

    They depend on nothing but the number of questions. The first number is the smallest that can
    pass, which needs all answers right.
    """
    first = math.ceil(math.log(error / STARTS) / math.log(target))
    spaced = np.geomspace(min(first, questions), questions, NUMBERS).round()
    numbers = np.unique(spaced.astype(np.int64))
    alphas = np.zeros(len(numbers))
    starts = np.linspace(0, len(numbers), STARTS, endpoint=False).astype(int)
    np.add.at(alphas, starts, error / STARTS)
    return numbers, alphas


def _answers_needed(rate: float, target: float, alpha: float) -> int | None:
    """Return the number of answers with which an error rate passes, by doubling and halving."""
    from scipy.special import bdtr

    def passes(answers: int) -> bool:
        return bool(bdtr(math.floor(rate * answers), answers, 1 - target) <= alpha)

    high = 1
    while not passes(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
