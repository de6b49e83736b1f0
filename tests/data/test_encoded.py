"""Token rows from a spool: the rows of a list, with an index that answers without reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.data.encoded import EncodedStore, counts_of, has_answer_positions, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.stages.extract import split_into_shards

NOWHERE = Path("/no/such/folder")  # the spool then lies among the system's temporary files


@st.composite
def encoded(draw: st.DrawFn) -> EncodedSample:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
    start = draw(st.integers(1, len(ids)))
    decisive = draw(st.none() | st.integers(1, len(ids)))
    return EncodedSample(draw(st.text(max_size=5)), np.array(ids, np.int32), start, decisive)


def values(row: EncodedSample) -> tuple[object, ...]:
    return row.id, row.input_ids.tolist(), row.start, row.answer_position, row.targets.tolist()


@settings(deadline=None)
@given(st.lists(encoded(), max_size=8), st.data())
def test_rows_and_index_are_those_of_a_list(rows: list[EncodedSample], data: st.DataObject) -> None:
    held = EncodedStore(iter(rows), NOWHERE)
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    part = held.where(np.array(kept, bool))
    few = [row for row, keep in zip(rows, kept, strict=True) if keep]
    for some, others in ((held, rows), (part, few)):
        assert [values(row) for row in some] == [values(row) for row in others]
        assert all(row.input_ids.dtype == np.int32 for row in some)
        assert lengths_of(some).tolist() == lengths_of(others).tolist()
        assert counts_of(some).tolist() == counts_of(others).tolist()
        assert has_answer_positions(some) == has_answer_positions(others)
    assert part.numbers.tolist() == np.flatnonzero(kept).tolist()


@settings(deadline=None)
@given(st.lists(encoded(), min_size=1, max_size=12, unique_by=lambda row: row.id))
def test_shards_are_cut_alike(rows: list[EncodedSample]) -> None:
    """Longest first, ids decide among the rest, from an index as from a list, in any order."""
    expected = sorted(rows, key=lambda row: (-len(row.input_ids), row.id))
    for given_rows in (rows, EncodedStore(rows, NOWHERE), EncodedStore(rows[::-1], NOWHERE)):
        [shard] = split_into_shards(given_rows)
        assert [values(row) for row in shard] == [values(row) for row in expected]
