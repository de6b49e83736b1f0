"""Thresholds keep their promise; the search, the bounds and the estimates are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from firstcli.metrics.thresholds import (
    CERTAINTY,
    NUMBERS,
    STARTS,
    PromisedThreshold,
    answered_part,
    clopper_pearson,
    questions_needed,
    threshold_for,
)

Array = np.ndarray
Random = np.random.Generator


class Model(NamedTuple):
    """How a model's confidences are distributed, and how often it is right at each of them."""

    draw: Callable[[Random, int], Array]
    right: Callable[[Array], Array]


def levels(*values: float) -> Callable[[Random, int], Array]:
    return lambda random, n: random.choice(values, n)


def uniform(random: Random, n: int) -> Array:
    return random.random(n)


def top_heavy(random: Random, n: int) -> Array:
    return 0.5 + 0.5 * random.beta(3, 0.5, n)


TARGET = 0.9
MODELS = {
    "just below the target": Model(uniform, lambda c: np.full_like(c, 0.8999)),
    "well calibrated": Model(lambda r, n: 0.5 + 0.5 * r.random(n) ** 0.6, lambda c: c),
    "over-confident": Model(top_heavy, lambda c: 0.5 + 0.75 * (c - 0.5)),
    "under-confident": Model(uniform, lambda c: 0.8 + 0.2 * c),
    "a step at the target": Model(uniform, lambda c: np.where(c > 0.5, 0.9001, 0.85)),
    "in waves": Model(uniform, lambda c: 0.899 + 0.08 * np.cos(9 * np.pi * c)),
    "worse at the top": Model(uniform, lambda c: np.where(c > 0.8, 0.88, 0.905)),
    "five levels": Model(levels(0.2, 0.4, 0.6, 0.8, 1.0), lambda c: 0.8 + 0.15 * c),
    "five equal levels": Model(levels(0.2, 0.4, 0.6, 0.8, 1.0), lambda c: np.full_like(c, 0.8999)),
    "always certain": Model(lambda _, n: np.ones(n), lambda c: np.full_like(c, 0.8999)),
    "wrong where it is certain": Model(
        levels(*[1.0] * 3, *np.linspace(0.1, 0.9, 97)), lambda c: np.where(c == 1, 0.3, 0.918)
    ),
}
REPEATS = 1000


def true_accuracy(model: Model) -> Callable[[float], float]:
    """Return the accuracy of infinitely many answers from a confidence on."""
    population = -np.sort(-model.draw(np.random.default_rng(99), 100_000))
    right = np.cumsum(model.right(population)) / np.arange(1, len(population) + 1)

    def accuracy(threshold: float) -> float:
        answered = int(np.searchsorted(-population, -threshold, side="right"))
        return float(right[answered - 1]) if answered else 1.0

    return accuracy


@pytest.mark.parametrize("name", MODELS)
def test_the_promise_is_broken_in_at_most_5_percent_of_draws(name: str) -> None:
    """Up to three standard errors of the simulation."""
    model, random = MODELS[name], np.random.default_rng(5)
    accuracy, slack = true_accuracy(model), 0.001  # of the simulated population
    for n in (25, 90, 300):
        broken = 0
        for _ in range(REPEATS // 2 if n == 300 else REPEATS // 4):
            confidence = model.draw(random, n)
            correct = random.random(n) < model.right(confidence)
            chosen = threshold_for(confidence, correct, TARGET)
            broken += chosen is not None and accuracy(chosen.threshold) < TARGET - slack / 10
        repeats = REPEATS // 2 if n == 300 else REPEATS // 4
        assert broken / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats), n


def test_the_promise_holds_with_a_temperature_fitted_to_the_same_questions() -> None:
    """The temperature reorders questions with several candidates; one parameter is harmless."""
    random, temperatures = np.random.default_rng(6), np.geomspace(0.5, 6, 40)
    logits = random.normal(0, 2, (20_000, 4))  # the truth is a temperature of 2
    truth = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    cumulated, top = truth.cumsum(axis=1), logits.argmax(axis=1)
    p_right = truth[np.arange(len(truth)), top]
    tempered = np.exp((logits - logits.max(axis=1, keepdims=True))[..., None] / temperatures)
    tempered /= tempered.sum(axis=1, keepdims=True)  # (N, 4, temperatures)
    confidences = tempered.max(axis=1)
    repeats, broken, promised = 400, 0, 0
    for _ in range(repeats):
        rows = random.integers(0, len(logits), 300)
        answer = (random.random(300)[:, None] > cumulated[rows]).sum(axis=1).clip(max=3)
        nll = -np.log(tempered[rows, answer]).sum(axis=0)
        shown = confidences[:, int(nll.argmin())]
        if chosen := threshold_for(shown[rows], answer == top[rows], 0.6):
            promised += 1
            broken += float(p_right[shown >= chosen.threshold].mean()) < 0.6
    assert promised > repeats / 4
    assert broken / repeats <= 0.05


