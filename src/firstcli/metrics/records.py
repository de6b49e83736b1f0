"""Evaluation records: one row per question, from which every metric can be recomputed.

The columns of a file are

    id            string           the sample's unique id
    answer        int32            index of the right candidate, or -1 for all questions if none of
                                   the candidates is right
    log_probs     list<float64>    log-probability of each candidate's token at the answer position,
                                   from the softmax over the whole vocabulary or over the candidates
    log_probs_whole  list<float64> log-probability of each whole candidate, summed over its tokens;
                                   null if unknown
    truth         list<float64>    true probability of each candidate; null if unknown
    group         string           the question's group; there is no such column without groups

    prediction    int32            index of the model's answer; read only if the metadata call it
                                   `stated`, otherwise it is the most likely candidate

and, for other tools, the columns `prediction`, `correct`, `confidence`, `confidence_full`,
`candidate_mass` and `tie`, which loading derives again from the columns above. The schema's
metadata contain the format version, the scope of the softmax, and what `log_probs` are the
log-probabilities of: `first-token`, or `whole` in the records of a log that has nothing else.
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
Candidates = Literal["first-token", "whole"]

VERSION = 2
_VERSION_KEY = "firstcli.records.version"
_SCOPE_KEY = "firstcli.records.scope"
_CANDIDATES_KEY = "firstcli.records.candidates"
_PREDICTION_KEY = "firstcli.records.prediction"
_SOURCES = ("id", "answer", "log_probs", "truth")
MASS_SLACK = 1e-3  # generous bound on the float32 rounding of the candidates' total probability


@dataclass(frozen=True, slots=True, eq=False)
class EvalRecords:
    """One model's answers to one evaluation: N questions with at most C candidates."""

    ids: tuple[str, ...]  # N
    answer: npt.NDArray[np.int32]  # (N,)
    count: npt.NDArray[np.int32]  # (N,) number of candidates
    log_probs: FloatArray  # (N, C), -inf from `count` on
    whole: FloatArray | None  # (N, C) the same of whole candidates; None if unknown
    truth: FloatArray | None  # (N, C), 0 from `count` on
    prediction: npt.NDArray[np.int32]  # (N,) the most likely candidate; the first one on ties
    correct: BoolArray  # (N,)
    confidence: FloatArray  # (N,) the prediction's probability among the candidates
    confidence_full: FloatArray | None  # (N,) the prediction's probability in the vocabulary
    candidate_mass: FloatArray | None  # (N,) total probability of the candidates
    tie: BoolArray  # (N,) whether another candidate is equally likely
    scope: Scope  # of the softmax; for `candidates`, two fields are None
    candidates: Candidates  # what `log_probs`, and the fields derived from them, refer to
    groups: tuple[str, ...] | None = None  # N, each question's group; None without groups
    stated: bool = False  # whether `prediction` was given: answers without candidates

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
        whole: ProbabilityRows | None = None,
        groups: Sequence[str | None] | None = None,
        scope: Scope = "vocabulary",
        candidates: Candidates = "first-token",
        prediction: Sequence[int] | None = None,
    ) -> EvalRecords:
        """Derive predictions and confidences from the candidates' log-probabilities.

        Args:
            ids: the samples' unique ids, N.
            answers: index of each question's right candidate, or -1 for all questions if no
                candidate is right, N.
            log_probs: one row per question with one log-probability per candidate.
            truth: the true probability of each candidate, in rows of the same lengths.
            whole: log-probabilities of whole candidates besides those of their first differing
                tokens, in rows of the same lengths; see `scored`.
            groups: the questions' groups, N; all None, or no sequence, if there are no groups.
            scope: the softmax of `log_probs`. `candidates` means that they only compare the
                candidates; they are renormalised, and the candidates' mass in the vocabulary is
                unknown.
            candidates: what `log_probs` refer to.
            prediction: index of the model's answer to each question, N, where that is not the most
                likely candidate: the candidates of a free answer are that answer and any other.

        Raises:
            UserError: invalid rows; the message names their ids.
        """
        optional = (truth, whole, groups, prediction)
        columns = (ids, answers, log_probs, *(c for c in optional if c is not None))
        if len({len(column) for column in columns}) > 1:
            raise ValueError("every column must have one entry per question")
        if not ids:
            raise UserError("no question was evaluated: the evaluation split is empty")
        answer = np.asarray(answers, dtype=np.int32)
        count = np.array([len(row) for row in log_probs], dtype=np.int32)
        _check_questions(ids, answer, count)
        padded, mass = _scored(ids, count, log_probs, scope)
        chosen = np.asarray(padded.argmax(axis=1) if prediction is None else prediction, np.int32)
        top = padded[np.arange(len(ids)), chosen]  # (N,)
        tie = (padded == top[:, None]).sum(axis=1) > 1
        return cls(
            ids=tuple(ids),
            answer=answer,
            count=count,
            log_probs=padded,
            whole=None if whole is None else _scored(ids, count, whole, scope)[0],
            truth=None if truth is None else _truth(ids, truth, count, answer),
            prediction=chosen,
            correct=chosen == answer,
            confidence=_share(padded, top),
            confidence_full=None if mass is None else np.minimum(np.exp(top), 1.0),
            candidate_mass=mass,
            tie=tie & (prediction is None),
            scope=scope,
            candidates=candidates,
            groups=_checked_groups(ids, groups or ()),
            stated=prediction is not None,
        )

    def scored(self, candidates: Candidates) -> EvalRecords:
        """Return the records by first differing tokens or by whole candidates.

        Raises:
            UserError: they do not contain these log-probabilities.
        """
        if candidates == self.candidates:
            return self
        if self.whole is None:
            raise UserError(_MISSING[candidates])
        return EvalRecords.from_log_probs(
            self.ids,
            self.answer.tolist(),
            self.ragged(self.whole),
            None if self.truth is None else self.ragged(self.truth),
            groups=self.groups,
            scope=self.scope,
            candidates=candidates,
        )

    def ragged(self, padded: FloatArray) -> list[FloatArray]:
        """Return the rows (count,) of an array (N, C)."""
        return [row[:count] for row, count in zip(padded, self.count, strict=True)]

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

    @property
    def in_right(self) -> FloatArray:
        """Probability of the right candidate among the candidates, (N,), if there is one."""
        return np.asarray(self.probabilities[np.arange(len(self)), self.answer])

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
        groups = None if self.groups is None else tuple(self.groups[i] for i in kept)
        return replace(self, ids=tuple(self.ids[i] for i in kept), groups=groups, **arrays)

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

        def listed(padded: FloatArray | None) -> pa.Array:
            if padded is None:
                return pa.nulls(len(self), lists)
            return pa.ListArray.from_arrays(offsets, padded[filled])

        def known(values: FloatArray | None) -> pa.Array:
            return pa.nulls(len(self), pa.float64()) if values is None else pa.array(values)

        columns = {
            "id": pa.array(self.ids, pa.string()),
            "answer": self.answer,
            "log_probs": listed(self.log_probs),
            "log_probs_whole": listed(self.whole),
            "truth": listed(self.truth),
            "prediction": self.prediction,
            "correct": self.correct,
            "confidence": self.confidence,
            "confidence_full": known(self.confidence_full),
            "candidate_mass": known(self.candidate_mass),
            "tie": self.tie,
        }
        if self.groups is not None:
            columns["group"] = pa.array(self.groups, pa.string())
        about = {
            **metadata,
            _VERSION_KEY: str(VERSION),
            _SCOPE_KEY: self.scope,
            _CANDIDATES_KEY: self.candidates,
        }
        if self.stated:
            about[_PREDICTION_KEY] = "stated"
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
        candidates = table.schema.metadata.get(_CANDIDATES_KEY.encode())  # missing in older files
        stated = table.schema.metadata.get(_PREDICTION_KEY.encode()) == b"stated"
        lists, names = pa.list_(pa.float64()), table.column_names

        def known(name: str) -> list[list[float]] | None:
            if name not in names or table[name].null_count == len(table):
                return None
            rows: list[list[float]] = table[name].cast(lists).to_pylist()
            return rows

        try:
            return cls.from_log_probs(
                ids=table["id"].cast(pa.string()).to_pylist(),
                answers=table["answer"].cast(pa.int32()).to_pylist(),
                log_probs=table["log_probs"].cast(lists).to_pylist(),
                truth=known("truth"),
                whole=known("log_probs_whole"),
                groups=table["group"].cast(pa.string()).to_pylist() if "group" in names else None,
                scope="candidates" if scope == b"candidates" else "vocabulary",
                candidates="whole" if candidates == b"whole" else "first-token",
                prediction=table["prediction"].cast(pa.int32()).to_pylist() if stated else None,
            )
        except pa.ArrowException as error:
            raise UserError(f"{path}: a column has the wrong type ({error}); {_REDO}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}; {_REDO}") from error


