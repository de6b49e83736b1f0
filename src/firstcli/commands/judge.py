"""`first eval --from`: all metrics of the outputs in a file, without a recipe or model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.table import Column, Table

from firstcli.errors import UserError, shortened
from firstcli.metrics import FLOOR, METRICS, EvalMetrics, lm_eval, summarize
from firstcli.metrics.gold import GOLD, Gold
from firstcli.metrics.records import Candidates, Confidence, EvalRecords
from firstcli.metrics.uncertainty import differences, intervals
from firstcli.runtime.console import Console

_NAMES = (
    *("accuracy", "chance", "confidence", "ece", "trust", "ece_debiased", "over_confidence"),
    *("under_confidence", "ece_mass", "ece_smooth", "ece_classwise", "mce", "ece_true"),
    *("confidence_mae", "nll", "brier", "brier_top", "brier_miscalibration"),
    *("brier_discrimination", "brier_uncertainty", "auroc", "aurc"),
    *("accuracy_at_90", "accuracy_at_80", "accuracy_at_50", "candidate_mass"),
)
"""The metrics of the table, in its order."""


def show(
    outputs: Path,
    versus: Path | None,
    confidence: str | None,
    bins: int | None,
    *,
    candidates: str | None = None,
    gold: str | None = None,
    json: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Print and return all metrics of a file and its differences from a second file.

    Args:
        outputs: records of firstcli or a log of lm-evaluation-harness.
        versus: the file to compare with, if any.
        confidence: `candidates`, which is the default, or `full`.
        bins: number of bins of the calibration errors; default 10.
        candidates: `first-token` or `whole`. The default is `first-token`, unless one of the files
            has nothing but whole candidates.
        gold: how the logs name the right choice; the default infers it.
        json: whether stdout is reserved for the result as JSON.
        quiet: whether to print nothing.

    Raises:
        UserError: an option or a file cannot be used.
    """
    kind, bins = cast(Confidence, confidence or "candidates"), bins or 10
    _check("confidence", kind, get_args(Confidence))
    _check("candidates", candidates, get_args(Candidates))
    _check("gold", gold, GOLD)
    console = Console(json=json, quiet=quiet)
    files = [outputs] if versus is None else [outputs, versus]
    records, *others = _read_alike(
        files, kind, cast(Candidates | None, candidates), cast(Gold | None, gold)
    )
    # before anything is printed, because it may raise
    pair = None if versus is None else _pair(outputs, records, versus, others[0])
    table, result = _judged(outputs, records, kind, bins)
    console.show(table)
    if versus and pair:
        table, result["versus"] = _compared(pair, versus, kind, bins)
        console.show(table)
    return result


