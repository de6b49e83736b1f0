"""The files of `first judge`: reading them, cutting them, and recalibrating what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from firstcli.data.splits import short_digest
from firstcli.errors import UserError, shortened
from firstcli.metrics import lm_eval, outputs
from firstcli.metrics.gold import Gold
from firstcli.metrics.outputs import PredictionTable
from firstcli.metrics.records import Candidates, Confidence, EvalRecords

if TYPE_CHECKING:
    from firstcli.recalibration.diagnostics import CalibrationArtifact
    from firstcli.recipe.references import PosthocRef

TABLES = (".csv", ".tsv", ".npz")
_LOGS = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """One model's outputs, read from a file."""

    path: Path
    name: str
    """The model's name in tables."""
    table: PredictionTable

    @property
    def records(self) -> EvalRecords:
        return self.table.records

    def of(self, records: EvalRecords, name: str | None = None) -> JudgedFile:
        """Return the same file with some of its records, or with changed ones."""
        table = replace(self.table, records=records)
        return replace(self, table=table, name=name or self.name)


def read_alike(
    paths: Sequence[Path],
    confidence: Confidence,
    candidates: Candidates | None,
    gold: Gold | None,
) -> list[JudgedFile]:
    """Read files so that all score the same of each candidate.

    Args:
        paths: the files.
        confidence: the kind of confidence that will be shown.
        candidates: what to score; None prefers first tokens, where all files have them.
        gold: how the logs name the right choice; None infers it.

    Raises:
        UserError: a file cannot be used, or an option suits none of the files.
    """
    tables = [_read(path, gold) for path in paths]
    if gold and not any(path.suffix in _LOGS for path in paths):
        raise UserError(
            "--gold is for logs of lm-evaluation-harness; records and tables state their answers"
        )
    if candidates is None:
        logged = any(table.records.candidates == "whole" for table in tables)
        candidates = "whole" if logged else "first-token"
    return [
        JudgedFile(path, name, _scored(path, table, confidence, candidates))
        for path, name, table in zip(paths, _names(paths), tables, strict=True)
    ]


