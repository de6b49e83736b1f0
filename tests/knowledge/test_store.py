"""The knowledge store returns what was stored, by id, and refuses damaged or foreign shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge import shards, store
from firstcli.knowledge.codec import Precision
from firstcli.knowledge.shards import StoreFormat
from firstcli.knowledge.store import JoinedKnowledge, Knowledge
from firstcli.knowledge.top_k import TopK
from support.paths import DOCS

K = 3
BOUND = {"standard": 0.005, "compact": 0.025}
PRECISIONS: tuple[Precision, ...] = ("standard", "compact")
FORMAT = StoreFormat(K, "standard", "train", shards=1, teacher="t", tokenizer="z")


def some_row(number: int) -> EncodedSample:
    generator = np.random.default_rng(number)
    ids = generator.integers(0, 100, 3 + number % 7, dtype=np.int32)
    return EncodedSample(f"id {number}/ä", ids, 1 + number % 2, None)


def some_knowledge(row: EncodedSample, seed: int, largest: int = 100) -> TopK:
    generator = np.random.default_rng(seed)
    count = len(row.targets)
    p = generator.dirichlet(np.ones(K + 1), count)
    p[:, :K] = -np.sort(-p[:, :K])
    return TopK(
        generator.integers(0, largest, (count, K), dtype=np.int32),
        np.log(p[:, :K]).astype(np.float32),
        np.log(p[:, K]).astype(np.float32),
    )


def some_rows(count: int) -> list[EncodedSample]:
    return [some_row(number) for number in range(count)]


def test_joined_parts_answer_for_their_own_samples(tmp_path: Path) -> None:
    labelled, others = some_rows(5), [some_row(number) for number in range(5, 9)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    known = write(folders[0], labelled, 5) | write(folders[1], others, 4)
    joined = JoinedKnowledge([Knowledge(folder) for folder in folders])
    assert joined.top_k == K
    for row in (*others, *labelled):
        np.testing.assert_array_equal(joined.of(row).token_ids, known[row.id].token_ids)
    with pytest.raises(UserError, match=r"no knowledge of sample 'id 9/ä'"):
        joined.of(some_row(9))


def write(
    folder: Path, rows: Sequence[EncodedSample], shard_rows: int, **changes: Any
) -> dict[str, TopK]:
    """Write shards; return the exact knowledge by id."""
    known = {row.id: some_knowledge(row, number) for number, row in enumerate(rows)}
    cuts = [rows[first : first + shard_rows] for first in range(0, len(rows), shard_rows)]
    for index, shard in enumerate(cuts):
        path = shards.shard_path(folder, index)
        format = replace(FORMAT, shards=len(cuts), **changes)
        shards.write_shard(path, shard, [known[row.id] for row in shard], format)
    return known


def assert_within(stored: TopK, exact: TopK, precision: Precision) -> None:
    np.testing.assert_array_equal(stored.token_ids, exact.token_ids)
    np.testing.assert_allclose(
        np.exp(stored.log_probs), np.exp(exact.log_probs), 0, BOUND[precision]
    )
    np.testing.assert_allclose(np.exp(stored.log_tail), np.exp(exact.log_tail), 0, BOUND[precision])
    assert (np.diff(stored.log_probs) <= 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shard_rows", [1, 4, 100])
def test_every_sample_gets_its_own_back(
    tmp_path: Path, shard_rows: int, precision: Precision
) -> None:
    """In any order, and for any number of samples per shard."""
    rows = some_rows(11)
    known = write(tmp_path, rows, shard_rows, precision=precision)
    opened = Knowledge(tmp_path)
    assert len(opened) == 11 and opened.top_k == K
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(11)]
    opened.check(shuffled)
    for row, found in zip(shuffled, map(opened.of, shuffled), strict=True):
        assert_within(found, known[row.id], precision)
        assert found.token_ids.shape == (len(row.targets), K)
        assert found.token_ids.dtype == np.int32
        assert found.log_probs.dtype == found.log_tail.dtype == np.float32


def test_content_and_metadata_of_the_format_are_pinned(tmp_path: Path) -> None:
    """Shards of earlier releases must stay readable and must not be written again."""
    write(tmp_path, some_rows(9), 9)
    facts = shards.shard_facts(shards.shard_path(tmp_path, 0))
    assert facts and facts["content"] == "1c3daf74e54bb8eb0f86eadfd4d334d6"
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
    assert digest.hexdigest() == "6fcd46643ca4054f29921eb02ac03810"


@pytest.mark.parametrize("largest", [2**16 - 1, 2**16, 2**18])
def test_token_ids_of_any_vocabulary(tmp_path: Path, largest: int) -> None:
    row = EncodedSample("x", np.arange(4, dtype=np.int32), 2, None)
    known = replace(some_knowledge(row, 0), token_ids=np.array([[0, 1, largest]] * 2, np.int32))
    shards.write_shard(shards.shard_path(tmp_path, 0), [row], [known], FORMAT)
    np.testing.assert_array_equal(Knowledge(tmp_path).of(row).token_ids, known.token_ids)


def test_extremes_survive(tmp_path: Path) -> None:
    """A tail of 1e-30 and none at all."""
    row = EncodedSample("x", np.arange(4, dtype=np.int32), 2, None)
    known = TopK(
        np.full((2, K), 7, np.int32),
        np.array([[-1e-30, -69.0, -70.0], [-0.5, -1.2, -2.3365]], np.float32),
        np.array([-69.07755, -np.inf], np.float32),
    )
    shards.write_shard(shards.shard_path(tmp_path, 0), [row], [known], FORMAT)
    found = Knowledge(tmp_path).of(row)
    np.testing.assert_allclose(found.log_tail, known.log_tail, atol=0.3)
    np.testing.assert_allclose(found.log_probs[0], known.log_probs[0], atol=0.3)
    assert_within(found, known, "standard")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In any order of the samples, and when written again."""
    (tmp_path / "again").mkdir()
    rows = some_rows(9)
    known = {row.id: some_knowledge(row, number) for number, row in enumerate(rows)}
    for order, path in ((rows, tmp_path / "a"), (rows[::-1], tmp_path / "again" / "a")):
        shards.write_shard(path, order, [known[row.id] for row in order], FORMAT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "again" / "a").read_bytes()


