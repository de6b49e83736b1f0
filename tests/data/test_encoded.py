"""An encoded store equals a list of its samples, and its index answers without reading them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.data.encoded import EncodedStore, counts_of, has_answer_position, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.stages.scoring import split_into_shards

NOWHERE = Path("/no/such/folder")  # the spool is then in the system's temporary folder


@st.composite
def encoded(draw: st.DrawFn) -> EncodedSample:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
    start = draw(st.integers(1, len(ids)))
    answer_position = draw(st.none() | st.integers(1, len(ids)))
    id = draw(st.text(max_size=5) | st.just("\ud800"))
    return EncodedSample(id, np.array(ids, np.int32), start, answer_position)


@st.composite
def with_gaps(draw: st.DrawFn) -> EncodedSample:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=12))
    positions = draw(st.sets(st.integers(1, len(ids) - 1), min_size=1))
    id = draw(st.text(max_size=5) | st.just("\ud800"))
    return EncodedSample.supervised_at(id, np.array(ids, np.int32), np.array(sorted(positions)))


def values(row: EncodedSample) -> tuple[object, ...]:
    supervised = row.positions.tolist(), row.targets.tolist()
    return row.id, row.input_ids.tolist(), row.start, row.answer_position, row.gaps, *supervised


@given(st.data())
def test_supervised_positions_are_those_that_were_given(data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 99), min_size=2, max_size=12))
    positions = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), min_size=1)))
    row = EncodedSample.supervised_at("a", np.array(ids, np.int32), np.array(positions))
    assert row.positions.tolist() == positions
    assert row.targets.tolist() == [ids[position] for position in positions]
    assert row.targets.dtype == np.int32
    assert row.start == positions[0] and row.input_ids.tolist() == ids[: positions[-1] + 1]
    assert all(first < end for first, end in row.gaps)
    assert counts_of([row]).tolist() == [len(positions)]


@settings(deadline=None)
@given(st.lists(encoded() | with_gaps(), max_size=8), st.data())
def test_samples_and_index_equal_those_of_a_list(
    rows: list[EncodedSample], data: st.DataObject
) -> None:
    store = EncodedStore(iter(rows), NOWHERE)
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    part = store.where(np.array(kept, bool))
    kept_rows = [row for row, keep in zip(rows, kept, strict=True) if keep]
    for stored, listed in ((store, rows), (part, kept_rows)):
        assert [values(row) for row in stored] == [values(row) for row in listed]
        assert all(row.input_ids.dtype == np.int32 for row in stored)
        assert lengths_of(stored).tolist() == lengths_of(listed).tolist()
        assert counts_of(stored).tolist() == counts_of(listed).tolist()
        assert has_answer_position(stored).tolist() == has_answer_position(listed).tolist()
    assert part.indices.tolist() == np.flatnonzero(kept).tolist()


@settings(deadline=None)
@given(st.lists(encoded() | with_gaps(), min_size=1, max_size=12, unique_by=lambda row: row.id))
def test_shards_are_cut_alike(rows: list[EncodedSample]) -> None:
    """From a store as from a list, in any order: longest first, then by id."""
    expected = sorted(rows, key=lambda row: (-len(row.input_ids), row.id))
    for given_rows in (rows, EncodedStore(rows, NOWHERE), EncodedStore(rows[::-1], NOWHERE)):
        [shard] = split_into_shards(given_rows)
        assert [values(row) for row in shard] == [values(row) for row in expected]
