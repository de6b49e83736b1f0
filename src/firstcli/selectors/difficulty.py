"""Selection by how little the question helps the student with the response."""

from __future__ import annotations

import numpy as np

from firstcli.api import FloatArray, PluginOptions, Pool, Selector


class InstructionDifficulty(Selector[PluginOptions]):
    """Chooses the questions that help the student least to say the response; those need responses.

    The instruction-following difficulty (IFD) is r = L(response given the question) / L(response
    alone), of the student's mean losses per token (Li et al. 2024, arXiv 2308.12032). The score is
    r below 1. A question with r >= 1 makes the response less likely, so the two do not fit; it has
    the score 1 - r and comes after all others. If the response alone has no loss, r is 1.
    """

    needs = frozenset({"losses"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.losses is not None
        given, alone = pool.losses[:, 0], pool.losses[:, 1]
        ratio = np.divide(given, alone, out=np.ones(len(pool)), where=alone > 0)
        return np.where(ratio < 1, ratio, 1 - ratio)