# Alignment: whose knowledge it is.


def test_samples_of_other_tokens_are_refused(tmp_path: Path) -> None:
    """Equal ids are not enough: different tokens or a different border misalign everything."""
    rows = some_rows(4)
    write(tmp_path, rows, 2)
    opened, row = Knowledge(tmp_path), rows[3]
    opened.check(rows)
    changed_ids = row.input_ids.copy()
    changed_ids[0] += 1
    for changed in (
        replace(row, input_ids=changed_ids),
        replace(row, start=row.start + 1),
        replace(row, input_ids=row.input_ids[:-1]),
    ):
        message = r"shard-00001.*different tokens.*the prompt, the text.*first extract --force"
        with pytest.raises(UserError, match=message):
            opened.check([*rows[:3], changed])
    with pytest.raises(UserError, match=r"'id 3/ä' had different tokens"):
        opened.of(replace(row, input_ids=row.input_ids[:-1]))


def test_other_samples_are_refused(tmp_path: Path) -> None:
    rows = some_rows(5)
    write(tmp_path, rows[:4], 2)
    opened = Knowledge(tmp_path)
    with pytest.raises(UserError, match=r"other samples: 1 of 5, such as 'id 4/ä', are not in it"):
        opened.check(rows)
    with pytest.raises(UserError, match=r"other samples: 2 of its 4 are no longer in the data"):
        opened.check(rows[:2])
    with pytest.raises(UserError, match="no knowledge of sample 'id 4/ä'"):
        opened.of(rows[4])


def test_the_answer_position_is_not_part_of_the_digest() -> None:
    row = some_row(0)
    assert shards.sample_digest(row) == shards.sample_digest(replace(row, answer_position=2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top_k", 4, "it was made with top_k = 3, not 4"),
        ("precision", "compact", "it was made with precision = standard, not compact"),
        ("split", "validation", "it was made with split = train, not validation"),
        ("tokenizer", "y", "it was made with a different tokenizer"),
        ("teacher", "u", "it was made with a different teacher"),
    ],
)
def test_knowledge_made_with_other_settings_is_refused(
    tmp_path: Path, name: str, value: Any, message: str
) -> None:
    write(tmp_path, some_rows(2), 1)
    expected = StoreFormat(K, "standard")
    Knowledge(tmp_path, replace(expected, **{name: getattr(FORMAT, name)}))
    with pytest.raises(UserError, match=rf"shard-00000.*{message}; run `first extract --force`"):
        Knowledge(tmp_path, replace(expected, **{name: value}))


def test_shards_of_two_extractions_are_refused(tmp_path: Path) -> None:
    write(tmp_path, some_rows(2), 1)
    first = shards.shard_path(tmp_path, 0).read_bytes()
    write(tmp_path, some_rows(2), 1, teacher="another")
    shards.shard_path(tmp_path, 0).write_bytes(first)
    with pytest.raises(UserError, match=r"shard-00001.*a different teacher"):
        Knowledge(tmp_path)


