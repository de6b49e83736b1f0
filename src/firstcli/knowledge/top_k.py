"""The top-k log-probabilities of one sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TopK:
    """What the teacher knows about one sample, at its N supervised positions."""

    token_ids: npt.NDArray[np.int32]  # (N, k)
    log_probs: npt.NDArray[np.float32]  # (N, k)
    log_tail: npt.NDArray[np.float32]  # (N,)

    def first(self, k: int) -> TopK:
        """Keep the k most likely tokens; the others join the tail."""
        if k >= self.log_probs.shape[1]:
            return self
        others = np.exp(self.log_probs[:, k:], dtype=np.float64).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_tail = np.logaddexp(self.log_tail, np.log(others)).astype(np.float32)
        return TopK(self.token_ids[:, :k], self.log_probs[:, :k], log_tail)
