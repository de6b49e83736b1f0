"""`first judge`, also called `first eval --from`: metrics of outputs in files, without a model."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.table import Column, Table

from firstcli.commands import judged_files
from firstcli.commands.judged_files import CANDIDATES, CONFIDENCES, TABLES, JudgedFile
from firstcli.errors import UserError, check_choice
from firstcli.metrics import FLOOR, METRICS, EvalMetrics, summarize
from firstcli.metrics.gold import GOLD, Gold
from firstcli.metrics.records import Candidates, Confidence, EvalRecords
from firstcli.metrics.uncertainty import differences, intervals
from firstcli.runtime.console import Console

if TYPE_CHECKING:
    from firstcli.commands.judge_page import Comparison
    from firstcli.recalibration.diagnostics import CalibrationArtifact

_NAMES = (
    *("accuracy", "chance", "confidence", "ece", "trust", "ece_debiased", "over_confidence"),
    *("under_confidence", "ece_mass", "ece_smooth", "ece_classwise", "mce", "ece_true"),
    *("confidence_mae", "nll", "brier", "brier_top", "brier_miscalibration"),
    *("brier_discrimination", "brier_uncertainty", "auroc", "aurc"),
    *("accuracy_at_90", "accuracy_at_80", "accuracy_at_50", "candidate_mass"),
)
"""The metrics of the table, in its order."""
_OF_CLASSES = ("chance", "ece_classwise")
"""Metrics that say nothing where only the confidence is known."""


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
        outputs: a file of any format that `first judge` reads.
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
    paths = [outputs] if versus is None else [outputs, versus]
    console = Console(json=json, quiet=quiet)
    ours, *others = _read(paths, kind, candidates, gold)
    # before anything is printed, because it may raise
    pair = judged_files.pair(ours, others[0]) if others else None
    table, result = _judged(ours, kind, bins)
    console.show(table)
    if pair:
        title = f"{len(pair[0])} common questions, in percent"
        headings, caption = ("this file", "other file"), f"other file: {versus}"
        table, compared = _compared(pair, headings, title, caption, kind, bins)
        console.show(table)
        result["versus"] = {"file": str(versus), **compared}
    return result


def judge(
    files: Sequence[Path],
    confidence: str | None,
    bins: int | None,
    candidates: str | None,
    gold: str | None,
    recalibrate: str | None,
    fit_on: str | None,
    out: Path | None,
    *,
    json: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Print and return the metrics of files and their differences, and write the page.

    Args:
        files: files of any format, one per model.
        confidence: `candidates`, which is the default, or `full`.
        bins: number of bins of the calibration errors; default 10.
        candidates: `first-token` or `whole`; see `show`.
        gold: how logs name the right choice; the default infers it.
        recalibrate: name of a recalibrator, or its name and options as in a recipe.
        fit_on: a share of each file, or a file, to fit it on; default 0.5.
        out: folder of the page; default `judge/` and the first file's name.
        json: whether stdout is reserved for the result as JSON.
        quiet: whether to print nothing.

    Raises:
        UserError: an option or a file cannot be used.
    """
    from firstcli.commands import judge_page

    kind, bins = cast(Confidence, confidence or "candidates"), bins or 10
    if repeated := [path for i, path in enumerate(files) if path in files[:i]]:
        raise UserError(f"{repeated[0]}: is given twice; give each file once")
    if fit_on is not None and recalibrate is None:
        raise UserError("--fit-on is for --recalibrate; name a recalibrator, or leave it out")
    folder = judge_page.page_folder(out, files[0])
    console = Console(json=json, quiet=quiet)
    judged = _read(files, kind, candidates, gold)
    fitted: dict[str, CalibrationArtifact] = {}
    if recalibrate is not None:
        judged, fitted = _recalibrated(judged, recalibrate, fit_on or "0.5", kind, console)
    compared = list(_comparisons(judged, fitted, kind, bins))
    content = judge_page.JudgedContent(judged, fitted, kind, bins, [each[0] for each in compared])
    details = [_judged(file, kind, bins) for file in judged]
    console.show(details[0][0] if len(judged) == 1 else judge_page.table(content))
    result: dict[str, Any] = {
        "files": [
            {"model": file.name, **metrics, "file": file.path.name}
            for file, (_, metrics) in zip(judged, details, strict=True)
        ],
        "differences": [],
        "recalibrators": {name: fit.to_json() for name, fit in fitted.items()},
    }
    for comparison, table, difference in compared:
        if table:
            console.show(table)
            result["differences"].append(
                {"model": comparison.ours, "minus": comparison.theirs, **difference}
            )
        else:
            console.say(f"{comparison.ours} and {comparison.theirs}: {comparison.text}")
    page = judge_page.write(folder, content, result)
    console.say(f"page: {page}")
    return {**result, "page": str(page)}


