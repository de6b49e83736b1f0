"""Readers of tables of predictions that other programs write: CSV, TSV and NPZ.

A table has one row per question, with one of two contents:

- a probability (or a logit) of each class, and the right class;
- the confidence of the prediction, and whether it is right.

`docs/judge.md` lists the names of columns and arrays.
"""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from firstcli.api import BoolArray, FloatArray
from firstcli.errors import UserError, shortened
from firstcli.metrics.records import EvalRecords

if TYPE_CHECKING:
    import pyarrow as pa

LABELS = ("label", "labels", "target", "targets", "y", "y_true", "gold", "answer", "true_label")
IDS = ("id", "ids", "example_id", "sample_id", "question_id", "doc_id")
CONFIDENCES = ("confidence", "confidences", "conf")
CORRECT = ("correct", "is_correct", "right")
PROBABILITIES = ("probs", "probabilities", "proba")
LOGITS = ("logits", "log_probs", "logprobs")
CLASSES = ("classes", "class_names")
"""Names of columns of a CSV file, or of arrays of an NPZ file."""
_OTHERS = ("prediction", "predicted", "pred", "y_pred", "group", "index", "idx", "")
"""Further columns that hold no probability although they may be numbers."""
_PREFIX = re.compile(r"(p|probs?|proba|probability|logits?|log_?probs?)[_:. -](.+)", re.IGNORECASE)
_SUM_SLACK = 0.01  # of probabilities that were rounded when they were written
_TRUE, _FALSE = ("1", "true", "yes", "1.0"), ("0", "false", "no", "0.0")


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """The content of a file: answers to N questions."""

    records: EvalRecords
    classes: tuple[str, ...] | None
    """The names of the classes, if the file states them."""
    has_ids: bool
    """Whether the file names the questions; otherwise they are numbered from 1."""
    only_confidence: bool
    """Whether the file states no more than confidence and correctness."""


def of_confidences(ids: Sequence[str], confidence: FloatArray, correct: BoolArray) -> EvalRecords:
    """Return records of predictions of which only the confidence is known.

    The two candidates are "the prediction is right" and "it is wrong". Unlike for other questions,
    the first one counts as the prediction even if it is the less likely one.

    Args:
        ids: the questions' ids, N.
        confidence: probability that each prediction is right, (N,).
        correct: whether it is, (N,).
    """
    with np.errstate(divide="ignore"):
        rows = np.log(np.stack([confidence, 1 - confidence], axis=1))
    answers = np.where(correct, 0, 1).tolist()
    records = EvalRecords.from_log_probs(ids, answers, list(rows), scope="candidates")
    return replace(
        records,
        prediction=np.zeros_like(records.prediction),
        correct=np.asarray(correct, dtype=np.bool_),
        confidence=np.asarray(confidence, dtype=np.float64),
        tie=np.zeros(len(records), dtype=np.bool_),
    )


def read_csv(path: Path) -> PredictionTable:
    """Read a CSV or TSV file.

    Raises:
        UserError: it is no table of predictions; the message names the row and the column.
    """
    names = _header(path)
    table = _table(path, names)
    if not len(table):
        raise UserError(f"{path}: contains no rows below the header")
    by_name = {name.strip().casefold(): name for name in names}
    label, id_name = _column(by_name, LABELS), _column(by_name, IDS)
    ids = table[id_name].to_pylist() if id_name else None
    if label:
        columns = _class_columns(table, {label, id_name}, by_name)
        if len(columns) >= 2:
            values = np.stack([_numbers(path, table, name) for name in columns], axis=1)
            kind = "logits" if _is_logit(columns[0]) else "probabilities"
            classes = tuple(map(_class_name, columns))
            right = _answers(path, table[label].to_pylist(), classes, len(classes), label)
            return _classified(path, ids, _log_probs(path, values, kind), right, classes)
    confidence, correct = _column(by_name, CONFIDENCES), _column(by_name, CORRECT)
    if confidence and correct:
        known = _numbers(path, table, confidence)
        right_or_not = _truths(path, table[correct].to_pylist(), correct)
        return _confident(path, ids, known, right_or_not, confidence)
    raise UserError(
        f"{path}: found the columns {shortened(names, 8)}, expected a column per class (such as "
        f"prob_cat) and the right class ({', '.join(LABELS[:3])} ...), or confidence and correct"
    )


