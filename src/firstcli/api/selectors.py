"""The part of the contract that concerns selectors: which questions the teacher annotates."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import numpy as np

from firstcli.api.contract import FloatArray, OptionsT, PluginBase

Item = TypeVar("Item")
POOL_FIELDS = ("answers", "thoughts", "samples", "losses", "embeddings")
"""The fields of `Pool` that a selector may need."""


@dataclass(frozen=True, slots=True, eq=False)
class Thought:
    """What the student says of one question in words: its explanation and answer, greedily."""

    text: str
    """The whole response, without special tokens such as the one that ends it."""
    log_probs: FloatArray
    """Log-probability under the student of each token that it wrote, (L,), natural logarithm; the
    token that ends the text is the last one, if the student wrote it."""
    steps: tuple[tuple[int, int], ...]
    """Tokens of each step of the explanation, half-open ranges within L; empty without one."""
    answers_after: FloatArray
    """Distribution of the answer given the first j steps, (S + 1, n) for j = 0..S: each row is what
    `Pool.answers` is after all steps."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """N questions that may be annotated, and what the student says of them; never their labels.

    Fields that the selector does not need are None. `answers` and `thoughts` may be recalibrated.
    """

    ids: Sequence[str]
    """The questions' ids, all different."""
    answers: Sequence[FloatArray] | None = None
    """Distribution of each question's answer, (n_i,), sums to 1. With candidates it is over these.
    Without, the first column is the student's own answer, and the others are the ways to leave it:
    at each of its tokens the likeliest other tokens, and all the rest."""
    thoughts: Sequence[Thought] | None = None
    """What the student writes of each question."""
    samples: Sequence[Sequence[str]] | None = None
    """The answers with which several sampled explanations of each question end. Equal answers are
    equal texts; an empty text stands for an explanation that ends with no answer."""
    losses: FloatArray | None = None
    """Mean negative log-likelihood of each question's response given the question, and of the
    response alone, (N, 2)."""
    embeddings: FloatArray | None = None
    """The student's last hidden state at the end of each question, (N, d)."""
    annotated: FloatArray | None = None
    """The same of the questions that are annotated already, (M, d); comes with `embeddings`. None
    or empty as long as there are none."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, indices: Sequence[int]) -> Pool:
        """Return the pool of some of the questions, in the given order."""
        return replace(
            self,
            ids=[self.ids[index] for index in indices],
            answers=_items(self.answers, indices),
            thoughts=_items(self.thoughts, indices),
            samples=_items(self.samples, indices),
            losses=_rows(self.losses, indices),
            embeddings=_rows(self.embeddings, indices),
        )


def _items(values: Sequence[Item] | None, indices: Sequence[int]) -> list[Item] | None:
    return None if values is None else [values[index] for index in indices]


def _rows(values: FloatArray | None, indices: Sequence[int]) -> FloatArray | None:
    return None if values is None else values[np.asarray(indices, np.int64)]


@dataclass(frozen=True, slots=True)
class AnswerSampling:
    """How the explanations behind `Pool.samples` are sampled."""

    count: int = 5
    """Explanations per question, at least one."""
    temperature: float = 1.0
    """Temperature of the next token's distribution, above 0."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens whose probabilities sum to at least this."""


def seeded_number(seed: int, id: str) -> float:
    """Return a number from 0 to below 1 that depends on a seed and a question's id alone.

    It is the same in every order of the pool, in every process and on every machine.
    """
    digest = hashlib.sha256(f"{seed} {id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Selector(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.selectors`: says which questions of a pool to annotate.

    The result depends on the pool's content and the seed, not on the order of the questions. A
    selector without `whole_pool` gets the pool in parts, and a question's score depends on that
    question alone.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Pool` that it reads, of `POOL_FIELDS`; nothing else is computed."""
    whole_pool: ClassVar[bool] = False
    """Whether its rule compares questions: then `scores` and `choose` get all questions at once,
    and what it needs of them must fit into memory."""

    @property
    def sampling(self) -> AnswerSampling:
        """How explanations are sampled, if it needs `samples`."""
        return AnswerSampling()

    @abstractmethod
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        """Return a finite score of each question, (N,).

        The higher the score, the sooner it is annotated.

        Args:
            pool: questions, with the fields that the selector needs; its arrays are read-only.
            seed: seeds what is random, for example through `seeded_number`.
        """

    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        """Return the indices of the questions to annotate, all different.

        By default, they are those with the highest scores. Ties are broken by a digest of the seed
        and the id. A selector that wants them to be diverse overrides this method.

        Args:
            scores: of every question, (N,).
            pool: all questions; the fields that the selector needs are there if it declares
                `whole_pool`, otherwise only the ids are.
            count: number of questions, at most N.
            seed: seeds what is random.
        """
        order = sorted(
            range(len(pool)), key=lambda i: (-float(scores[i]), seeded_number(seed, pool.ids[i]))
        )
        return order[:count]