def _read(
    paths: Sequence[Path], kind: Confidence, candidates: str | None, gold: str | None
) -> list[JudgedFile]:
    check_choice("confidence", kind, CONFIDENCES)
    check_choice("candidates", candidates, CANDIDATES)
    check_choice("gold", gold, GOLD)
    scored = cast(Candidates | None, candidates)
    return judged_files.read_alike(paths, kind, scored, cast(Gold | None, gold))


def _recalibrated(
    files: Sequence[JudgedFile], recalibrate: str, fit_on: str, kind: Confidence, console: Console
) -> tuple[list[JudgedFile], dict[str, CalibrationArtifact]]:
    """Return each file's rest, plain and recalibrated, and what was fitted, by the row's name.

    Args:
        files: the files.
        recalibrate: the recalibrator.
        fit_on: a share of each file, or a file.
        kind: the kind of confidence.
        console: receives the warnings of the fit.
    """
    if kind == "full":
        raise UserError(
            "--recalibrate changes the probabilities of the candidates, and those in the whole "
            "vocabulary are unknown from then on; leave out --confidence full"
        )
    ref, found, fitted = judged_files.posthoc_ref(recalibrate), [], {}
    for fitting, rest in _parts(files, fit_on):
        artifact = judged_files.fit(ref, fitting)
        for warning in artifact.restored().diagnostics().warnings:
            console.warn(f"{rest.name}: {warning}")
        name = f"{rest.name} + T"
        found += [rest, judged_files.recalibrated(artifact, rest, name)]
        fitted[name] = artifact
    return found, fitted


def _parts(files: Sequence[JudgedFile], fit_on: str) -> Iterator[tuple[JudgedFile, JudgedFile]]:
    """Yield what to fit on and what to judge, for each file."""
    if (share := _number(fit_on)) is not None:
        if not 0 < share < 1:
            raise UserError(f"--fit-on {fit_on}: expected a share between 0 and 1, or a file")
        for file in files:
            yield judged_files.cut(file, share)
        return
    if len(files) > 1:
        raise UserError(
            f"--fit-on {fit_on}: holds the outputs of one model; judge one FILE with it, or give a "
            "share, which is cut from each file"
        )
    (judged,) = files
    if Path(fit_on).resolve() == judged.path.resolve():
        raise UserError(f"--fit-on {fit_on}: is the judged file; give a share of it, such as 0.5")
    scored = judged.records.candidates
    (fitting,) = judged_files.read_alike([Path(fit_on)], "candidates", scored, None)
    judged_files.separate(fitting, judged)
    yield fitting, judged


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _comparisons(
    files: Sequence[JudgedFile], recalibrated: Container[str], kind: Confidence, bins: int
) -> Iterator[tuple[Comparison, Table | None, dict[str, Any]]]:
    """Yield the differences of the later files from the first, and of `+ T` from its file.

    Args:
        files: the outputs; recalibrated ones follow those of their file.
        recalibrated: the names of the recalibrated outputs.
        kind: the kind of confidence.
        bins: number of bins of the calibration errors.
    """
    from firstcli.commands.judge_page import Comparison

    plain = [file for file in files if file.name not in recalibrated]
    pairs = [(file, plain[0]) for file in plain[1:]]
    pairs += [(after, file) for file, after in pairwise(files) if after.name in recalibrated]
    for ours, theirs in pairs:
        if reason := judged_files.why_not_compared(ours, theirs):
            yield Comparison(ours.name, theirs.name, f"not compared: {reason}"), None, {}
            continue
        pair = judged_files.pair(ours, theirs)
        title = f"{ours.name} minus {theirs.name}: {len(pair[0])} common questions, in percent"
        headings = (ours.name, theirs.name)
        table, difference = _compared(pair, headings, title, None, kind, bins)
        shown = [
            f"{METRICS[name].title} {100 * each['value']:+.1f} ({_interval(each['interval'])})"
            for name, each in difference["differences"].items()
            if each["distinguishable"]
        ]
        text = f"distinguishable: {', '.join(shown)}" if shown else "not distinguishable"
        text = f"{text}; {len(pair[0])} common questions"
        yield Comparison(ours.name, theirs.name, text), table, difference


