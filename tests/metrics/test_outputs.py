"""Tables of predictions: every documented form is read, everything else is refused by row."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from firstcli.errors import UserError
from firstcli.metrics import ece, summarize
from firstcli.metrics.outputs import PredictionTable, of_confidences, read_csv, read_npz

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25]])
LABELS = [0, 1, 1]


def write(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def check(table: PredictionTable) -> None:
    """The table holds PROBS and LABELS."""
    assert table.records.probabilities == pytest.approx(PROBS)
    assert table.records.answer.tolist() == LABELS and table.records.scope == "candidates"
    assert not table.only_confidence


@pytest.mark.parametrize(
    ("header", "labels", "classes"),
    [
        (["a", "b", "c", "label"], "abb", ("a", "b", "c")),
        (["prob_a", "prob_b", "prob_c", "y_true"], "abb", ("a", "b", "c")),
        (["P: a", "P: b", "P: c", "Target"], [0, 1, 1], ("a", "b", "c")),
        (["1", "2", "3", "gold"], [1, 2, 2], ("1", "2", "3")),  # names, not numbers from 0
        (["NA", "null", "c", "answer"], ["NA", "null", "null"], ("NA", "null", "c")),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_column_per_class(
    tmp_path: Path,
    header: list[str],
    labels: Sequence[object],
    classes: tuple[str, ...],
    delimiter: str,
) -> None:
    rows = [header, *([*p, y] for p, y in zip(PROBS.tolist(), labels, strict=True))]
    table = read_csv(write(tmp_path / "x.csv", rows, delimiter))
    check(table)
    assert table.classes == classes and not table.has_ids
    assert table.records.ids == ("1", "2", "3")


def test_other_columns_are_left_out(tmp_path: Path) -> None:
    header = ["id", "text", "prob_a", "prob_b", "prob_c", "label", "prediction", "seconds"]
    rows = [
        [f"q{i}", 'a, "quoted"\ntext', *p, y, 0, 1.5]
        for i, (p, y) in enumerate(zip(PROBS.tolist(), LABELS, strict=True))
    ]
    path = write(tmp_path / "x.csv", [header, *rows])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes it
    table = read_csv(path)
    check(table)
    assert table.has_ids and table.records.ids == ("q0", "q1", "q2")


def test_logits_and_rounded_probabilities(tmp_path: Path) -> None:
    shifted = (np.log(PROBS) + np.array([[5.0], [-3.0], [0.0]])).tolist()
    header = ["logit_a", "logit_b", "logit_c", "label"]
    rows = [header, *([*p, y] for p, y in zip(shifted, LABELS, strict=True))]
    check(read_csv(write(tmp_path / "x.csv", rows)))
    rounded = [["a", "b", "c", "label"], [0.333, 0.333, 0.333, "a"]]
    found = read_csv(write(tmp_path / "y.csv", rounded)).records
    assert found.probabilities[0] == pytest.approx([1 / 3] * 3)


def test_confidence_and_correctness(tmp_path: Path) -> None:
    confidence, correct = [0.9, 0.2, 0.4, 1.0, 0.0], [True, False, True, True, False]
    rows: list[Sequence[object]] = [["Confidence", "correct"]]
    rows += zip(confidence, correct, strict=True)
    table = read_csv(write(tmp_path / "x.csv", rows))
    assert table.only_confidence
    records = table.records
    assert records.confidence.tolist() == confidence and records.correct.tolist() == correct
    assert records.probabilities[:, 0] == pytest.approx(confidence)  # below 1/2, too
    found = summarize(records, "candidates", 10)
    assert found.accuracy == 0.6 and found.confidence == pytest.approx(0.5)
    assert found.ece == ece(np.array(confidence), np.array(correct))
    np.savez(tmp_path / "x.npz", confidence=confidence, correct=np.array(correct, int))
    again = read_npz(tmp_path / "x.npz").records
    assert again.confidence.tolist() == confidence and again.correct.tolist() == correct


def test_some_of_the_questions_keep_their_confidence() -> None:
    records = of_confidences(["a", "b"], np.array([0.2, 0.7]), np.array([True, False]))
    kept = records.only({"a"})
    assert kept.confidence.tolist() == [0.2] and kept.correct.tolist() == [True]


@pytest.mark.parametrize(
    ("arrays", "has_ids"),
    [
        ({"probs": PROBS, "labels": LABELS}, False),
        ({"probabilities": PROBS, "y": np.array(LABELS, float)}, False),
        (
            {"logits": np.log(PROBS).astype(np.float32) + 2, "labels": np.array(LABELS, np.uint8)},
            False,
        ),
        ({"log_probs": np.log(PROBS), "target": LABELS, "ids": ["q0", "q1", "q2"]}, True),
        ({"probs": PROBS, "labels": list("abb"), "classes": list("abc")}, False),
    ],
)
def test_arrays(tmp_path: Path, arrays: dict[str, object], has_ids: bool) -> None:
    np.savez_compressed(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    table = read_npz(tmp_path / "x.npz")
    assert table.records.probabilities == pytest.approx(PROBS, abs=1e-6)
    assert table.records.answer.tolist() == LABELS and table.has_ids is has_ids


def test_a_thousand_classes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (500, 1000)).astype(np.float16)
    labels = random.integers(0, 1000, 500)
    np.savez(tmp_path / "x.npz", logits=logits, labels=labels)
    records = read_npz(tmp_path / "x.npz").records
    exact = np.exp(logits.astype(float))
    assert records.probabilities == pytest.approx(exact / exact.sum(axis=1, keepdims=True))
    assert (records.prediction == logits.argmax(axis=1)).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "empty"),
        ([["a", "b", "label"]], "no rows"),
        ([["a", "a", "label"], [0.5, 0.5, "a"]], "'a' occurs more than once"),
        ([["a", "b"], [0.5, 0.5]], "expected a column per class"),
        ([["text", "label"], ["x", "a"]], "expected a column per class"),
        (
            [["a", "b", "label"], [0.5, 0.5, "a"], [0.5, 0.5, "z"]],
            "'label' holds 'z' in data row 2",
        ),
        ([["a", "b", "label"], [0.5, 0.5, 2]], "'label' holds '2' in data row 1"),
        ([["a", "b", "label"], [0.5, 0.5, ""]], "'label' holds '' in data row 1"),
        (
            [["prob_a", "prob_b", "label"], [0.5, 0.5, 0], ["x", 1, 0]],
            "'prob_a' holds 'x' in data row 2",
        ),
        ([["prob_a", "prob_b", "label"], [0.5, "", 0]], "'prob_b' holds no number in data row 1"),
        ([["a", "b", "label"], [0.5, 0.2, 0]], "data row 1 sum to 0.7"),
        ([["a", "b", "label"], [0.5, 0.5, 0], [3.5, -1, 0]], "data row 2 holds 3.5.*logit_cat"),
        ([["confidence", "correct"], [0.5, 1], [1.5, 0]], "'confidence' holds 1.5 in data row 2"),
        ([["confidence", "correct"], [0.5, "maybe"]], "'correct' holds 'maybe' in data row 1"),
        ([["id", "a", "b", "label"], ["x", 0.5, 0.5, 0], ["x", 0.5, 0.5, 0]], "not unique: 'x'"),
        ([["a", "b", "label"], [0.5, 0.5, 0], [0.5, 0.5]], "cannot be read as CSV"),
    ],
)
def test_invalid_tables_are_refused(
    tmp_path: Path, rows: Sequence[Sequence[object]], message: str
) -> None:
    path = write(tmp_path / "x.csv", rows)
    with pytest.raises(UserError, match=message) as error:
        read_csv(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "found the arrays none"),
        ({"probs": PROBS}, "found the arrays 'probs'"),
        ({"probs": PROBS[0], "labels": LABELS}, r"'probs' has the shape \(3,\)"),
        ({"probs": PROBS[:0], "labels": []}, r"'probs' has the shape \(0, 3\)"),
        ({"probs": PROBS, "labels": LABELS[:2]}, "'labels' has 2 entries for 3 rows"),
        ({"probs": PROBS, "labels": np.eye(3)}, r"'labels' has the shape \(3, 3\)"),
        ({"probs": PROBS, "labels": [0, 1, 3]}, "'labels' holds '3' in data row 3"),
        ({"probs": PROBS, "labels": [0, 1, -1]}, "'labels' holds '-1' in data row 3"),
        ({"probs": PROBS, "labels": [0.5, 1, 1]}, "'labels' holds '0.5' in data row 1"),
        ({"probs": PROBS * np.nan, "labels": LABELS}, "data row 1 holds nan"),
        ({"probs": np.array(["x"]), "labels": LABELS}, "'probs' holds <U1"),
        ({"logits": np.log(PROBS) * np.inf, "labels": LABELS}, "logits that are not finite"),
        ({"probs": PROBS, "labels": LABELS, "classes": ["a"]}, "names 1 classes"),
        ({"probs": PROBS, "labels": LABELS, "ids": ["a"]}, "1 ids for 3 rows"),
        ({"confidence": [2.0], "correct": [1]}, "'confidence' holds 2 in data row 1"),
        ({"probs": np.array([None]), "labels": LABELS}, "'probs' cannot be read.*not objects"),
    ],
)
def test_invalid_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, object], message: str
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as error:
        read_npz(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz: is not a readable NPZ file"):
        read_npz(path)
    (tmp_path / "x.csv").write_bytes(b"a,b,label\n\xff\xfe,1,a\n")
    with pytest.raises(UserError, match=r"x\.csv"):
        read_csv(tmp_path / "x.csv")
