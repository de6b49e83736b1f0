"""Selection of questions that cover the pool."""

from __future__ import annotations

import numpy as np

from firstcli.api import FloatArray, PluginOptions, Pool, Selector, seeded_number

_ROWS = 4096
"""Questions whose distances are computed at a time."""


class CoreSet(Selector[PluginOptions]):
    """Chooses questions that together cover the pool: each is close to one of them.

    Greedy k-centre (Sener and Savarese 2018, arXiv 1708.00489) on the student's last hidden states,
    with Euclidean distances: the next question is always the one that is farthest from all centres,
    which are the annotated and the chosen questions. The largest distance that remains is at most
    twice the smallest possible one. The score is the distance from the nearest annotated question;
    as long as there is none, from the mean of the pool.
    """

    needs = frozenset({"embeddings"})
    whole_pool = True

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.embeddings is not None
        if pool.annotated is None or not len(pool.annotated):
            # In the order of the ids, so that the sum does not depend on the order of the pool.
            order = sorted(range(len(pool)), key=lambda i: pool.ids[i])
            return _distances(pool.embeddings, pool.embeddings[order].mean(axis=0))
        nearest = np.full(len(pool), np.inf)
        for centre in pool.annotated:
            np.minimum(nearest, _distances(pool.embeddings, centre), out=nearest)
        return nearest

    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        assert pool.embeddings is not None
        known = pool.annotated is not None and len(pool.annotated) > 0
        ties = np.array([seeded_number(seed, id) for id in pool.ids])
        nearest = np.array(scores, np.float64)
        chosen: list[int] = []
        while len(chosen) < count:
            farthest = np.flatnonzero(nearest == nearest.max())
            best = int(farthest[ties[farthest].argmin()])
            distances = _distances(pool.embeddings, pool.embeddings[best])
            # The mean of the pool was no centre: from now on, the first chosen question is.
            nearest = distances if not (known or chosen) else np.minimum(nearest, distances)
            chosen.append(best)
            nearest[chosen] = -1.0  # below every distance
        return chosen


def _distances(points: FloatArray, centre: FloatArray) -> FloatArray:
    """Return the distance of each point (N, d) from a centre (d,)."""
    parts = [
        np.linalg.norm(points[start : start + _ROWS] - centre, axis=1)
        for start in range(0, len(points), _ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)