def test_a_sample_in_two_shards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [some_row(1), some_row(1)], 1)
    with pytest.raises(UserError, match="it contains a sample twice"):
        Knowledge(tmp_path)


# Metadata.


def test_the_metadata_of_a_shard(tmp_path: Path) -> None:
    rows = some_rows(4)
    write(tmp_path, rows, 3)
    facts = shards.shard_facts(shards.shard_path(tmp_path, 1))
    assert (
        facts
        and facts.items()
        >= {
            **replace(FORMAT, shards=2).stated(),
            "version": shards.VERSION,
            "samples": 1,
            "positions": len(rows[3].targets),
            **shards.digests(rows[3:]),
        }.items()
    )
    assert shards.shard_facts(shards.shard_path(tmp_path, 9)) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_digests_distinguish_ids_and_tokens() -> None:
    """Also if the concatenated ids or tokens of several samples are equal."""
    row = some_row(0)
    same, renamed = shards.digests([row]), shards.digests([replace(row, id="other")])
    assert same["sample_ids"] != renamed["sample_ids"]
    assert same["sample_tokens"] == renamed["sample_tokens"]
    ab, a_b = ([replace(row, id=id) for id in ids] for ids in (["a", "b", "cd"], ["a", "bc", "d"]))
    assert shards.digests(ab)["sample_ids"] != shards.digests(a_b)["sample_ids"]
    assert shards.digests(ab) == shards.digests(ab[::-1])


def test_a_summary_aggregates_the_shards(tmp_path: Path) -> None:
    rows = some_rows(11)
    known = write(tmp_path, rows, 4)
    found = store.summary(tmp_path)
    tails = np.concatenate([known[row.id].log_tail for row in rows])
    assert found["samples"] == 11 and found["positions"] == len(tails)
    assert found["mean_top_k_mass"] == pytest.approx(-np.expm1(tails).mean(), rel=1e-5)
    opened = Knowledge(tmp_path)
    off = np.concatenate(
        [np.exp(opened.of(row).log_probs) - np.exp(known[row.id].log_probs) for row in rows]
    )
    assert found["max_probability_error"] == pytest.approx(np.abs(off).max(), rel=1e-3)
    assert found["mean_probability_error"] == pytest.approx(np.abs(off).mean(), rel=1e-3)
    taken = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert found["bytes_per_position"] == taken / len(tails)


# Damage.


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = shards.shard_path(tmp_path, 0)
    path.write_bytes(content)
    assert shards.shard_facts(path) is None
    with pytest.raises(UserError, match=r"shard-00000.*damaged; run `first extract --repair`"):
        Knowledge(tmp_path)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path, some_rows(2), 1)
    path = shards.shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert shards.shard_facts(path) is None
    with pytest.raises(UserError, match=r"shard-00001.*damaged; run `first extract --repair`"):
        Knowledge(tmp_path)


def test_one_flipped_byte_is_seen_wherever_it_is(tmp_path: Path) -> None:
    """Unless it changes nothing that is read, such as the writer's name."""
    rows = some_rows(6)
    write(tmp_path, rows, 6)
    path = shards.shard_path(tmp_path, 0)
    whole, right = path.read_bytes(), shards.read_shard(path)
    seen = 0
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = shards.read_shard(path)
        except UserError as error:
            assert "shard-00000.parquet" in str(error) and "damaged" in str(error)
            seen += 1
            continue
        assert found.facts == right.facts and found.ids == right.ids
        np.testing.assert_array_equal(found.known.token_ids, right.known.token_ids)
        np.testing.assert_array_equal(found.known.log_probs, right.known.log_probs)
        np.testing.assert_array_equal(found.known.log_tail, right.known.log_tail)
    assert seen > len(whole) / 7 / 2


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_missing_shard_is_named(tmp_path: Path, lost: int) -> None:
    write(tmp_path, some_rows(4), 1)
    shards.shard_path(tmp_path, lost).unlink()
    message = rf"1 of 4 shards.*missing: 'shard-0000{lost}.parquet'; run `first extract --repair`"
    with pytest.raises(UserError, match=message):
        Knowledge(tmp_path)


