"""The top-k log-probabilities of one or several samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TopK:
    """A teacher's k most likely tokens at N supervised positions, most likely first."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    log_probs: npt.NDArray[np.float32]  # (N, k)
    log_tail: npt.NDArray[np.float32]  # (N,) of all other tokens together

    @classmethod
    def concatenated(cls, parts: Sequence[TopK]) -> TopK:
        """Join the positions of several samples."""
        return cls(
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.log_probs for part in parts]),
            np.concatenate([part.log_tail for part in parts]),
        )

    def distance(self, other: TopK) -> float:
        """Return the total variation to another answer, averaged over positions.

        The outcomes are this one's k tokens and all others. A token that the other one lacks has
        at most the probability of its last token there.
        """
        before, now = np.exp(self.log_probs, dtype=float), np.exp(other.log_probs, dtype=float)
        same = self.token_ids[:, :, None] == other.token_ids[:, None, :]  # (N, k, k)
        matched = np.where(same, now[:, None, :], 0.0).sum(-1)  # (N, k)
        matched = np.where(same.any(-1), matched, np.minimum(before, now[:, -1:]))
        rest = np.abs(before.sum(1) - matched.sum(1))
        return float((np.abs(before - matched).sum(1) + rest).mean() / 2)

    def first(self, k: int) -> TopK:
        """Keep the k most likely tokens; the rest join the tail."""
        if k >= self.log_probs.shape[1]:
            return self
        rest = np.exp(self.log_probs[:, k:], dtype=np.float64).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_tail = np.logaddexp(self.log_tail, np.log(rest)).astype(np.float32)
        return TopK(self.token_ids[:, :k], self.log_probs[:, :k], log_tail)
