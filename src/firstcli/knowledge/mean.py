"""The mean of several teachers' knowledge, computed when it is read.

Each token's probability is averaged over the teachers, and the k largest are kept. Where a token is
not among a teacher's top k, its probability is unknown; it counts as 0 there, and stays in that
teacher's tail. The mean of the tokens is therefore a lower bound, and that of the tail an upper
bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.store import KnowledgePart
from firstcli.knowledge.top_k import TopK

Log = npt.NDArray[np.float64]


class MeanKnowledge:
    """The mean over teachers of the knowledge of one part; all have the same k and samples."""

    def __init__(self, teachers: Sequence[KnowledgePart]) -> None:
        """Average the knowledge of teachers, at least one."""
        self._teachers = teachers
        self.top_k = teachers[0].top_k

    def __contains__(self, sample: EncodedSample) -> bool:
        return sample in self._teachers[0]

    def of(self, sample: EncodedSample) -> TopK:
        """Return the mean of all teachers' knowledge of a sample.

        Raises:
            UserError: a teacher has none, or it has a different number of positions.
        """
        return mean_of([teacher.of(sample) for teacher in self._teachers])


def mean_of(known: Sequence[TopK]) -> TopK:
    """Average the top k of several teachers at the same N positions.

    The order of the teachers does not matter, not even for rounding, and the mean of equals is
    exactly each of them. Of equally likely tokens, the one with the lower id is first.
    """
    count, (positions, top_k) = len(known), known[0].log_probs.shape
    ids = np.concatenate([each.token_ids for each in known], axis=1)  # (N, count * k)
    values = np.concatenate([each.log_probs for each in known], axis=1).astype(np.float64)
    rows = np.broadcast_to(np.arange(positions)[:, None], ids.shape)
    order = np.lexsort((values.ravel(), ids.ravel(), rows.ravel()))
    ids, values, rows = ids.ravel()[order], values.ravel()[order], rows.ravel()[order]
    is_first = np.ones(len(ids), np.bool_)
    is_first[1:] = (ids[1:] != ids[:-1]) | (rows[1:] != rows[:-1])
    starts = np.flatnonzero(is_first)
    ids, rows, means = ids[starts], rows[starts], _means_of_groups(values, starts, count)

    order = np.lexsort((ids, -means, rows))  # all tokens of a row, most likely first
    ids, rows, means = ids[order], rows[order], means[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = rank < top_k
    tails = np.sort(np.stack([each.log_tail for each in known], axis=1).astype(np.float64), axis=1)
    log_tail = _means_of_groups(tails.ravel(), np.arange(positions) * count, count)
    np.logaddexp.at(log_tail, rows[~kept], means[~kept])
    return TopK(
        ids[kept].reshape(positions, top_k).astype(np.int32),
        means[kept].reshape(positions, top_k).astype(np.float32),
        log_tail.astype(np.float32),
    )


def _means_of_groups(values: Log, starts: npt.NDArray[np.intp], count: int) -> Log:
    """Return log(sum(exp(group)) / count) of groups that begin at `starts`, (groups,)."""
    largest = np.maximum.reduceat(values, starts)
    shift = np.where(np.isneginf(largest), 0.0, largest)
    sizes = np.diff(starts, append=len(values))
    sums = np.add.reduceat(np.exp(values - np.repeat(shift, sizes)), starts)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(sums / count))
