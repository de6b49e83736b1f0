"""`first eval --from`: every metric of outputs that lie in a file, without recipe or model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from rich.table import Table

from firstcli.errors import UserError, shortened
from firstcli.metrics import lm_eval
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.summary import FLOOR, Confidence, EvalMetrics, summarize
from firstcli.metrics.uncertainty import Difference, Estimate, differences, intervals
from firstcli.runtime.console import Console

_ROWS = (  # field, title, whether it is a share
    ("accuracy", "accuracy", True),
    ("chance", "chance", True),
    ("confidence", "mean confidence", True),
    ("ece", "ECE", True),
    ("trust", "Trust", True),
    ("ece_debiased", "ECE, debiased", True),
    ("over_confidence", "ECE, over-confident bins", True),
    ("under_confidence", "ECE, under-confident bins", True),
    ("ece_mass", "ECE, bins of equal mass", True),
    ("ece_smooth", "ECE, smooth", True),
    ("ece_classwise", "ECE, classwise", True),
    ("mce", "MCE", True),
    ("ece_true", "ECE against the truth", True),
    ("confidence_mae", "confidence MAE against the truth", True),
    ("nll", "NLL", False),
    ("brier", "Brier, multi-class", False),
    ("brier_top", "Brier, top label", False),
    ("brier_miscalibration", "  miscalibration", False),
    ("brier_discrimination", "  discrimination", False),
    ("brier_uncertainty", "  uncertainty", False),
    ("auroc", "AUROC of confidence", False),
    ("aurc", "AURC", False),
    ("accuracy_at_90", "accuracy at 90 % coverage", True),
    ("accuracy_at_80", "accuracy at 80 % coverage", True),
    ("accuracy_at_50", "accuracy at 50 % coverage", True),
    ("candidate_mass", "candidates' mass", True),
)


def show(
    path: Path, versus: Path | None, confidence: str, bins: int, *, json: bool, quiet: bool
) -> dict[str, Any]:
    """Print and return every metric of a file, and its differences from another one."""
    if confidence not in get_args(Confidence):
        raise UserError(f"--confidence must be candidates or full, not '{confidence}'")
    kind = cast(Confidence, confidence)
    console = Console(json=json, quiet=quiet)
    records = read(path, kind)
    both = None if versus is None else _both(path, records, versus, kind)
    found = summarize(records, kind, bins)
    estimates = intervals([records], kind, bins)
    console.show(_table(path, records, kind, bins, found, estimates))
    result: dict[str, Any] = {
        "file": str(path),
        "scope": records.scope,
        "confidence_kind": kind,
        "bins": bins,
        "metrics": asdict(found),
        "intervals": {name: asdict(one)["interval"] for name, one in estimates.items()},
    }
    if both is not None:
        result["versus"] = {"file": str(versus), **_compare(console, *both, versus, kind, bins)}
    return result


def read(path: Path, confidence: Confidence) -> EvalRecords:
    """Read records of firstcli or a log of lm-evaluation-harness, by the file's ending."""
    readers = {".parquet": EvalRecords.load, ".jsonl": lm_eval.read}
    if path.suffix not in readers:
        raise UserError(
            f"{path}: ends in neither .parquet (records of firstcli) nor .jsonl (samples of "
            "lm-evaluation-harness)"
        )
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    records = readers[path.suffix](path)
    if records.shown(confidence) is None:
        raise UserError(
            f"{path}: says how the candidates compare with one another, not how likely they are in "
            "the whole vocabulary; use --confidence candidates"
        )
    return records


def _both(
    path: Path, ours: EvalRecords, versus: Path, kind: Confidence
) -> tuple[EvalRecords, EvalRecords]:
    """Return what there is to compare, or refuse it before anything is printed."""
    theirs = read(versus, kind)
    for file, records in ((path, ours), (versus, theirs)):
        if not records.answerable:
            raise UserError(f"{file}: no candidate is right, so --versus has nothing to compare")
    return _shared(path, ours, versus, theirs)


