"""Choosing the questions of a round: scores of the whole pool, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from firstcli.api import FloatArray, Pool, Sample
from firstcli.plugins.selectors import CheckedSelector
from firstcli.runtime.files import atomic_write

Scoring = Callable[[CheckedSelector, Sequence[Sample]], Iterator[tuple[Pool, FloatArray]]]
"""Yields a pool part by part, with the scores of the questions of each, (N,)."""


def scored(
    path: Path, key: str, questions: Sequence[Sample], selector: CheckedSelector, score: Scoring
) -> tuple[Pool, FloatArray]:
    """Return the pool to choose from, and the score of every question, (N,).

    A finished file of scores is read again, unless the selector also chooses by what the student
    says. Without that, the pool has nothing but ids.

    Args:
        path: the file of the scores.
        key: what they depend on.
        questions: the questions.
        selector: the selector.
        score: asks it for the scores.
    """
    ids = [str(question.id) for question in questions]
    if not selector.whole_pool and (known := _read(path, key, ids)) is not None:
        return Pool(ids), known
    pool, scores = Pool(ids), list[FloatArray]()
    for part, values in score(selector, questions):
        scores.append(values)
        pool = part if selector.whole_pool else pool
    _write(path, key, ids, np.concatenate(scores))
    return pool, np.concatenate(scores)


class ChoiceOrder:
    """The order in which a round's questions are annotated, part by part.

    A selector may want the questions of a round to differ from each other, so all parts follow one
    choice: a longer one is asked for when it is at its end.
    """

    def __init__(
        self, selector: CheckedSelector, pool: Pool, scores: FloatArray, seed: int
    ) -> None:
        """Choose nothing yet.

        Args:
            selector: chooses.
            pool: the questions.
            scores: of each question, (N,).
            seed: draws what is random.
        """
        self._selector, self._pool, self._scores, self._seed = selector, pool, scores, seed
        self._known: list[str] = []

    def after(self, taken: Sequence[str], count: int) -> list[str]:
        """Return the ids of the questions to annotate next.

        Args:
            taken: ids of those that this order has returned before, in order.
            count: how many to choose, at most as many as are left.
        """
        most = len(taken) + count
        if most > len(self._known):
            # A power of two: little is chosen again and again, and a command that was killed
            # asks for the same choices as one that was not.
            longer = min(1 << (most - 1).bit_length(), len(self._pool))
            chosen = self._selector.choose(self._scores, self._pool, longer, self._seed)
            known = set(taken)
            ids = (self._pool.ids[place] for place in chosen)
            self._known = [*taken, *(id for id in ids if id not in known)]
        return self._known[len(taken) : most]


def _write(path: Path, key: str, ids: Sequence[str], scores: FloatArray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": pa.array(ids, pa.string()), "score": pa.array(scores, pa.float64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({"key": key})
    atomic_write(path, lambda file: pq.write_table(table, file))


def read_scores(path: Path, key: str) -> dict[str, float]:
    """Return the score of every question, by id; nothing if the file depends on something else.

    Args:
        path: the file of the scores.
        key: what they depend on.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        return {}
    if (table.schema.metadata or {}).get(b"key", b"").decode() != key:
        return {}
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def _read(path: Path, key: str, ids: Sequence[str]) -> FloatArray | None:
    known = read_scores(path, key)
    return np.array([*known.values()], np.float64) if [*known] == [*ids] else None
