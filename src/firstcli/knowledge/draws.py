"""Random-sampling knowledge (RS-KD, Anshumann et al., ACL 2025, arXiv 2503.16870).

Instead of the teacher's k most likely tokens, a position holds the tokens of N draws from the
teacher's whole distribution p, with replacement. A token that was drawn c times has the weight
c / N, whose expectation is p(token), so the gradient of the cross-entropy with these weights is an
unbiased estimate of that with p. (The paper's importance sampling allows for other distributions to
draw from; for p itself its weights are c / N.)

The store holds the counts themselves, so weights are exact whatever the precision. A row of the
store has one slot per possible token, N at most; slots without a token hold the lowest ids that
were not drawn, with weight 0, because the objectives need distinct ids.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from firstcli.api import FloatArray, IntArray
from firstcli.knowledge.top_k import TopK

Steps = npt.NDArray[np.int16]


def uniforms(id: str, positions: int, draws: int, seed: int) -> FloatArray:
    """Return the random numbers of a sample in [0, 1), (positions, draws), each with 53 bits.

    They depend on the arguments alone, not on batches or processes. What is drawn with them also
    depends on the teacher's probabilities, which batches may change by rounding. A position's
    numbers do not depend on how many positions follow.

    Args:
        id: the sample's id.
        positions: its supervised positions.
        draws: N.
        seed: the recipe's seed.
    """
    key = hashlib.blake2b(f"draws {seed} {id}".encode(), digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(positions * draws)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53).reshape(positions, draws)


def counted(drawn: npt.NDArray[np.integer], width: int) -> TopK:
    """Return the distinct tokens of draws (P, N) with log(c / N), most frequent first.

    Of equally frequent tokens, the one with the lower id is first. Nothing is left for the tail.

    Args:
        drawn: the drawn tokens.
        width: the number of slots, at least the number of distinct tokens of every position, and at
            most the size of the vocabulary.
    """
    positions, draws = drawn.shape
    ordered = np.sort(drawn, axis=1)
    is_first = np.ones(ordered.shape, np.bool_)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rows, _ = np.nonzero(is_first)
    ids = ordered[is_first]
    counts = np.diff(np.flatnonzero(is_first), append=ordered.size)
    order = np.lexsort((ids, -counts, rows))
    ids, counts = ids[order], counts[order]  # the rows stay in order
    slots = np.arange(len(rows)) - np.searchsorted(rows, rows)

    taken = np.zeros((positions, width), np.bool_)
    low = ids < width
    taken[rows[low], ids[low]] = True
    free = np.argsort(taken, axis=1, kind="stable")  # the ids below `width`, free ones first
    distinct = np.bincount(rows, minlength=positions)
    place = np.arange(width) - distinct[:, None]
    token_ids = np.take_along_axis(free, np.maximum(place, 0), axis=1)
    log_weights = np.full((positions, width), -np.inf)
    token_ids[rows, slots] = ids
    log_weights[rows, slots] = np.log(counts / draws)
    return TopK(
        token_ids.astype(np.int32),
        log_weights.astype(np.float32),
        np.full(positions, -np.inf, np.float32),
    )


def counts_of(log_weights: npt.NDArray[np.floating], draws: int) -> IntArray:
    """Return the counts of log(c / N), exactly, as float32 errors are far below 1 / N."""
    counts = np.rint(np.exp(log_weights.astype(np.float64)) * draws)
    return np.asarray(counts, np.int64)


def encode(known: TopK, draws: int) -> Steps:
    """Return the steps to store, (P, k + 1): the counts, and 0 for the tail."""
    counts = counts_of(known.log_probs, draws)
    return np.concatenate([counts, np.zeros_like(counts[:, :1])], axis=1).astype(np.int16)


def decode(steps: Steps, draws: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return log-weights (P, k) and log tails (P,) of steps (P, k + 1)."""
    with np.errstate(divide="ignore"):
        logs = np.log(steps.astype(np.float64) / draws).astype(np.float32)
    return logs[:, :-1], logs[:, -1]


def changed(stored: TopK, again: TopK, draws: int) -> float:
    """Return the share of the draws, over all positions, that gave another token than before."""
    before, now = counts_of(stored.log_probs, draws), counts_of(again.log_probs, draws)
    kept = 0
    for row, (ids, others) in enumerate(zip(stored.token_ids, again.token_ids, strict=True)):
        _, left, right = np.intersect1d(ids, others, assume_unique=True, return_indices=True)
        kept += int(np.minimum(before[row, left], now[row, right]).sum())
    return 1 - kept / (draws * len(before))