def read_npz(path: Path) -> PredictionTable:
    """Read an NPZ file, without unpickling anything.

    Raises:
        UserError: it holds no predictions; the message names the array.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.casefold(): _array(path, file, name) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is not a readable NPZ file ({error})") from error
    id_name = _first(arrays, IDS)
    ids = [str(value) for value in _vector(path, arrays, id_name)] if id_name else None
    scores, label = _first(arrays, PROBABILITIES + LOGITS), _first(arrays, LABELS)
    if scores and label:
        values = _floats(path, arrays[scores], scores)
        if values.ndim != 2 or values.shape[1] < 2 or not len(values):
            raise UserError(
                f"{path}: '{scores}' has the shape {values.shape}, expected (N, C): N rows of "
                "at least two classes"
            )
        kind = "logits" if scores in LOGITS else "probabilities"
        stated = _first(arrays, CLASSES)
        classes = tuple(map(str, _vector(path, arrays, stated))) if stated else None
        if classes is not None and len(classes) != values.shape[1]:
            raise UserError(
                f"{path}: '{stated}' names {len(classes)} classes, but '{scores}' has "
                f"{values.shape[1]} columns"
            )
        given = _vector(path, arrays, label)
        _check_length(path, label, given, values)
        texts = [_whole_number(value) for value in given.tolist()]
        right = _answers(path, texts, classes or (), values.shape[1], label)
        return _classified(path, ids, _log_probs(path, values, kind), right, classes)
    confidence, correct = _first(arrays, CONFIDENCES), _first(arrays, CORRECT)
    if confidence and correct:
        known = _floats(path, _vector(path, arrays, confidence), confidence)
        given = _vector(path, arrays, correct)
        _check_length(path, correct, given, known)
        truths = _truths(path, [_whole_number(value) for value in given.tolist()], correct)
        return _confident(path, ids, known, truths, confidence)
    raise UserError(
        f"{path}: found the arrays {shortened(list(arrays), 8) or 'none'}, expected probs or "
        "logits, and labels; or confidence and correct"
    )


def _header(path: Path) -> list[str]:
    """Return the names of the columns, which must differ."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
    repeated = [name for i, name in enumerate(line) if name in line[:i]]
    if repeated:
        raise UserError(f"{path}: the column {shortened(repeated)} occurs more than once")
    if not line:
        raise UserError(f"{path}: is empty")
    return line


def _delimiter(path: Path) -> str:
    """Return the most frequent of tab, semicolon and comma in the first line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()
    return max(",;\t", key=line.count)


def _table(path: Path, names: Sequence[str]) -> pa.Table:
    """Read all columns; texts stay texts even if they look like something else."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    texts = {*LABELS, *IDS, *CORRECT}
    types = {name: pa.string() for name in names if name.strip().casefold() in texts}
    try:
        return arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(
                delimiter=_delimiter(path), newlines_in_values=True
            ),
            convert_options=arrow_csv.ConvertOptions(column_types=types),
        )
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error


def _class_columns(table: pa.Table, used: set[str | None], by_name: dict[str, str]) -> list[str]:
    """Return the columns with a prefix such as `prob_`, or else all further columns of numbers."""
    import pyarrow.types as kinds

    names = [name for name in table.column_names if name not in used]
    prefixed = [name for name in names if _PREFIX.fullmatch(name.strip())]
    logits = [name for name in prefixed if _is_logit(name)]
    for alike in ([name for name in prefixed if name not in logits], logits):
        if len(alike) >= 2:
            return alike
    others = {by_name[key] for key in (*_OTHERS, *CONFIDENCES, *CORRECT) if key in by_name}
    return [
        name
        for name in names
        if name not in others
        and (kinds.is_floating(table[name].type) or kinds.is_integer(table[name].type))
    ]


def _is_logit(column: str) -> bool:
    found = _PREFIX.fullmatch(column.strip())
    return found is not None and found[1].casefold().startswith("log")


def _class_name(column: str) -> str:
    found = _PREFIX.fullmatch(column.strip())
    return (found[2] if found else column).strip()


def _numbers(path: Path, table: pa.Table, name: str) -> FloatArray:
    """Return a column as numbers, (N,)."""
    for row, value in enumerate(table[name].to_pylist() if _has_gaps(table[name]) else (), 1):
        try:
            float(value)
        except (TypeError, ValueError):
            shown = "holds no number" if value in (None, "") else f"holds '{value}'"
            raise UserError(
                f"{path}: column '{name}' {shown} in data row {row}, expected a number"
            ) from None
    return np.asarray(table[name].cast("float64").to_numpy(), dtype=np.float64)


def _has_gaps(column: pa.ChunkedArray) -> bool:
    import pyarrow.types as kinds

    number = kinds.is_floating(column.type) or kinds.is_integer(column.type)
    return column.null_count > 0 or not number


def _array(path: Path, file: Any, name: str) -> Any:
    try:
        return file[name]
    except ValueError as error:  # an array of objects, which would need pickle
        raise UserError(
            f"{path}: array '{name}' cannot be read ({error}); save numbers or texts, not objects"
        ) from error