def _judged(file: JudgedFile, kind: Confidence, bins: int) -> tuple[Table, dict[str, Any]]:
    """Return the metrics of a file as a table and as JSON."""
    path, records = file.path, file.records
    metrics = summarize(records, kind, bins)
    estimates = intervals([records], kind, bins)
    scored = "" if path.suffix in TABLES else f"scored: {records.candidates}; "
    caption = (
        f"confidence: {kind}; {scored}{bins} bins (lo, hi] of equal width; "
        "prediction: the most likely candidate; in percent, except scores; 95 % intervals over "
        "questions"
    )
    columns = _columns("", "value", "95 % interval", "")
    table = Table(*columns, title=f"{path}: {metrics.n} questions", caption=caption)
    remarks = _remarks(metrics, records, bins)
    if file.table.only_confidence:
        remarks["nll"] = remarks["brier"] = "of the confidence: right or wrong are the candidates"
        remarks["confidence"] = "the file states no other probability"
    for name in _NAMES:
        metric, value = METRICS[name], getattr(metrics, name)
        if value is not None and not (name in _OF_CLASSES and file.table.only_confidence):
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
    pair: tuple[EvalRecords, EvalRecords],
    headings: tuple[str, str],
    title: str,
    caption: str | None,
    kind: Confidence,
    bins: int,
) -> tuple[Table, dict[str, Any]]:
    """Return the differences between two files as a table and as JSON.

    Args:
        pair: the records of their common questions.
        headings: the files' names.
        title: title of the table.
        caption: caption of the table.
        kind: the kind of confidence.
        bins: number of bins of the calibration errors.
    """
    gaps = differences(pair[:1], pair[1:], kind, bins)
    sides = [intervals([side], kind, bins) for side in pair]
    ours, theirs = (dict(zip(side.ids, side.correct.tolist(), strict=True)) for side in pair)
    same = ours == theirs
    columns = _columns("", *headings, "difference", "95 % interval", "")
    table = Table(*columns, title=title, caption=caption)
    for name in _NAMES:
        if name in gaps:
            gap, values = gaps[name], (METRICS[name].text(side[name].value) for side in sides)
            shown = (f"{100 * gap.value:+.1f}", _interval(gap.interval))
            verdict = "distinguishable" if gap.distinguishable else "not distinguishable"
            if name == "accuracy" and same:
                shown, verdict = ("0.0", ""), "the same answers"
            table.add_row(METRICS[name].title, *values, *shown, verdict)
    facts = ("value", "interval", "distinguishable")
    by_name = {name: {key: getattr(gap, key) for key in facts} for name, gap in gaps.items()}
    return table, {"n": len(pair[0]), "differences": by_name}


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
