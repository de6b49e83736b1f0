"""The part of the contract that concerns selectors: which questions the teacher annotates next."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from firstcli.api.contract import FloatArray, OptionsT, PluginBase


@dataclass(frozen=True, slots=True)
class Thought:
    """What the student says of one question in words."""

    text: str
    """Its explanation and answer, greedy."""
    log_probs: FloatArray
    """(L,) of its tokens under the student."""
    steps: tuple[tuple[int, int], ...]
    """Token range of each step, half-open."""
    answers_after: FloatArray
    """(S + 1, n): the distribution of the answer given the first j steps, j = 0..S."""


@dataclass(frozen=True, slots=True)
class Pool:
    """N questions, never with their labels, and what the student says of them.

    Only what the selector's `needs` name is computed.
    """

    ids: Sequence[str]
    answers: Sequence[FloatArray] | None = None
    """(n_i,) each: the distribution of the question's answer."""
    thoughts: Sequence[Thought] | None = None
    samples: Sequence[Sequence[str]] | None = None
    """The answers with which n sampled explanations end."""
    losses: FloatArray | None = None
    """(N, 2): mean loss of the response given the question, and alone."""
    embeddings: FloatArray | None = None
    """(N, d)."""


class Selector(PluginBase[OptionsT]):
    """A plugin of the group `firstcli.selectors`: scores a pool and chooses from it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Pool` that it reads."""

    @abstractmethod
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        """Return a score for every question, (N,); higher scores are chosen first."""

    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        """Return the indices of the chosen questions, the first choice first.

        By default these are the highest scores; equal ones are ordered by a digest of seed and id.

        Args:
            scores: what `scores` returned, (N,).
            pool: the questions.
            count: how many to choose; at most N.
            seed: draws what is random.
        """

        def rank(index: int) -> tuple[float, bytes]:
            text = f"{seed} {pool.ids[index]}".encode("utf-8", "surrogatepass")
            return -float(scores[index]), blake2b(text, digest_size=8).digest()

        return sorted(range(len(pool.ids)), key=rank)[:count]
