"""Evaluation records: derived columns, lossless files and refused input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstcli.errors import UserError
from firstcli.metrics import summarize
from firstcli.metrics.records import EvalRecords


def some_records(*, truth: bool = True) -> EvalRecords:
    return EvalRecords.from_log_probs(
        ids=["q1", "q2", "ä/3"],
        answers=[0, 2, 1],
        log_probs=[np.log([0.5, 0.3]), np.log([0.1, 0.1, 0.05]), [-math.inf, -1.0]],
        truth=[[0.6, 0.4], [0.2, 0.3, 0.5], [0.0, 1.0]] if truth else None,
    )


def test_derived_columns() -> None:
    records = some_records()
    assert len(records) == 3
    assert records.count.tolist() == [2, 3, 2]
    assert records.log_probs.shape == (3, 3) and np.isneginf(records.log_probs[0, 2])
    assert records.prediction.tolist() == [0, 0, 1]  # the first of equals
    assert records.correct.tolist() == [True, False, True]
    assert records.tie.tolist() == [False, True, False]
    np.testing.assert_allclose(records.confidence, [0.625, 0.4, 1.0])
    assert records.confidence_full is not None and records.candidate_mass is not None
    np.testing.assert_allclose(records.confidence_full, [0.5, 0.1, math.exp(-1)])
    np.testing.assert_allclose(records.candidate_mass, [0.8, 0.25, math.exp(-1)])
    np.testing.assert_allclose(records.probabilities.sum(axis=1), 1.0)
    assert records.p_right is not None and records.p_right.tolist() == [0.6, 0.2, 1.0]
    assert some_records(truth=False).p_right is None


def test_candidates_of_tiny_mass_renormalise_exactly() -> None:
    records = EvalRecords.from_log_probs(["a"], [0], [[-800.0, -800.0 + math.log(3)]])
    assert records.candidate_mass is not None and records.candidate_mass[0] == 0.0
    assert records.confidence_full is not None and records.confidence_full[0] == 0.0
    assert records.confidence[0] == pytest.approx(0.75)


def test_rounding_above_certainty_stays_a_probability() -> None:
    records = EvalRecords.from_log_probs(["a"], [0], [[1e-7, -20.0]])
    assert records.confidence_full is not None and records.confidence_full[0] == 1.0
    assert summarize(records, "full", 10).ece == 0.0


@pytest.mark.parametrize("truth", [True, False])
def test_saving_and_loading_is_lossless(tmp_path: Path, truth: bool) -> None:
    path = tmp_path / "a=b" / "first.parquet"  # data set readers read this name as a column
    path.parent.mkdir()
    records = some_records(truth=truth)
    records.save(path, {"model": "first"})
    loaded = EvalRecords.load(path)
    assert loaded.ids == records.ids
    for name in ("answer", "count", "log_probs", "prediction", "correct", "confidence", "tie"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(records, name))
    assert (loaded.truth is None) == (not truth)
    assert summarize(loaded, "full", 10) == summarize(records, "full", 10)
    assert [p.name for p in path.parent.iterdir()] == ["first.parquet"]


def test_the_file_is_plain_parquet_for_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "first.parquet"
    some_records().save(path, {"model": "first"})
    table = pq.ParquetFile(path).read()
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string",
        "answer": "int32",
        "log_probs": "list<element: double>",
        "log_probs_whole": "list<element: double>",
        "truth": "list<element: double>",
        "prediction": "int32",
        "correct": "bool",
        "confidence": "double",
        "confidence_full": "double",
        "candidate_mass": "double",
        "tie": "bool",
    }
    assert table["log_probs"].to_pylist()[1] == np.log([0.1, 0.1, 0.05]).tolist()
    assert table.schema.metadata[b"model"] == b"first"


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        some_records().save(tmp_path / name, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_saving_replaces_the_file_and_never_writes_into_it(tmp_path: Path) -> None:
    path, reader = tmp_path / "first.parquet", tmp_path / "reader"
    some_records().save(path, {})
    before = path.read_bytes()
    reader.hardlink_to(path)  # like a process that has the file open
    some_records(truth=False).save(path, {})
    assert reader.read_bytes() == before != path.read_bytes()


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "first.parquet"
    some_records().save(path, {})
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        some_records(truth=False).save(path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["first.parquet"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1.0, math.nan], "NaN"),
        ([-math.inf, -math.inf], "probability zero"),
        ([-0.1, -0.1], "more than 1"),
        ([], "no candidates"),
        ([-1.0], "not one of the candidates"),
    ],
)
def test_impossible_rows_are_refused_by_id(row: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        EvalRecords.from_log_probs(["good", "bad"], [0, 1], [[-1.0, -2.0], row])
    assert "'bad'" in str(error.value) and "'good'" not in str(error.value)


@pytest.mark.parametrize("row", [None, [1.0], [0.7, 0.7], [1.5, -0.5], [math.nan, 1.0]])
def test_impossible_truth_is_refused_by_id(row: list[float] | None) -> None:
    with pytest.raises(UserError, match="'bad'"):
        EvalRecords.from_log_probs(
            ["good", "bad"],
            [0, 1],
            [[-1.0, -2.0]] * 2,
            [[0.5, 0.5], row],  # type: ignore[list-item]
        )


def test_an_answer_before_the_first_candidate_is_refused() -> None:
    with pytest.raises(UserError, match="not one of the candidates"):
        EvalRecords.from_log_probs(["a"], [-2], [[-1.0, -2.0]])


@pytest.mark.parametrize("truth", [True, False])
def test_questions_without_a_right_candidate(tmp_path: Path, truth: bool) -> None:
    zeros = [[0.0, 0.0], [0.0, 0.0, 0.0]]
    records = EvalRecords.from_log_probs(
        ["a", "b"], [-1, -1], [[-1.0, -2.0], [-2.0] * 3], zeros if truth else None
    )
    assert not records.answerable and not records.correct.any() and some_records().answerable
    records.save(tmp_path / "x", {})
    loaded = EvalRecords.load(tmp_path / "x")
    assert not loaded.answerable and loaded.answer.tolist() == [-1, -1]


def test_all_or_none_of_the_questions_have_a_right_candidate() -> None:
    with pytest.raises(UserError, match=r"no right candidate.*'b'"):
        EvalRecords.from_log_probs(["a", "b"], [1, -1], [[-1.0, -2.0]] * 2)
    with pytest.raises(UserError, match="not a distribution"):
        EvalRecords.from_log_probs(["a"], [-1], [[-1.0, -2.0]], [[0.5, 0.5]])


def test_candidates_alone_are_renormalised_without_probabilities_in_the_vocabulary(
    tmp_path: Path,
) -> None:
    rows = [[3.0, 2.0], [-50.0, -51.0, -math.inf]]  # unnormalised or tiny
    records = EvalRecords.from_log_probs(["a", "b"], [0, 1], rows, scope="candidates")
    assert records.confidence_full is None and records.candidate_mass is None
    assert records.shown("full") is None and records.shown("candidates") is records.confidence
    np.testing.assert_allclose(np.exp(records.log_probs).sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(records.confidence, [1 / (1 + math.exp(-1))] * 2)
    records.save(tmp_path / "x", {})
    loaded = EvalRecords.load(tmp_path / "x")
    assert loaded.scope == "candidates" and loaded.shown("full") is None
    np.testing.assert_array_equal(loaded.log_probs, records.log_probs)
    assert summarize(loaded, "candidates", 10) == summarize(records, "candidates", 10)


def test_files_of_version_1_have_the_scope_vocabulary(tmp_path: Path) -> None:
    some_records().save(tmp_path / "x", {})
    table = pq.ParquetFile(tmp_path / "x").read()
    old = table.replace_schema_metadata({b"firstcli.records.version": b"1"})
    pq.write_table(old, tmp_path / "x")
    assert EvalRecords.load(tmp_path / "x").scope == "vocabulary"


def test_ids_are_unique_and_there_is_at_least_one() -> None:
    with pytest.raises(UserError, match="'a'"):
        EvalRecords.from_log_probs(["a", "a"], [0, 0], [[-1.0, -2.0]] * 2)
    with pytest.raises(UserError, match="empty"):
        EvalRecords.from_log_probs([], [], [])
    with pytest.raises(ValueError, match="one entry"):
        EvalRecords.from_log_probs(["a"], [0, 1], [[-1.0, -2.0]])


def rewrite(path: Path, change: str) -> None:
    some_records().save(path, {})
    table = pq.ParquetFile(path).read()
    metadata = table.schema.metadata
    if change == "drop":
        table = table.drop_columns(["log_probs"])
    elif change == "type":
        table = table.set_column(1, "answer", pa.array(["x", "y", "z"]))
    elif change == "null":
        table = table.set_column(0, "id", pa.array(["a", None, "c"]))
    elif change == "number":
        table = table.set_column(1, "answer", pa.array([0, 9, 1]))
    elif change == "newer":
        metadata = {b"firstcli.records.version": b"999"}
    elif change == "foreign":
        metadata = {}
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "'log_probs' is missing"),
        ("type", "wrong type"),
        ("null", "'id' is missing or has empty cells"),
        ("number", "'q2'"),
        ("newer", "upgrade"),
        ("foreign", "does not contain evaluation records"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "first.parquet"
    rewrite(path, change)
    with pytest.raises(UserError, match=message) as error:
        EvalRecords.load(path)
    assert str(path) in str(error.value)


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "first.parquet"
    with pytest.raises(UserError, match=r"first\.parquet"):
        EvalRecords.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"first\.parquet"):
        EvalRecords.load(path)
    some_records().save(path, {})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"first\.parquet"):
        EvalRecords.load(path)


def test_questions_with_many_candidates_are_lossless(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [np.log(random.dirichlet(np.ones(n)) * 0.9) for n in range(2, 27)]
    records = EvalRecords.from_log_probs([f"q{i}" for i in range(25)], [1] * 25, rows)
    records.save(tmp_path / "x", {})
    loaded = EvalRecords.load(tmp_path / "x")
    assert loaded.log_probs.shape == (25, 26)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(loaded.log_probs[i, : len(row)], row)
