"""Evaluation records: one row per question, from which every metric can be recomputed.

The columns of a file are

    id            string           the sample's unique id
    answer        int32            index of the right candidate, or -1 for all questions if none of
                                   the candidates is right
    log_probs     list<float64>    log-probability of each candidate's token at the answer position,
                                   from the softmax over the whole vocabulary or over the candidates
    truth         list<float64>    true probability of each candidate; null if unknown

and, for other tools, the columns `prediction`, `correct`, `confidence`, `confidence_full`,
`candidate_mass` and `tie`, which loading derives again from the columns above. The schema's
metadata contain the format version and the scope of the softmax.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from firstcli.api import BoolArray, FloatArray
from firstcli.errors import UserError, shortened
from firstcli.runtime.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

ProbabilityRows = Sequence[Sequence[float] | FloatArray]
Scope = Literal["vocabulary", "candidates"]
Confidence = Literal["candidates", "full"]

VERSION = 2
_VERSION_KEY = "firstcli.records.version"
_SCOPE_KEY = "firstcli.records.scope"
_SOURCES = ("id", "answer", "log_probs", "truth")
MASS_SLACK = 1e-3  # generous bound on the float32 rounding of the candidates' total probability


@dataclass(frozen=True, slots=True, eq=False)
class EvalRecords:
    """One model's answers to one evaluation: N questions with at most C candidates."""

    ids: tuple[str, ...]  # N
    answer: npt.NDArray[np.int32]  # (N,)
    count: npt.NDArray[np.int32]  # (N,) number of candidates
    log_probs: FloatArray  # (N, C), -inf from `count` on
    truth: FloatArray | None  # (N, C), 0 from `count` on
    prediction: npt.NDArray[np.int32]  # (N,) the most likely candidate; the first one on ties
    correct: BoolArray  # (N,)
    confidence: FloatArray  # (N,) the prediction's probability among the candidates
    confidence_full: FloatArray | None  # (N,) the prediction's probability in the vocabulary
    candidate_mass: FloatArray | None  # (N,) total probability of the candidates
    tie: BoolArray  # (N,) whether another candidate is equally likely
    scope: Scope  # of the softmax; for `candidates`, two fields are None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_log_probs(
        cls,
        ids: Sequence[str],
        answers: Sequence[int],
        log_probs: ProbabilityRows,
        truth: ProbabilityRows | None = None,
        *,
        scope: Scope = "vocabulary",
    ) -> EvalRecords:
        """Derive predictions and confidences from the candidates' log-probabilities.

        Args:
            ids: the samples' unique ids, N.
            answers: index of each question's right candidate, or -1 for all questions if no
                candidate is right, N.
            log_probs: one row per question with one log-probability per candidate.
            truth: the true probability of each candidate, in rows of the same lengths.
            scope: the softmax of `log_probs`. `candidates` means that they only compare the
                candidates; they are renormalised, and the candidates' mass in the vocabulary is
                unknown.

        Raises:
            UserError: invalid rows; the message names their ids.
        """
        lengths = {len(ids), len(answers), len(log_probs), len(ids if truth is None else truth)}
        if len(lengths) > 1:
            raise ValueError("ids, answers, log_probs and truth must have one entry per question")
        if not ids:
            raise UserError("no question was evaluated: the evaluation split is empty")
        answer = np.asarray(answers, dtype=np.int32)
        count = np.array([len(row) for row in log_probs], dtype=np.int32)
        _check_questions(ids, answer, count)
        padded = _padded(log_probs, count, -np.inf)
        _check_log_probs(ids, padded)
        if scope == "candidates":
            padded, mass = _renormalised(padded), None
        else:
            mass = np.exp(padded).sum(axis=1)
            over = mass > 1.0 + MASS_SLACK
            _refuse(ids, over, "candidates whose probabilities sum to more than 1")
        top = padded.max(axis=1)  # (N,)
        prediction = padded.argmax(axis=1).astype(np.int32)
        return cls(
            ids=tuple(ids),
            answer=answer,
            count=count,
            log_probs=padded,
            truth=None if truth is None else _truth(ids, truth, count, answer),
            prediction=prediction,
            correct=prediction == answer,
            confidence=1.0 / np.exp(padded - top[:, None]).sum(axis=1),
            confidence_full=None if mass is None else np.minimum(np.exp(top), 1.0),
            candidate_mass=mass,
            tie=(padded == top[:, None]).sum(axis=1) > 1,
            scope=scope,
        )

    @property
    def answerable(self) -> bool:
        """Whether the questions have a right candidate: either all of them or none."""
        return bool(self.answer[0] >= 0)

    @property
    def probabilities(self) -> FloatArray:
        """Probabilities renormalised over each question's candidates, (N, C), padded with 0."""
        top = self.log_probs.max(axis=1, keepdims=True)
        odds = np.exp(self.log_probs - top)
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    @property
    def p_right(self) -> FloatArray | None:
        """The true probability that each prediction is right, (N,); None if unknown."""
        return None if self.truth is None else self.truth[np.arange(len(self)), self.prediction]

    def shown(self, kind: Confidence) -> FloatArray | None:
        """Return the confidence of the kind `metrics.confidence`, (N,); None if unknown."""
        return self.confidence if kind == "candidates" else self.confidence_full

    def only(self, ids: Collection[str]) -> EvalRecords:
        """Return the records of the questions with these ids, in the order of `self.ids`."""
        kept = [i for i, name in enumerate(self.ids) if name in ids]
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays: dict[str, Any] = {
            name: column[kept] for name, column in columns.items() if isinstance(column, np.ndarray)
        }
        return replace(self, ids=tuple(self.ids[i] for i in kept), **arrays)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the records as Parquet; the file appears whole or not at all.

        Args:
            path: the file, in an existing folder.
            metadata: written into the file's schema beside the format's version.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        lists = pa.list_(pa.float64())
        offsets = np.concatenate([[0], np.cumsum(self.count)]).astype(np.int32)
        filled = np.arange(self.log_probs.shape[1]) < self.count[:, None]  # (N, C)

        def ragged(padded: FloatArray) -> pa.ListArray:
            return pa.ListArray.from_arrays(offsets, padded[filled])

        def known(values: FloatArray | None) -> pa.Array:
            return pa.nulls(len(self), pa.float64()) if values is None else pa.array(values)

        columns = {
            "id": pa.array(self.ids, pa.string()),
            "answer": self.answer,
            "log_probs": ragged(self.log_probs),
            "truth": pa.nulls(len(self), lists) if self.truth is None else ragged(self.truth),
            "prediction": self.prediction,
            "correct": self.correct,
            "confidence": self.confidence,
            "confidence_full": known(self.confidence_full),
            "candidate_mass": known(self.candidate_mass),
            "tie": self.tie,
        }
        about = {**metadata, _VERSION_KEY: str(VERSION), _SCOPE_KEY: self.scope}
        table = pa.table(columns, metadata=about)
        atomic_write(path, lambda file: pq.write_table(table, file, compression="zstd"))

    @classmethod
    def load(cls, path: Path) -> EvalRecords:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing, damaged or incomplete, or has a newer format.
        """
        import pyarrow as pa

        table = _read(path)
        scope = table.schema.metadata.get(_SCOPE_KEY.encode())  # missing in version 1
        lists = pa.list_(pa.float64())
        try:
            truth = table["truth"].cast(lists).to_pylist()
            return cls.from_log_probs(
                ids=table["id"].cast(pa.string()).to_pylist(),
                answers=table["answer"].cast(pa.int32()).to_pylist(),
                log_probs=table["log_probs"].cast(lists).to_pylist(),
                truth=None if table["truth"].null_count == len(table) else truth,
                scope="candidates" if scope == b"candidates" else "vocabulary",
            )
        except pa.ArrowException as error:
            raise UserError(f"{path}: a column has the wrong type ({error}); {_REDO}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}; {_REDO}") from error


_REDO = "if a run wrote this file, write it again with `first eval --force`"


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: there is no such file; {_REDO}")
    try:
        with pq.ParquetFile(path) as file:  # read_table would read `a=b/` in the path as a column
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: is not a readable Parquet file ({error}); {_REDO}") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"").decode()
    if not version.isdecimal():
        raise UserError(f"{path}: does not contain evaluation records of firstcli; {_REDO}")
    if int(version) > VERSION:
        raise UserError(
            f"{path}: has format {version}, but this firstcli reads formats up to {VERSION}; "
            "upgrade it"
        )
    missing = [name for name in _SOURCES if name not in table.column_names]
    empty = [name for name in _SOURCES[:3] if name not in missing and table[name].null_count]
    if missing or empty:
        raise UserError(
            f"{path}: column {shortened(missing + empty)} is missing or has empty cells; {_REDO}"
        )
    return table


def _padded(rows: ProbabilityRows, count: npt.NDArray[np.int32], fill: float) -> FloatArray:
    padded = np.full((len(rows), int(count.max())), fill)  # (N, C)
    for i, row in enumerate(rows):
        padded[i, : count[i]] = row
    return padded


def _renormalised(padded: FloatArray) -> FloatArray:
    top = padded.max(axis=1, keepdims=True)
    total = top + np.log(np.exp(padded - top).sum(axis=1, keepdims=True))
    # Rows that are already normalised keep their bits, so that saving and loading is lossless.
    return np.where(np.abs(total) < 1e-12, padded, padded - total)


def _truth(
    ids: Sequence[str],
    truth: ProbabilityRows,
    count: npt.NDArray[np.int32],
    answer: npt.NDArray[np.int32],
) -> FloatArray:
    complete = [row is not None and len(row) == n for row, n in zip(truth, count, strict=True)]
    _refuse(ids, ~np.array(complete), "not exactly one true probability per candidate")
    padded = _padded(truth, count, 0.0)
    within = ((padded >= 0.0) & (padded <= 1.0)).all(axis=1)
    valid = within & (np.abs(padded.sum(axis=1) - (answer >= 0)) < 1e-6)  # 0 if none is right
    _refuse(ids, ~valid, "true probabilities that are not a distribution")
    return padded


def _check_questions(
    ids: Sequence[str], answer: npt.NDArray[np.int32], count: npt.NDArray[np.int32]
) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{len(repeated)} ids are not unique: {shortened(repeated)}")
    _refuse(ids, count < 1, "no candidates")
    _refuse(ids, (answer < -1) | (answer >= count), "an answer that is not one of the candidates")
    if answer.max() >= 0:
        _refuse(ids, answer < 0, "no right candidate, although other questions have one,")


def _check_log_probs(ids: Sequence[str], padded: FloatArray) -> None:
    _refuse(ids, np.isnan(padded).any(axis=1), "NaN among the candidates' log-probabilities")
    nothing = np.isneginf(padded).all(axis=1)
    _refuse(ids, nothing, "candidates that all have probability zero")


def _refuse(ids: Sequence[str], invalid: BoolArray | np.bool_, reason: str) -> None:
    if invalid.any():
        names = [ids[int(i)] for i in np.flatnonzero(invalid)]
        raise UserError(f"{reason} in {len(names)} of {len(ids)} questions: {shortened(names)}")
