"""Selection at random, and by how unsure the student is of its answer."""

from __future__ import annotations

import numpy as np

from firstcli.api import FloatArray, PluginOptions, Pool, Selector, seeded_number


class RandomOrder(Selector[PluginOptions]):
    """Chooses at random: the baseline of all others.

    The score is a number from 0 to 1 that the seed and the question's id determine.
    """

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.array([seeded_number(seed, id) for id in pool.ids], np.float64)


class LeastConfidence(Selector[PluginOptions]):
    """Chooses the questions whose likeliest answer is least likely.

    The score is 1 - p(1), where p(1) is the largest probability of an answer (Lewis and Gale 1994,
    arXiv cmp-lg/9407020).
    """

    needs = frozenset({"answers"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.answers is not None
        return np.array([1 - answers.max() for answers in pool.answers], np.float64)


class AnswerEntropy(Selector[PluginOptions]):
    """Chooses the questions whose answer is most uncertain overall.

    The score is the entropy -sum_i p(i) ln p(i) of the answer (Settles 2009, Active Learning
    Literature Survey, section 3.1), in nats: at most ln n for n answers.
    """

    needs = frozenset({"answers"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.answers is not None
        return np.array([entropy(answers) for answers in pool.answers], np.float64)


class AnswerMargin(Selector[PluginOptions]):
    """Chooses the questions between whose two likeliest answers the student can hardly decide.

    The score is 1 - (p(1) - p(2)), where p(1) and p(2) are the two largest probabilities of an
    answer (Scheffer, Decomain and Wrobel 2001, Active Hidden Markov Models for Information
    Extraction). Where there is only one answer, p(2) is 0.
    """

    needs = frozenset({"answers"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.answers is not None
        return np.array([1 - margin(answers) for answers in pool.answers], np.float64)


def entropy(probabilities: FloatArray) -> float:
    """Return the entropy of a distribution (n,) in nats; probabilities of 0 add nothing."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0  # never -0.0


def margin(probabilities: FloatArray) -> float:
    """Return by how much the likeliest answer (n,) is likelier than the next."""
    first, *others = sorted(probabilities.tolist(), reverse=True)
    return float(first - (others[0] if others else 0.0))