def naive(confidence: Array, correct: Array, target: float) -> tuple[float, int, int] | None:
    """Return the threshold, the answers and the right ones by the text of the documentation."""
    n, error = len(confidence), 1 - CERTAINTY
    first = math.ceil(math.log(error / STARTS) / math.log(target))
    numbers = sorted({round(x) for x in np.geomspace(min(first, n), n, NUMBERS)})
    starts = [int(i * len(numbers) / STARTS) for i in range(STARTS)]
    ordered, handed_on, found = sorted(confidence, reverse=True), 0.0, None
    for i, number in enumerate(numbers):
        limit = ordered[number] if number < n else -1.0
        answered = [y for c, y in zip(confidence, correct, strict=True) if c > limit]
        errors = sum(not y for y in answered)
        p_value = stats.binom.cdf(errors, len(answered), 1 - target)
        permitted = handed_on + starts.count(i) * error / STARTS
        handed_on = permitted if p_value <= permitted else 0.0
        if handed_on:
            found = (limit, len(answered), len(answered) - errors)
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    digits=st.integers(1, 6),
    skill=st.floats(0.5, 1),
    target=st.floats(0.5, 0.99),
)
def test_the_search_agrees_with_a_naive_one(
    seed: int, n: int, digits: int, skill: float, target: float
) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(n).round(digits)
    correct = random.random(n) < skill + (1 - skill) * confidence
    found, expected = threshold_for(confidence, correct, target), naive(confidence, correct, target)
    if found is None or expected is None:
        assert found is None and expected is None
        return
    limit, answered, right = expected
    assert (found.answered, found.right) == (answered, right)
    assert found.questions == n and found.target == target
    assert bool((confidence >= found.threshold).sum() == answered)  # the rule of the threshold
    assert found.threshold == 0.0 if answered == n else limit < found.threshold <= limit + 1e-12
    assert target <= found.bound + 1e-12 and found.bound < found.accuracy


def test_the_order_of_the_questions_does_not_matter() -> None:
    random = np.random.default_rng(1)
    confidence = random.random(500).round(2)
    correct = random.random(500) < 0.6 + 0.4 * confidence
    chosen = threshold_for(confidence, correct, 0.8)
    assert chosen
    for _ in range(5):
        order = random.permutation(500)
        assert threshold_for(confidence[order], correct[order], 0.8) == chosen


def test_a_model_without_errors_answers_everything() -> None:
    chosen = threshold_for(np.linspace(0, 1, 500), np.ones(500, bool), 0.95)
    assert chosen and (chosen.threshold, chosen.share, chosen.accuracy) == (0.0, 1.0, 1.0)
    assert chosen.bound == pytest.approx(0.05 ** (1 / 500))  # all of the error has been handed on


@pytest.mark.parametrize(("n", "promised"), [(58, False), (59, True)])
def test_the_smallest_validation_part(n: int, promised: bool) -> None:
    """0.95 ** 59 < 0.05: with fewer questions, one number is tested, and cannot pass."""
    assert bool(threshold_for(np.linspace(0, 1, n), np.ones(n, bool), 0.95)) is promised
    needed = questions_needed(np.linspace(0, 1, 50), np.ones(50, bool), 0.95)
    assert needed and 50 < needed < 300


@pytest.mark.parametrize("correct", [False, True])
def test_one_question_promises_nothing(correct: bool) -> None:
    one = np.array([0.9]), np.array([correct])
    assert threshold_for(*one, 0.9) is None
    assert questions_needed(*one, 0.9) is None


def test_needed_questions_suffice_if_the_accuracy_stays() -> None:
    random = np.random.default_rng(2)
    confidence = random.random(150)
    correct = random.random(150) < 0.75 + 0.25 * confidence
    assert threshold_for(confidence, correct, 0.9) is None
    needed = questions_needed(confidence, correct, 0.9)
    assert needed and 150 < needed < 5000
    copies = math.ceil(needed / 150)
    assert threshold_for(np.tile(confidence, copies), np.tile(correct, copies), 0.9)
    assert questions_needed(confidence, np.zeros(150, bool), 0.9) is None


def test_a_threshold_is_judged_on_other_questions() -> None:
    confidence = np.array([0.2, 0.5, 0.5, 0.9])
    part = answered_part(0.5, confidence, np.array([True, True, False, True]))
    assert (part.questions, part.answered, part.right) == (4, 3, 2)
    assert (part.share, part.accuracy) == (0.75, 2 / 3)
    assert part.keeps(0.66) and not part.keeps(0.67) and not part.refutes(0.67)
    assert part.refutes(0.995)
    nothing = answered_part(1.0, confidence, np.ones(4, bool))
    assert nothing.accuracy is None and nothing.interval == (0.0, 1.0)
    assert nothing.keeps(0.9) and not nothing.refutes(0.9)


@pytest.mark.parametrize(("hits", "trials"), [(0, 7), (7, 7), (3, 7), (45, 50), (0, 0)])
def test_the_exact_interval_agrees_with_scipy(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci() if trials else (0.0, 1.0)
    assert clopper_pearson(hits, trials) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "target", "certainty", "message"),
    [
        ([0.5], 1.0, 0.95, "target"),
        ([0.5], 0.0, 0.95, "target"),
        ([0.5], 0.9, 1.0, "certainty"),
        ([], 0.9, 0.95, "empty"),
        ([math.nan], 0.9, 0.95, "within"),
        ([1.5], 0.9, 0.95, "within"),
    ],
)
def test_invalid_arguments_are_refused(
    confidence: list[float], target: float, certainty: float, message: str
) -> None:
    correct = np.ones(len(confidence), bool)
    with pytest.raises(ValueError, match=message):
        threshold_for(np.array(confidence), correct, target, certainty)


def test_a_threshold_states_shares() -> None:
    chosen = PromisedThreshold(0.5, 0.9, 200, 100, 97, 0.91)
    assert (chosen.share, chosen.accuracy) == (0.5, 0.97)