def _read(path: Path, gold: Gold | None) -> PredictionTable:
    """Read a file of any known format, depending on the suffix."""
    if path.suffix not in (".parquet", *_LOGS, *TABLES):
        raise UserError(
            f"{path}: the file name must end in .parquet (records of firstcli), .jsonl or .json "
            "(samples of lm-evaluation-harness), .csv, .tsv or .npz (probabilities and labels)"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.suffix in TABLES:
        return outputs.read_npz(path) if path.suffix == ".npz" else outputs.read_csv(path)
    records = EvalRecords.load(path) if path.suffix == ".parquet" else lm_eval.read(path, gold)
    return PredictionTable(records, None, has_ids=True, only_confidence=False)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the files' names without suffix, or as many of their folders as tell them apart."""
    stems = [path.stem for path in paths]
    names = stems
    for depth in range(1, max(len(path.absolute().parts) for path in paths)):
        if len(set(names)) == len(set(paths)):
            break
        tails = ["/".join(path.absolute().parts[-depth:]) for path in paths]
        names = [
            tail if stems.count(stem) > 1 else stem for tail, stem in zip(tails, stems, strict=True)
        ]
    return names


def _scored(
    path: Path, table: PredictionTable, confidence: Confidence, candidates: Candidates
) -> PredictionTable:
    records = table.records
    if path.suffix in TABLES:  # they do not say what the probabilities refer to
        records = replace(records, candidates=candidates)
    try:
        records = records.scored(candidates)
    except UserError as error:
        raise UserError(f"{path}: --candidates {candidates}: {error}") from error
    if records.shown(confidence) is None:
        raise UserError(
            f"{path}: the file only compares the candidates and has no probabilities in the whole "
            "vocabulary; use --confidence candidates"
        )
    return replace(table, records=records)


def pair(ours: JudgedFile, theirs: JudgedFile) -> tuple[EvalRecords, EvalRecords]:
    """Return both files' records of their common questions.

    Raises:
        UserError: there are none, or they have different candidates or right answers.
    """
    for file in (ours, theirs):
        if not file.records.answerable:
            raise UserError(f"{file.path}: no candidate is right, so there is nothing to compare")
    left, right = ours.records, theirs.records
    ids = set(left.ids) & set(right.ids)
    if not ids:
        raise UserError(f"{ours.path} and {theirs.path} have no question ids in common")
    left, right = left.only(ids), right.only(ids)
    index = {name: i for i, name in enumerate(right.ids)}
    rows = [index[name] for name in left.ids]
    if ours.table.only_confidence or theirs.table.only_confidence:
        return left, right  # the files do not state the right answers
    differ = (left.answer != right.answer[rows]) | (left.count != right.count[rows])
    if differ.any():
        names = [left.ids[int(i)] for i in np.flatnonzero(differ)]
        raise UserError(
            f"{ours.path} and {theirs.path} have different candidates or right answers in "
            f"{len(names)} of {len(ids)} common questions: {shortened(names)}"
        )
    return left, right


def why_not_compared(ours: JudgedFile, theirs: JudgedFile) -> str | None:
    """Return why two files cannot be compared question by question; None if they can."""
    named = ours.table.has_ids and theirs.table.has_ids
    if not named and not same_questions(ours, theirs):
        return "both files need ids, or the same questions in the same order"
    if not set(ours.records.ids) & set(theirs.records.ids):
        return "they have no question ids in common"
    if not ours.records.answerable or not theirs.records.answerable:
        return "no candidate is right"
    return None


def same_questions(ours: JudgedFile, theirs: JudgedFile) -> bool:
    """Return whether two files answer the same questions, as far as they say."""
    left, right = ours.records, theirs.records
    if set(left.ids) != set(right.ids) or left.answerable != right.answerable:
        return False
    if ours.table.only_confidence or theirs.table.only_confidence or not left.answerable:
        return True
    index = {name: i for i, name in enumerate(right.ids)}
    rows = [index[name] for name in left.ids]
    same = (left.answer == right.answer[rows]) & (left.count == right.count[rows])
    return bool(same.all())


def cut(file: JudgedFile, share: float) -> tuple[JudgedFile, JudgedFile]:
    """Cut a file by a hash of the questions' ids: the part to fit on, and the rest.

    Files with the same ids are therefore cut alike, in whatever order they are.

    Raises:
        UserError: one of the parts is empty.
    """
    fitting = [id for id in file.records.ids if short_digest(f"fit\0{id}") < share * 2**64]
    chosen = set(fitting)
    rest = [id for id in file.records.ids if id not in chosen]
    if not fitting or not rest:
        raise UserError(
            f"--fit-on {share:g}: leaves no question to {'judge' if fitting else 'fit on'} of the "
            f"{len(file.records)} of {file.path}; choose a different share"
        )
    return file.of(file.records.only(chosen)), file.of(file.records.only(set(rest)))


def separate(fitting: JudgedFile, judged: JudgedFile) -> None:
    """Check that a file can be fitted on and another one judged.

    Raises:
        UserError: they share questions, or differ in their classes.
    """
    if fitting.table.has_ids and judged.table.has_ids:
        shared = sorted(set(fitting.records.ids) & set(judged.records.ids))
        if shared:
            raise UserError(
                f"--fit-on {fitting.path}: {len(shared)} of its questions are also in "
                f"{judged.path}: {shortened(shared)}; a recalibrator must be judged on others"
            )
    ours, theirs = fitting.table, judged.table
    if ours.only_confidence != theirs.only_confidence:
        raise UserError(
            f"--fit-on {fitting.path}: only one of it and {judged.path} has a probability per class"
        )
    if ours.classes and theirs.classes and ours.classes != theirs.classes:
        raise UserError(
            f"--fit-on {fitting.path}: its classes are {shortened(list(ours.classes), 4)}, but "
            f"those of {judged.path} are {shortened(list(theirs.classes), 4)}"
        )


def fit(ref: PosthocRef, file: JudgedFile) -> CalibrationArtifact:
    """Fit a recalibrator to the probabilities of the candidates in a file.

    Raises:
        UserError: it does not suit them.
    """
    from firstcli.recalibration.candidates import candidate_rows
    from firstcli.recalibration.diagnostics import CalibrationArtifact

    if not file.records.answerable:
        raise UserError(f"{file.path}: no candidate is right, so nothing can be fitted")
    fitted = ref.build()
    rows = candidate_rows(file.records, "")
    is_label = rows.candidate == file.records.answer[:, None]
    fitted.check(rows.topk.shape[1], len(rows) if fitted.needs_fit else 0)
    if fitted.needs_fit:
        fitted.fit(rows, is_label)
    return CalibrationArtifact.measure(
        fitted, rows, is_label, name=ref.name, options=ref.given, positions="decisive"
    )


def recalibrated(artifact: CalibrationArtifact, file: JudgedFile, name: str) -> JudgedFile:
    """Return a file's outputs with recalibrated probabilities.

    Args:
        artifact: the fitted recalibrator.
        file: the outputs.
        name: the name of the result in tables.
    """
    from firstcli.recalibration import candidates

    plain = file.records
    records = candidates.recalibrated(plain, artifact.restored(), "")
    if file.table.only_confidence:
        confidence = np.minimum(records.probabilities[:, 0], 1.0)
        records = outputs.of_confidences(records.ids, confidence, plain.correct)
    return file.of(replace(records, candidates=plain.candidates), name)


def posthoc_ref(text: str) -> PosthocRef:
    """Return the recalibrator that an option names, or describes as a recipe does.

    Raises:
        UserError: there is no such recalibrator, or its options are wrong.
    """
    import yaml
    from pydantic import ValidationError

    from firstcli import plugins
    from firstcli.recipe.references import PosthocRef

    try:
        value = yaml.safe_load(text) if text.lstrip().startswith("{") else {"name": text}
    except yaml.YAMLError as error:
        raise UserError(f"--recalibrate {text}: is not valid YAML ({error})") from error
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        plugins.find("recalibrators", value["name"])
    try:
        ref = PosthocRef.model_validate(value)
    except ValidationError as error:
        mistakes = [
            ": ".join([".".join(map(str, e["loc"])) or "value", e["msg"]]) for e in error.errors()
        ]
        raise UserError(f"--recalibrate {text}: {'; '.join(mistakes)}") from error
    if ref.fit != "labels":
        raise UserError(
            f"--recalibrate {text}: outputs in a file are fitted to their labels; leave out 'fit'"
        )
    return ref


CONFIDENCES = get_args(Confidence)
CANDIDATES = get_args(Candidates)
