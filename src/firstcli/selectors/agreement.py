"""Selection by how far sampled explanations of a question agree in their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from firstcli.api import AnswerSampling, FloatArray, PluginOptions, Pool, Selector
from firstcli.api.sampling import TopP


class SelfConsistencyOptions(PluginOptions):
    """How explanations are sampled."""

    samples: int = Field(5, ge=2, le=100, description="sampled explanations per question")
    temperature: float = Field(
        0.7, gt=0, description="temperature of the next token's distribution"
    )
    top_p: TopP = 1.0

    @property
    def sampling(self) -> AnswerSampling:
        """The same as the contract states it."""
        return AnswerSampling(self.samples, self.temperature, self.top_p)


class SelfConsistency(Selector[SelfConsistencyOptions]):
    """Chooses the questions on whose answer sampled explanations disagree.

    The score is 1 - m / n, where m of the n samples end with the most frequent answer: 1 minus the
    consistency of Wang et al. (2023, arXiv 2203.11171). A sample that ends with no answer agrees
    with no other.
    """

    Options = SelfConsistencyOptions
    needs = frozenset({"samples"})

    @property
    def sampling(self) -> AnswerSampling:
        return self.options.sampling

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.samples is not None
        shares = [max(counts_of(answers)) / len(answers) for answers in pool.samples]
        return 1 - np.array(shares, np.float64)


class KnowledgeDetectionOptions(SelfConsistencyOptions):
    """How explanations are sampled, and what counts as known."""

    known: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="the student knows a question if at most this share of the pairs of samples "
        "contradict each other",
    )


class KnowledgeDetection(Selector[KnowledgeDetectionOptions]):
    """Chooses the questions that the student does not know; those that it knows come last.

    The contradiction of a question is the share of the pairs of its n samples whose answers differ,
    c = 1 - sum_a m(a) (m(a) - 1) / (n (n - 1)), where m(a) samples end with answer a. The student
    knows it if c <= known. The score is c, and c - 1 for known questions, which are chosen only if
    all others are. After Yeo et al. (2024, arXiv 2406.11275), simplified: they let a model of
    natural language inference judge which texts contradict each other. A sample that ends with no
    answer contradicts all others.
    """

    Options = KnowledgeDetectionOptions
    needs = frozenset({"samples"})

    @property
    def sampling(self) -> AnswerSampling:
        return self.options.sampling

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.samples is not None
        found = np.array([contradiction(answers) for answers in pool.samples], np.float64)
        return np.where(found <= self.options.known, found - 1, found)


def counts_of(answers: Sequence[str]) -> list[int]:
    """Return how many samples end with each answer; those with none count one by one."""
    counts = Counter(answers)
    missing = counts.pop("", 0)
    return [*counts.values(), *[1] * missing]


def contradiction(answers: Sequence[str]) -> float:
    """Return the share of the pairs of samples whose answers differ; 0 for a single sample."""
    pairs = len(answers) * (len(answers) - 1)
    equal = sum(count * (count - 1) for count in counts_of(answers))
    return 1 - equal / pairs if pairs else 0.0