def _vector(path: Path, arrays: dict[str, Any], name: str) -> Any:
    array = arrays[name]
    if array.ndim != 1:
        raise UserError(f"{path}: '{name}' has the shape {array.shape}, expected one dimension")
    return array


def _floats(path: Path, array: Any, name: str) -> FloatArray:
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: '{name}' holds {array.dtype}, expected numbers")
    return np.asarray(array, dtype=np.float64)


def _check_length(path: Path, name: str, values: Any, expected: Any) -> None:
    if len(values) != len(expected):
        raise UserError(f"{path}: '{name}' has {len(values)} entries for {len(expected)} rows")


def _whole_number(value: Any) -> str:
    """Return a label as text; 3.0 is written as 3."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first(known: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the first of the names that is known."""
    return next((name for name in names if name in known), None)


def _column(by_name: dict[str, str], names: Sequence[str]) -> str | None:
    """Return the first of the columns that exists, as the file spells it."""
    found = _first(by_name, names)
    return by_name[found] if found else None


def _answers(
    path: Path, labels: Sequence[str | None], classes: tuple[str, ...], count: int, column: str
) -> list[int]:
    """Return the index of the right class of each row: by name, or else by number from 0."""
    by_name = {name: index for index, name in enumerate(classes)}
    texts = ["" if label is None else label.strip() for label in labels]
    if all(text in by_name for text in set(texts)):
        return [by_name[text] for text in texts]
    numbers = {str(index): index for index in range(count)}
    if all(text in numbers for text in set(texts)):
        return [numbers[text] for text in texts]
    known = numbers if texts[0] in numbers and texts[0] not in by_name else by_name or numbers
    row = next(row for row, text in enumerate(texts, 1) if text not in known)
    named = f"the classes {shortened(list(classes), 4)}" if classes else "a class"
    raise UserError(
        f"{path}: '{column}' holds '{texts[row - 1]}' in data row {row}, expected one of {named}, "
        f"or a number from 0 to {count - 1}"
    )


def _truths(path: Path, values: Sequence[str | None], column: str) -> BoolArray:
    texts = ["" if value is None else value.strip().casefold() for value in values]
    for row, text in enumerate(texts, 1):
        if text not in _TRUE + _FALSE:
            raise UserError(
                f"{path}: '{column}' holds '{text}' in data row {row}, expected 1 or 0, or true or "
                "false"
            )
    return np.array([text in _TRUE for text in texts])


def _log_probs(path: Path, values: FloatArray, kind: str) -> FloatArray:
    """Check probabilities or logits, (N, C); return log-probabilities up to a constant per row."""
    invalid = np.isnan(values).any(axis=1)
    if kind == "logits":
        invalid |= np.isposinf(values).any(axis=1) | np.isneginf(values).all(axis=1)
        if invalid.any():
            row = int(np.flatnonzero(invalid)[0])
            raise UserError(f"{path}: data row {row + 1} holds logits that are not finite")
        return values
    outside = invalid | (values < -1e-9).any(axis=1) | (values > 1 + 1e-6).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        worst = values[row][np.argmax(np.abs(np.nan_to_num(values[row], nan=np.inf) - 0.5))]
        raise UserError(
            f"{path}: data row {row + 1} holds {worst:.6g}, which is no probability; logits need "
            "columns such as logit_cat, or an array named logits"
        )
    sums = values.sum(axis=1)
    if (wrong := np.abs(sums - 1) > _SUM_SLACK).any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{path}: the probabilities of data row {row + 1} sum to {sums[row]:.4g}, expected 1; "
            "every class needs a column"
        )
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.clip(values, 0.0, 1.0)))


def _classified(
    path: Path,
    ids: list[str] | None,
    log_probs: FloatArray,
    answers: list[int],
    classes: tuple[str, ...] | None,
) -> PredictionTable:
    try:
        records = EvalRecords.from_log_probs(
            _ids(path, ids, len(log_probs)), answers, list(log_probs), scope="candidates"
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return PredictionTable(records, classes, ids is not None, only_confidence=False)


def _confident(
    path: Path, ids: list[str] | None, confidence: FloatArray, correct: BoolArray, column: str
) -> PredictionTable:
    outside = ~((confidence >= 0) & (confidence <= 1))
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise UserError(
            f"{path}: '{column}' holds {confidence[row]:.6g} in data row {row + 1}, expected a "
            "number from 0 to 1"
        )
    try:
        records = of_confidences(_ids(path, ids, len(confidence)), confidence, correct)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return PredictionTable(records, None, ids is not None, only_confidence=True)


def _ids(path: Path, ids: list[str] | None, count: int) -> list[str]:
    if ids is not None and len(ids) != count:
        raise UserError(f"{path}: there are {len(ids)} ids for {count} rows")
    return [str(number) for number in range(1, count + 1)] if ids is None else list(map(str, ids))