def _check(option: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        raise UserError(f"--{option} must be {' or '.join(allowed)}, not '{value}'")


def _read_alike(
    paths: Sequence[Path],
    confidence: Confidence,
    candidates: Candidates | None,
    gold: Gold | None,
) -> list[EvalRecords]:
    """Read files so that all score the same of each candidate.

    Args:
        paths: the files.
        confidence: the kind of confidence that will be shown.
        candidates: what to score; None prefers first tokens, where all files have them.
        gold: how the logs name the right choice; None infers it.
    """
    stored = [read(path, gold) for path in paths]
    if gold and all(path.suffix == ".parquet" for path in paths):
        raise UserError("--gold is for logs of lm-evaluation-harness; records state their answers")
    if candidates is None:
        logged = any(records.candidates == "whole" for records in stored)
        candidates = "whole" if logged else "first-token"
    return [
        _scored(path, records, confidence, candidates)
        for path, records in zip(paths, stored, strict=True)
    ]


def _scored(
    path: Path, stored: EvalRecords, confidence: Confidence, candidates: Candidates
) -> EvalRecords:
    try:
        records = stored.scored(candidates)
    except UserError as error:
        raise UserError(f"{path}: --candidates {candidates}: {error}") from error
    if records.shown(confidence) is None:
        raise UserError(
            f"{path}: the file only compares the candidates and has no probabilities in the whole "
            "vocabulary; use --confidence candidates"
        )
    return records


def read(path: Path, gold: Gold | None) -> EvalRecords:
    """Read records of firstcli or a log of lm-evaluation-harness, depending on the suffix.

    Args:
        path: the file.
        gold: how a log names the right choice; None infers it.
    """
    if path.suffix not in (".parquet", ".jsonl", ".json"):
        raise UserError(
            f"{path}: the file name must end in .parquet (records of firstcli) or .jsonl or .json "
            "(samples of lm-evaluation-harness)"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return EvalRecords.load(path) if path.suffix == ".parquet" else lm_eval.read(path, gold)


def _judged(
    path: Path, records: EvalRecords, kind: Confidence, bins: int
) -> tuple[Table, dict[str, Any]]:
    """Return the metrics of a file as a table and as JSON."""
    metrics = summarize(records, kind, bins)
    estimates = intervals([records], kind, bins)
    caption = (
        f"confidence: {kind}; scored: {records.candidates}; {bins} bins (lo, hi] of equal width; "
        "prediction: the most likely candidate; in percent, except scores; 95 % intervals over "
        "questions"
    )
    columns = _columns("", "value", "95 % interval", "")
    table = Table(*columns, title=f"{path}: {metrics.n} questions", caption=caption)
    remarks = _remarks(metrics, records, bins)
    for name in _NAMES:
        metric, value = METRICS[name], getattr(metrics, name)
        if value is not None:
            interval = _interval(estimates[name].interval) if name in estimates else ""
            table.add_row(metric.title, metric.text(value), interval, remarks.get(name, ""))
    return table, {
        "file": str(path),
        "scope": records.scope,
        "candidates": records.candidates,
        "confidence_kind": kind,
        "bins": bins,
        "metrics": asdict(metrics),
        "intervals": {name: estimate.interval for name, estimate in estimates.items()},
    }


def _compared(
    pair: tuple[EvalRecords, EvalRecords], versus: Path, kind: Confidence, bins: int
) -> tuple[Table, dict[str, Any]]:
    """Return the differences between two files as a table and as JSON."""
    n, gaps = len(pair[0]), differences(pair[:1], pair[1:], kind, bins)
    sides = [intervals([side], kind, bins) for side in pair]
    columns = _columns("", "this file", "other file", "difference", "95 % interval", "")
    title, caption = f"{n} common questions, in percent", f"other file: {versus}"
    table = Table(*columns, title=title, caption=caption)
    for name in _NAMES:
        if name in gaps:
            gap, values = gaps[name], (METRICS[name].text(side[name].value) for side in sides)
            shown = (f"{100 * gap.value:+.1f}", _interval(gap.interval))
            verdict = "distinguishable" if gap.distinguishable else "not distinguishable"
            table.add_row(METRICS[name].title, *values, *shown, verdict)
    facts = ("value", "interval", "distinguishable")
    by_name = {name: {key: getattr(gap, key) for key in facts} for name, gap in gaps.items()}
    return table, {"file": str(versus), "n": n, "differences": by_name}


def _pair(
    path: Path, ours: EvalRecords, versus: Path, theirs: EvalRecords
) -> tuple[EvalRecords, EvalRecords]:
    """Return both files' records of their common questions."""
    for file, records in ((path, ours), (versus, theirs)):
        if not records.answerable:
            raise UserError(f"{file}: no candidate is right, so --versus has nothing to compare")
    ids = set(ours.ids) & set(theirs.ids)
    if not ids:
        raise UserError(f"{path} and {versus} have no question ids in common")
    ours, theirs = ours.only(ids), theirs.only(ids)
    index = {name: i for i, name in enumerate(theirs.ids)}
    rows = [index[name] for name in ours.ids]
    differ = (ours.answer != theirs.answer[rows]) | (ours.count != theirs.count[rows])
    if differ.any():
        names = [ours.ids[int(i)] for i in np.flatnonzero(differ)]
        raise UserError(
            f"{path} and {versus} have different candidates or right answers in {len(names)} of "
            f"{len(ids)} common questions: {shortened(names)}"
        )
    return ours, theirs


def _columns(*headings: str) -> list[Column]:
    return [Column(heading, justify="right" if heading else "left") for heading in headings]


def _remarks(metrics: EvalMetrics, records: EvalRecords, bins: int) -> dict[str, str]:
    remarks: dict[str, str] = {}
    if metrics.ece_null is not None and metrics.ece_p is not None:
        remarks["ece"] = (
            f"{metrics.bins_used} of {bins} bins used; a calibrated model would show "
            f"{100 * metrics.ece_null:.1f} and reach this ECE with p = {metrics.ece_p:.3f}"
        )
    if metrics.ties:
        remarks["accuracy"] = f"{metrics.ties} ties, resolved in favour of the first candidate"
    if metrics.nll_floored:
        remarks["nll"] = f"{metrics.nll_floored} probabilities raised to {FLOOR:g}"
    if not records.answerable:
        remarks["confidence"] = "no candidate is right; the calibrated confidence is chance"
    elif records.scope == "candidates":
        remarks["confidence"] = "probability among the candidates only"
    return remarks


def _interval(interval: Sequence[float]) -> str:
    low, high = (100 * end for end in interval)
    return f"{low:.1f} to {high:.1f}"
