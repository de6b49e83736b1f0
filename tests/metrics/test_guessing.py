"""Answers that are no better than guesses."""

from __future__ import annotations

import numpy as np
import pytest

from firstcli.metrics.guessing import explains_all, guessing
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.uncertainty import MIN_QUESTIONS


def records(answers: list[int], predictions: list[int], candidates: int) -> EvalRecords:
    """Return confident predictions."""
    log_probs = np.full((len(answers), candidates), -9.0)
    log_probs[np.arange(len(answers)), predictions] = -0.1
    return EvalRecords.from_log_probs(
        [f"q{i}" for i in range(len(answers))], answers, list(log_probs)
    )


def test_guessing_is_random_or_the_most_frequent_answer() -> None:
    even = guessing(records([0, 1, 2, 3], [0] * 4, 4))
    assert (even.accuracy, even.is_constant) == (0.25, False)
    uneven = guessing(records([0, 1, 1, 1], [0] * 4, 4))
    assert (uneven.accuracy, uneven.is_constant) == (0.75, True)
    assert str(even) == "a random candidate" and str(uneven) == "always the most frequent answer"


def test_questions_with_different_numbers_of_candidates() -> None:
    mixed = EvalRecords.from_log_probs(
        ["a", "b"], [0, 1], [np.log([0.5, 0.5]), np.log([0.1, 0.2, 0.3, 0.4])]
    )
    assert guessing(mixed).accuracy == pytest.approx(max((1 / 2 + 1 / 4) / 2, 1 / 2))


@pytest.mark.parametrize(("right", "explained"), [(20, True), (25, True), (33, True), (50, False)])
def test_an_accuracy_counts_as_guessed_if_its_interval_reaches_chance(
    right: int, explained: bool
) -> None:
    answers = [i % 4 for i in range(100)]
    predictions = [a if i < right else (a + 1) % 4 for i, a in enumerate(answers)]
    found = records(answers, predictions, 4)
    assert (explains_all([found]) is not None) is explained
    assert (explains_all([found, found]) is not None) is explained


@pytest.mark.parametrize(("count", "said"), [(MIN_QUESTIONS - 1, False), (MIN_QUESTIONS, True)])
def test_nothing_is_said_of_few_questions(count: int, said: bool) -> None:
    answers = [i % 2 for i in range(count)]
    assert (explains_all([records(answers, [0] * count, 2)]) is not None) is said
