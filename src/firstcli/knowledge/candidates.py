"""Knowledge over candidates: the teacher's probability of each whole candidate of a question.

A question has one position, the answer position. Its k outcomes are the most likely candidates, by
their indices, and the tail is every other response. Candidates are texts, so teacher and student
may have different tokenizers: here the indices become the student's tokens.

The student's certain positions, before and after the answer position, learn the tokens of the
label. Its probability of a whole candidate is then that of the token at the answer position, which
learns the teacher's probability of the whole candidate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import EncodedSample, answer_only
from firstcli.knowledge.store import KnowledgeSource
from firstcli.knowledge.top_k import TopK

CandidateTokens = Mapping[str, tuple[int, ...]]
"""The token of each candidate at the answer position, by sample id."""


def top_candidates(log_probs: Sequence[float], width: int) -> TopK:
    """Return the most likely candidates of one question; `token_ids` are their indices.

    Candidates exclude one another, so their probabilities sum to at most 1. If rounding makes the
    sum larger, they are divided by it, and nothing is left for the tail.

    Args:
        log_probs: the log-probability of each whole candidate after the prompt, (C,), finite.
        width: the number of outcomes, k. Less likely candidates join the tail; if there are fewer
            candidates, indices of C and more fill the row up, with probability 0.

    Returns:
        One position.
    """
    given = np.asarray(log_probs, np.float64)
    total = np.logaddexp.reduce(given)
    given = given - max(total, 0.0)
    order = np.argsort(-given, kind="stable")
    with np.errstate(divide="ignore"):
        outside = np.log(-np.expm1(min(total, 0.0)))
    indices = np.arange(width)
    values = np.full(width, -np.inf)
    indices[: len(order)], values[: len(order)] = order[:width], given[order[:width]]
    log_tail = np.logaddexp.reduce([outside, *given[order[width:]]])
    return TopK(
        indices[None].astype(np.int32),
        values[None].astype(np.float32),
        np.array([log_tail], np.float32),
    )


class CandidateKnowledge:
    """Stored knowledge over candidates, in the tokens of a student's samples.

    Outcomes of probability 0 that fill a row up get arbitrary tokens, none twice in a row.
    """

    def __init__(self, stored: KnowledgeSource, candidates: CandidateTokens) -> None:
        """Read the candidates of every sample as tokens.

        Args:
            stored: the knowledge, by candidate index.
            candidates: each candidate's token, under the tokenizer of the samples of `of`.
        """
        self._stored, self._candidates = stored, candidates
        self.top_k = stored.top_k

    def of(self, sample: EncodedSample) -> TopK:
        """Return the knowledge of a question at all its supervised positions.

        Raises:
            UserError: there is none.
        """
        known = self._stored.of(answer_only(sample))
        whole = _certain(sample.targets, self.top_k)
        assert sample.answer_position is not None
        place = sample.answer_position - sample.start
        whole.token_ids[place] = _tokens(known.token_ids[0], self._candidates[sample.id])
        whole.log_probs[place], whole.log_tail[place] = known.log_probs[0], known.log_tail[0]
        return whole


def _certain(targets: npt.NDArray[np.int32], top_k: int) -> TopK:
    """Return positions at which the label, (T,), has probability 1."""
    others = np.arange(top_k - 1, dtype=np.int32)
    token_ids = np.column_stack([targets, others + (others >= targets[:, None])])
    log_probs = np.full(token_ids.shape, -np.inf, np.float32)
    log_probs[:, 0] = 0.0
    return TopK(token_ids, log_probs, np.full(len(targets), -np.inf, np.float32))


def _tokens(indices: npt.NDArray[np.int32], candidates: tuple[int, ...]) -> list[int]:
    """Return the tokens of candidates, and different ones for indices beyond the last."""
    used = set(candidates)
    free = (token for token in range(len(used) + len(indices)) if token not in used)
    count = len(candidates)
    return [candidates[i] if i < count else next(free) for i in indices.tolist()]
