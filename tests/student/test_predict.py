"""A student's answers: equal to `first eval`, whatever the batch, and from the folder alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firstcli
from firstcli.errors import UserError
from firstcli.metrics.records import EvalRecords
from firstcli.student.load import TrainedStudent, load_student
from support import command_line
from support.tickets import LABELS, TrainedRun, tickets

pytest_plugins = ["support.students"]

TEXTS = [row["text"] for row in tickets(30, 90)]
TOLERANCE = 1e-5


@pytest.mark.parametrize(("raw", "name"), [(True, "plain"), (False, "plain+T")])
def test_answers_equal_the_records_of_eval(classifier: TrainedRun, raw: bool, name: str) -> None:
    records = EvalRecords.load(classifier.run / "eval" / "tickets" / f"{name}.parquet")
    predictions = load_student(classifier.folder, raw=raw).predict(TEXTS)
    np.testing.assert_allclose(predictions.probabilities, records.probabilities, atol=TOLERANCE)
    np.testing.assert_allclose(predictions.confidences, records.confidence, atol=TOLERANCE)
    assert predictions.labels == [LABELS[i] for i in records.prediction]
    assert predictions.candidates == [LABELS] * 30
    assert predictions.errors == [None] * 30


def test_the_temperature_changes_confidences_and_no_label(
    classifier: TrainedRun, student: TrainedStudent
) -> None:
    raw = load_student(classifier.folder, raw=True).predict(TEXTS)
    recalibrated = student.predict(TEXTS)
    assert raw.labels == recalibrated.labels
    assert np.abs(raw.confidences - recalibrated.confidences).max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(12)),
    batch_size=st.none() | st.integers(1, 13),
    bad=st.sets(st.integers(0, 11), max_size=4),
)
def test_a_row_does_not_depend_on_the_others(
    student: TrainedStudent, order: list[int], batch_size: int | None, bad: set[int]
) -> None:
    alone = student.predict(TEXTS[:12], batch_size=1)
    texts = ["" if i in bad else TEXTS[i] for i in order]
    together = student.predict(texts, batch_size)
    for place, i in enumerate(order):
        if i in bad:
            assert together.labels[place] is None
            assert np.isnan(together.probabilities[place]).all()
        else:
            assert together.labels[place] == alone.labels[i]
            np.testing.assert_allclose(
                together.probabilities[place], alone.probabilities[i], atol=TOLERANCE
            )


def test_probabilities_sum_to_one_and_rank_the_candidates(student: TrainedStudent) -> None:
    predictions = student.predict(TEXTS)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1)
    best = predictions.probabilities.argmax(axis=1)
    assert predictions.labels == [LABELS[i] for i in best]
    ranked = predictions.ranked(0)
    assert [p for _, p in ranked] == sorted((p for _, p in ranked), reverse=True)
    assert ranked[0] == (predictions.labels[0], predictions.confidences[0])


def test_bad_rows_have_an_error_each(student: TrainedStudent) -> None:
    rows = [
        TEXTS[0],
        " ",
        {"text": 1.5},
        {"other": "x"},
        {"text": None},
        "long " * 400,
        {"text": 7},
    ]
    predictions = student.predict(rows)
    assert [error is None for error in predictions.errors] == [True, *[False] * 5, True]
    expected = ("no text", "expected text", "no column 'text'", "no text", "too long")
    for error, part in zip(predictions.errors[1:6], expected, strict=True):
        assert error is not None and part in error
    assert np.isnan(predictions.confidences).tolist() == [False, *[True] * 5, False]
    assert predictions.candidates[1] == ()


def test_if_no_row_can_be_answered_there_is_an_error(student: TrainedStudent) -> None:
    with pytest.raises(UserError, match="none of the 2 rows can be answered"):
        student.predict([{"txt": "a"}, {"txt": "b"}])


def test_no_texts_have_no_answers(student: TrainedStudent) -> None:
    predictions = student.predict([])
    assert (len(predictions), predictions.probabilities.shape) == (0, (0, 0))


def test_one_text_is_one_row(student: TrainedStudent) -> None:
    assert student.predict(TEXTS[0]).labels == student.predict(TEXTS[:1]).labels


def test_a_text_with_json_is_a_row_if_it_has_the_columns(student: TrainedStudent) -> None:
    spelt = json.dumps({"text": TEXTS[0]})
    assert student.predict([spelt]).labels == student.predict([TEXTS[0]]).labels
    other = student.predict(['{"other": "charged"}'])  # a text that happens to be JSON
    assert other.errors == [None]


def test_a_window_boundary_changes_nothing(
    student: TrainedStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = student.predict(TEXTS)
    monkeypatch.setattr("firstcli.student.load.WINDOW", 7)
    cut = student.predict(TEXTS)
    np.testing.assert_allclose(cut.probabilities, whole.probabilities, atol=TOLERANCE)
    assert cut.labels == whole.labels


def test_ragged_choices_are_padded_with_nan() -> None:
    from firstcli.student.answering import Predictions

    def part(width: int) -> Predictions:
        probabilities = np.full((1, width), 1 / width)
        return Predictions(["a"], np.array([1 / width]), probabilities, [("a",) * width], [None])

    joined = Predictions.joined([part(2), part(3)])
    np.testing.assert_array_equal(joined.probabilities[0], [0.5, 0.5, np.nan])
    assert joined.probabilities.shape == (2, 3)


def test_a_student_that_chooses_does_not_write(student: TrainedStudent) -> None:
    assert student.labels == LABELS
    with pytest.raises(UserError, match="use `predict`"):
        student.generate(TEXTS)


def test_the_python_interface_is_imported_late() -> None:
    code = "import firstcli, sys; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    result = command_line.finish(command_line.python(code))
    assert (result.code, result.out) == (0, "[]\n"), result.err
    assert firstcli.load_student is load_student
    with pytest.raises(AttributeError, match="no attribute 'load_teacher'"):
        firstcli.load_teacher  # noqa: B018


FOLDER_ALONE = """
import sys
for name in ("firstcli.recipe", "firstcli.stages", "firstcli.training", "firstcli.pipeline"):
    sys.modules[name] = None  # importing it fails
import firstcli
print(firstcli.load_student(sys.argv[1]).predict(sys.argv[2:]).labels)
"""


def test_a_moved_folder_needs_neither_recipe_nor_run(
    classifier: TrainedRun, student: TrainedStudent, tmp_path: Path
) -> None:
    folder = classifier.alone(tmp_path / "elsewhere")
    result = command_line.finish(command_line.python(FOLDER_ALONE, folder, *TEXTS[:2]))
    assert result.code == 0, result.err
    assert result.out.strip() == str(student.predict(TEXTS[:2]).labels)
    assert sys.modules["firstcli"] is firstcli


def test_damaged_and_missing_folders_are_explained(classifier: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_student(tmp_path / "missing")
    folder = classifier.alone(tmp_path / "student")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_student(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load_student(folder)


def test_a_recalibrator_that_is_not_installed_is_named(
    classifier: TrainedRun, tmp_path: Path
) -> None:
    folder = classifier.alone(tmp_path / "student")
    content = json.loads((folder / "firstcli.json").read_text())
    content["posthoc"]["name"] = "isotonic-of-others"
    (folder / "firstcli.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"'isotonic-of-others' cannot be used.*--raw"):
        load_student(folder)
    assert load_student(folder, raw=True).predict(TEXTS[:1]).labels[0] in LABELS
