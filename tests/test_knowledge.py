"""The knowledge store: what goes in comes out, by id, and nothing half-written or foreign does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from firstcli import knowledge
from firstcli.encoding import Encoded
from firstcli.errors import UserError
from firstcli.knowledge import Knowledge, TopK

K = 3
FACTS = {"top_k": K, "dtype": "float32", "teacher": "t", "split": "train"}


def some_row(number: int) -> Encoded:
    generator = np.random.default_rng(number)
    ids = generator.integers(0, 100, 3 + number % 7, dtype=np.int32)
    return Encoded(f"id {number}/ä", ids, 1 + number % 2, None)


def some_knowledge(row: Encoded, seed: int) -> TopK:
    generator = np.random.default_rng(seed)
    count = len(row.targets)
    p = generator.dirichlet(np.ones(K + 1), count)
    p[:, :K] = -np.sort(-p[:, :K])
    return TopK(
        generator.integers(0, 100, (count, K), dtype=np.int32),
        np.log(p[:, :K]).astype(np.float32),
        np.log(p[:, K]).astype(np.float32),
    )


def write(folder: Path, rows: Sequence[Encoded], shard_rows: int) -> dict[str, TopK]:
    """Write shards and return what was written, by id."""
    known = {row.id: some_knowledge(row, number) for number, row in enumerate(rows)}
    for index, first in enumerate(range(0, len(rows), shard_rows)):
        shard = rows[first : first + shard_rows]
        path = knowledge.shard_path(folder, index)
        knowledge.write_shard(path, shard, [known[row.id] for row in shard], FACTS)
    return known


def assert_same(some: TopK, other: TopK) -> None:
    np.testing.assert_array_equal(some.token_ids, other.token_ids)
    np.testing.assert_array_equal(some.log_probs, other.log_probs)
    np.testing.assert_array_equal(some.log_tail, other.log_tail)


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_every_sample_gets_its_own_back(tmp_path: Path, shard_rows: int) -> None:
    """Bit for bit, in whatever order and however the rows were cut into shards."""
    rows = [some_row(number) for number in range(11)]
    known = write(tmp_path, rows, shard_rows)
    store = Knowledge(tmp_path)
    assert len(store) == 11 and store.top_k == K
    assert store.positions == sum(len(row.targets) for row in rows)
    order = np.random.default_rng(0).permutation(11)
    for row, found in zip(
        [rows[i] for i in order], store.all_of([rows[i] for i in order]), strict=True
    ):
        assert_same(found, known[row.id])
        assert found.token_ids.shape == (len(row.targets), K)


def test_extremes_survive(tmp_path: Path) -> None:
    """A tail of 1e-30, none at all, and the largest token id of a vocabulary of 2^18."""
    row = Encoded("x", np.arange(4, dtype=np.int32), 2, None)
    known = TopK(
        np.full((2, K), 2**18, np.int32),
        np.array([[-1e-30, -69.0, -70.0], [-0.5, -1.0, -2.0]], np.float32),
        np.array([-69.07755, -np.inf], np.float32),
    )
    knowledge.write_shard(knowledge.shard_path(tmp_path, 0), [row], [known], FACTS)
    assert_same(Knowledge(tmp_path).of(row), known)


def test_a_sample_of_other_tokens_is_refused(tmp_path: Path) -> None:
    """The same id is not enough: other tokens or another border would misalign everything."""
    rows = [some_row(number) for number in range(4)]
    write(tmp_path, rows, 2)
    store, row = Knowledge(tmp_path), rows[3]
    others = row.input_ids.copy()
    others[0] += 1
    for changed in (
        Encoded(row.id, others, row.start, None),
        Encoded(row.id, row.input_ids, row.start + 1, None),
        Encoded(row.id, row.input_ids[:-1], row.start, None),
    ):
        with pytest.raises(UserError, match=r"belongs to other tokens.*first extract --force"):
            store.of(changed)
    with pytest.raises(UserError, match="no knowledge of sample 'unknown'"):
        store.of(Encoded("unknown", row.input_ids, row.start, None))


def test_the_decisive_position_is_not_part_of_the_digest() -> None:
    row = some_row(0)
    again = Encoded(row.id, row.input_ids, row.start, 2)
    assert knowledge.sample_digest(row) == knowledge.sample_digest(again)


def test_a_shard_says_what_it_is(tmp_path: Path) -> None:
    rows = [some_row(number) for number in range(4)]
    write(tmp_path, rows, 3)
    assert knowledge.shard_facts(knowledge.shard_path(tmp_path, 1)) == {
        "version": knowledge.VERSION,
        "rows": 1,
        **FACTS,
    }
    assert knowledge.shard_facts(knowledge.shard_path(tmp_path, 9)) is None
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_broken_shard_is_no_shard(tmp_path: Path, content: bytes) -> None:
    path = knowledge.shard_path(tmp_path, 0)
    path.write_bytes(content)
    assert knowledge.shard_facts(path) is None
    with pytest.raises(UserError, match=r"shard-00000.*first extract --force"):
        Knowledge(tmp_path)


def test_a_shard_cut_short_is_no_shard(tmp_path: Path) -> None:
    write(tmp_path, [some_row(1)], 1)
    path = knowledge.shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    assert knowledge.shard_facts(path) is None


def test_another_program_s_parquet_is_no_shard(tmp_path: Path) -> None:
    write(tmp_path, [some_row(1)], 1)
    path = knowledge.shard_path(tmp_path, 0)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert knowledge.shard_facts(path) is None


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(knowledge, "VERSION", 99)
        write(tmp_path, [some_row(1)], 1)
    with pytest.raises(UserError, match="newer firstcli"):
        Knowledge(tmp_path)
