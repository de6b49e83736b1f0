"""Selection by how unsure the student is within and between the steps of its explanation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from pydantic import Field, model_validator

from firstcli.api import FloatArray, PluginOptions, Pool, Selector, Thought
from firstcli.selectors.answers import entropy


class ExplanationUncertaintyOptions(PluginOptions):
    """What counts how much."""

    in_step: float = Field(
        1.0, ge=0, description="weight of the surprise of the tokens within the steps"
    )
    between_steps: float = Field(
        1.0, ge=0, description="weight of how much each step changes the answer's distribution"
    )
    at_the_end: float = Field(
        1.0, ge=0, description="weight of the entropy of the answer after all steps"
    )

    @model_validator(mode="after")
    def _something_counts(self) -> ExplanationUncertaintyOptions:
        if not self.in_step + self.between_steps + self.at_the_end > 0:
            raise ValueError("all weights are 0; let at least one be above 0")
        return self


class ExplanationUncertainty(Selector[ExplanationUncertaintyOptions]):
    """Chooses the questions whose explanation the student is unsure of, even if sure of the answer.

    The idea is that of ELAD (Zhang et al. 2024, arXiv 2402.13098), whose formulas could not be
    obtained; these are our own. The explanation has steps j = 1..S, and a(j) is the distribution of
    the answer given the first j of them. The score is

        1/S sum_j [in_step s(j) + between_steps d(j)] + at_the_end h

    s(j) is the mean of -ln p over the tokens of step j under the student, in nats. d(j) is the
    Jensen-Shannon distance between a(j) and a(j - 1): the square root of their divergence in bits,
    so 0 to 1 (Endres and Schindelin 2003). h is the entropy of a(S) in nats. Without steps the
    score is at_the_end h; a step without tokens has no surprise.
    """

    Options = ExplanationUncertaintyOptions
    needs = frozenset({"thoughts"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.thoughts is not None
        return np.array([self._score(thought) for thought in pool.thoughts], np.float64)

    def _score(self, thought: Thought) -> float:
        weights, answers = self.options, thought.answers_after
        score = weights.at_the_end * entropy(answers[-1])
        if thought.steps:
            inside = np.mean([surprise(thought, step) for step in thought.steps])
            changes = [jensen_shannon_distance(*pair) for pair in pairwise(answers)]
            score += float(weights.in_step * inside + weights.between_steps * np.mean(changes))
        return score


def surprise(thought: Thought, step: tuple[int, int]) -> float:
    """Return the mean negative log-probability of a step's tokens in nats; 0 if it has none."""
    start, end = step
    return float(-thought.log_probs[start:end].mean()) if end > start else 0.0


def jensen_shannon_distance(first: FloatArray, second: FloatArray) -> float:
    """Return the Jensen-Shannon distance of two distributions (n,), from 0 to 1."""
    middle = (first + second) / 2
    divergence = (_divergence(first, middle) + _divergence(second, middle)) / 2
    return float(np.sqrt(np.clip(divergence, 0, 1)))  # rounding may leave the range


def _divergence(first: FloatArray, middle: FloatArray) -> float:
    """Return the Kullback-Leibler divergence in bits; `middle` is 0 only where `first` is."""
    positive = first > 0
    return float((first[positive] * np.log2(first[positive] / middle[positive])).sum())
