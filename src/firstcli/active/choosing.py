"""Choosing the questions of a round: scores of the whole pool, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from firstcli.api import FloatArray, Pool, Selector
from firstcli.errors import UserError
from firstcli.recipe.references import SelectorRef
from firstcli.runtime.files import atomic_write


def scored(path: Path, key: str, ref: SelectorRef, pool: Pool, seed: int) -> FloatArray:
    """Return the score of every question, (N,); a finished file of scores is read again.

    Args:
        path: the file of the scores.
        key: what they depend on.
        ref: the selector.
        pool: the questions.
        seed: draws what is random.

    Raises:
        UserError: the selector returned something else.
    """
    if (known := _read(path, key, pool.ids)) is not None:
        return known
    scores = _checked(ref, ref.build(), pool, seed)
    _write(path, key, pool.ids, scores)
    return scores


def _checked(
    ref: SelectorRef, selector: Selector, pool: Pool, seed: int  # type: ignore[type-arg]
) -> FloatArray:
    scores = np.asarray(selector.scores(pool, seed), np.float64)
    if scores.shape != (len(pool.ids),):
        raise UserError(
            f"selector '{ref.name}': `scores` returned an array of shape {scores.shape} for "
            f"{len(pool.ids)} questions; correct the plugin"
        )
    if not np.isfinite(scores).all():
        place = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(
            f"selector '{ref.name}': the score of question '{pool.ids[place]}' is "
            f"{scores[place]}; correct the plugin"
        )
    return scores


def chosen(ref: SelectorRef, pool: Pool, scores: FloatArray, count: int, seed: int) -> list[int]:
    """Return the places of the chosen questions.

    Args:
        ref: the selector.
        pool: the questions.
        scores: of each question, (N,).
        count: how many to choose.
        seed: draws what is random.

    Raises:
        UserError: the selector returned something else.
    """
    places = [int(place) for place in ref.build().choose(scores, pool, count, seed)]
    if len(places) != count or len(set(places)) != count:
        raise UserError(
            f"selector '{ref.name}': `choose` returned {len(places)} questions, {len(set(places))} "
            f"of them different, instead of {count}; correct the plugin"
        )
    if any(not 0 <= place < len(pool.ids) for place in places):
        raise UserError(
            f"selector '{ref.name}': `choose` returned a place outside the {len(pool.ids)} "
            "questions; correct the plugin"
        )
    return places


def _write(path: Path, key: str, ids: Sequence[str], scores: FloatArray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": pa.array(ids, pa.string()), "score": pa.array(scores, pa.float64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.replace_schema_metadata({"key": key})
    atomic_write(path, lambda file: pq.write_table(table, file))


def _read(path: Path, key: str, ids: Sequence[str]) -> FloatArray | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid):
        return None
    stated = (table.schema.metadata or {}).get(b"key", b"").decode()
    if stated != key or table["id"].to_pylist() != list(ids):
        return None
    return np.asarray(table["score"].to_numpy(), np.float64)