def test_no_knowledge_at_all_and_too_much(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no knowledge; run `first extract`"):
        Knowledge(tmp_path)
    write(tmp_path, some_rows(4), 1)
    write(tmp_path, some_rows(2), 1)
    with pytest.raises(UserError, match=r"shard-00003.*a different extraction"):
        Knowledge(tmp_path)


def test_a_parquet_file_of_another_program_is_refused(tmp_path: Path) -> None:
    write(tmp_path, some_rows(1), 1)
    path = shards.shard_path(tmp_path, 0)
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    assert shards.shard_facts(path) is None
    with pytest.raises(UserError, match=r"shard-00000.*damaged"):
        Knowledge(tmp_path)


@pytest.mark.parametrize(("version", "message"), [(99, "newer firstcli"), (1, "older firstcli")])
def test_a_different_format_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, message: str
) -> None:
    with monkeypatch.context() as other:
        other.setattr(shards, "VERSION", version)
        write(tmp_path, some_rows(1), 1)
    with pytest.raises(UserError, match=rf"shard-00000.*{message}"):
        Knowledge(tmp_path)


# Other programs read shards as docs/knowledge.md describes.


def frame_of(name: str, path: Path) -> Any:
    """Return what another program reads, as a pandas data frame."""
    pandas, reader = pytest.importorskip("pandas"), pytest.importorskip(name)
    if name == "pandas":
        return pandas.read_parquet(path)
    if name == "polars":
        return pandas.DataFrame(reader.read_parquet(path).to_dict(as_series=False))
    if name == "duckdb":
        found = reader.sql(f"SELECT * FROM '{path}'")
        return pandas.DataFrame(found.fetchall(), columns=found.columns)
    cache = str(path.parent / "cache")
    found = reader.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
    return pandas.DataFrame(found[:])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["pandas", "polars", "duckdb", "datasets"])
def test_other_programs_read_it_as_documented(
    tmp_path: Path, name: str, precision: Precision
) -> None:
    rows = some_rows(6)
    write(tmp_path, rows, 6, precision=precision)
    path = shards.shard_path(tmp_path, 0)
    frame = frame_of(name, path)
    grid = json.loads(pq.read_metadata(path).metadata[b"firstcli"])["grid"]
    # From here as in docs/knowledge.md.
    tokens = np.frombuffer(b"".join(frame.token_ids), "<u2").reshape(len(frame), -1)
    steps = frame.filter(like="step_").to_numpy(np.int64)
    rest = np.where(steps[:, 0] == 0, 0, -1)
    levels = np.c_[np.cumsum(steps[:, -2::-1], axis=1)[:, ::-1], steps[:, -1]]
    levels[:, 0] -= 1
    u, m = levels - grid["offset"], grid["linear"]
    root = np.where(u >= m, u, m * np.exp(np.minimum(u / m - 1, 0))) / grid["levels"]
    p = np.where(levels <= 1, 0, root**2)  # (N, k + 1): the k tokens, then all others
    at = (np.arange(len(p)), rest)
    p[at] = 0
    p[at] = np.maximum(1 - p.sum(axis=1), p.max(axis=1))
    p /= p.sum(axis=1, keepdims=True)
    # Up to here.
    opened = Knowledge(tmp_path)
    assert list(frame.columns) == ["id", "token_ids", "step_1", "step_2", "step_3", "step_tail"]
    for row in rows:
        mine = (frame.id == row.id).to_numpy()
        np.testing.assert_array_equal(tokens[mine], opened.of(row).token_ids)
        np.testing.assert_allclose(p[mine, :-1], np.exp(opened.of(row).log_probs), 1e-5)
        np.testing.assert_allclose(p[mine, -1], np.exp(opened.of(row).log_tail), 1e-5)


def test_the_documented_example_is_the_one_that_was_tested() -> None:
    """docs/knowledge.md contains the lines between the two comments above."""
    source = Path(__file__).read_text("utf-8")
    tested = source.split("# From here as in docs/knowledge.md.\n")[1].split("    # Up to here.")[0]
    page = (DOCS / "knowledge.md").read_text("utf-8")
    for line in tested.strip().splitlines():
        assert line.strip() in page, line


@pytest.mark.parametrize(
    ("samples", "positions", "candidates", "size"),
    [(4888, 11_116, 6, 64_400), (374, 1060, 12, 7918), (1002, 3006, 2, 7642), (100, 287, 12, 4023)],
)
def test_the_size_of_answers_is_foreseen(
    samples: int, positions: int, candidates: int, size: int
) -> None:
    """Against shards of teachers that were fine-tuned on TREC, on tickets and on SST-2."""
    each = store.bytes_per_answer(positions / samples, candidates, 5, "standard")
    shards = store.bytes_of_shards(positions, 30 * samples)
    assert samples * each + shards == pytest.approx(size, rel=0.25)