def _compare(
    console: Console,
    ours: EvalRecords,
    theirs: EvalRecords,
    versus: Path | None,
    kind: Confidence,
    bins: int,
) -> dict[str, Any]:
    gaps = differences([ours], [theirs], kind, bins)
    sides = intervals([ours], kind, bins), intervals([theirs], kind, bins)
    title = f"{len(ours)} questions that both have, in percent"
    table = Table(title=title, caption=f"the other: {versus}")
    for heading in ("", "this file", "the other", "difference", "95 % interval", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for name, title, _ in _ROWS:
        if name in gaps:
            values = (f"{100 * side[name].value:.1f}" for side in sides)
            table.add_row(title, *values, *_difference(gaps[name]))
    console.show(table)
    return {
        "n": len(ours),
        "differences": {
            name: {
                "value": gap.value,
                "interval": gap.interval,
                "distinguishable": gap.distinguishable,
            }
            for name, gap in gaps.items()
        },
    }


def _shared(
    path: Path, ours: EvalRecords, versus: Path, theirs: EvalRecords
) -> tuple[EvalRecords, EvalRecords]:
    """Return the questions that both files have, in the same order."""
    ids = set(ours.ids) & set(theirs.ids)
    if not ids:
        raise UserError(f"{path} and {versus} have no question in common, judged by their ids")
    ours, theirs = ours.only(ids), theirs.only(ids)
    place = {name: i for i, name in enumerate(theirs.ids)}
    rows = [place[name] for name in ours.ids]
    differ = (ours.answer != theirs.answer[rows]) | (ours.count != theirs.count[rows])
    if differ.any():
        names = [ours.ids[int(i)] for i in np.flatnonzero(differ)]
        raise UserError(
            f"{path} and {versus} have other candidates or another right one in {len(names)} of "
            f"{len(ids)} common questions: {shortened(names)}"
        )
    return ours, theirs


def _table(
    path: Path,
    records: EvalRecords,
    kind: Confidence,
    bins: int,
    found: EvalMetrics,
    estimates: dict[str, Estimate],
) -> Table:
    title = f"{path}: {found.n} questions"
    caption = (
        f"confidence: {kind}; {bins} bins (lo, hi] of equal width; prediction: the most likely "
        "candidate; in percent, but scores as they are; intervals: 95 %, over questions"
    )
    table = Table(title=title, caption=caption)
    for heading in ("", "value", "95 % interval", ""):
        table.add_column(heading, justify="right" if heading else "left")
    remarks = _remarks(found, records, bins)
    for name, title, share in _ROWS:
        value: float | None = getattr(found, name)
        if value is not None:
            scale, digits = (100, 1) if share else (1, 3)
            interval = _interval(estimates[name].interval) if name in estimates else ""
            table.add_row(title, f"{scale * value:.{digits}f}", interval, remarks.get(name, ""))
    return table


def _remarks(found: EvalMetrics, records: EvalRecords, bins: int) -> dict[str, str]:
    remarks: dict[str, str] = {}
    if found.ece is not None and found.ece_null is not None and found.ece_p is not None:
        remarks["ece"] = (
            f"{found.bins_used} of {bins} bins used; a calibrated model would show "
            f"{100 * found.ece_null:.1f}, as much as this with p = {found.ece_p:.3f}"
        )
    if found.ties:
        remarks["accuracy"] = f"{found.ties} ties, which go to the first candidate"
    if found.nll_floored:
        remarks["nll"] = f"{found.nll_floored} probabilities raised to {FLOOR:g}"
    if not records.answerable:
        remarks["confidence"] = "no candidate is right; who knows that shows no more than chance"
    elif records.scope == "candidates":
        remarks["confidence"] = "the candidates are only compared with one another"
    return remarks


def _interval(interval: Sequence[float]) -> str:
    low, high = (100 * end for end in interval)
    return f"{low:.1f} to {high:.1f}"


def _difference(gap: Difference) -> tuple[str, str, str]:
    verdict = "distinguishable" if gap.distinguishable else "not distinguishable"
    return f"{100 * gap.value:+.1f}", _interval(gap.interval), verdict
