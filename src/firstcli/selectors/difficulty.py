"""Selection by how little the question helps the student to predict the response."""

from __future__ import annotations

import numpy as np

from firstcli.api import FloatArray, PluginOptions, Pool, Selector


class InstructionDifficulty(Selector[PluginOptions]):
    """Chooses the questions whose text helps the student least to predict the response.

    The instruction-following difficulty (IFD) is r = L(response given the question) / L(response
    alone), of the student's mean losses per token. The score is r below 1. A question with r >= 1
    does not help at all, so the two do not fit; it has the score 1 - r and comes after all others.
    If the response alone has no loss, r is 1. Questions with r = 1 have the score 0, and so does
    one with r = 0, whose response the student knows.

    After Li et al. (2024, arXiv 2308.12032), simplified: they first train the model briefly on a
    sample of every cluster of the questions. The questions need responses, which those of the pool
    of `first select` do not have: it refuses this selector.
    """

    needs = frozenset({"losses"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.losses is not None
        given, alone = pool.losses[:, 0], pool.losses[:, 1]
        ratio = np.divide(given, alone, out=np.ones(len(pool)), where=alone > 0)
        return np.where(ratio < 1, ratio, 1 - ratio)