_MISSING: dict[Candidates, str] = {
    "first-token": "only whole candidates are scored, as in every log of lm-evaluation-harness, "
    "not their first differing tokens; choose `whole`",
    "whole": "only the candidates' first differing tokens are scored, not whole candidates; run "
    "`first eval --force` with this version of firstcli, or choose `first-token`",
}
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


def _scored(
    ids: Sequence[str], count: npt.NDArray[np.int32], rows: ProbabilityRows, scope: Scope
) -> tuple[FloatArray, FloatArray | None]:
    """Return checked log-probabilities (N, C), and the candidates' mass (N,) if it is known."""
    complete = [row is not None and len(row) == n for row, n in zip(rows, count, strict=True)]
    _refuse(ids, ~np.array(complete), "not exactly one log-probability per candidate")
    padded = _padded(rows, count, -np.inf)
    _check_log_probs(ids, padded)
    if scope == "candidates":
        return _renormalised(padded), None
    mass = np.exp(padded).sum(axis=1)
    _refuse(ids, mass > 1.0 + MASS_SLACK, "candidates whose probabilities sum to more than 1")
    return padded, mass


def _share(padded: FloatArray, top: FloatArray) -> FloatArray:
    """Return the share (N,) of the predictions, whose log-probabilities are `top` (N,)."""
    with np.errstate(over="ignore"):  # a prediction that is far less likely than others: 0
        return np.asarray(1.0 / np.exp(padded - top[:, None]).sum(axis=1))


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


def _checked_groups(ids: Sequence[str], groups: Sequence[str | None]) -> tuple[str, ...] | None:
    known = tuple(group for group in groups if group is not None)
    if known:
        without = np.array([group is None for group in groups])
        _refuse(ids, without, "no group, although other questions have one,")
    return known or None


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
