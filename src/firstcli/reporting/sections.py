"""The page's figures in order: what each section shows, how to read it, what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from firstcli.reporting import (
    ReportData,
    concentration,
    coverage,
    ranks,
    reliability,
    studies,
    temperature,
)
from firstcli.reporting.style import Drawing


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, how to read what follows, and figures under their own headings."""

    id: str
    title: str
    legend: str
    drawings: tuple[tuple[str, Drawing], ...]
    missing: str = ""
    """What to say where there is no figure; empty leaves the section out."""


def sections(data: ReportData) -> list[Section]:
    """Return the sections that have something to show or to say."""
    found = [
        _concentration(data),
        _ranks(data),
        _reliability(data),
        _temperature(data),
        _coverage(data),
        _top_k(data),
        _unanswerable(data),
    ]
    return [section for section in found if section.drawings or section.missing]


def _each(
    data: ReportData, draw: Callable[[ReportData, str], Drawing | None], *, answerable: bool = True
) -> tuple[tuple[str, Drawing], ...]:
    names = data.judged if answerable else data.unanswerable
    drawn = ((name, draw(data, name)) for name in names)
    return tuple((name, drawing) for name, drawing in drawn if drawing)


def _first_seed(data: ReportData) -> str:
    if not data.several_seeds:
        return ""
    return (
        f" Shown is the first seed{f', {data.seeds[0]}' if data.seeds else ''}: pooled, the same "
        "questions would count several times and the intervals look too narrow."
    )


def _concentration(data: ReportData) -> Section:
    found = data.concentration
    return Section(
        "concentration",
        "Concentrated knowledge",
        "How much of the teacher's probability its most likely tokens hold, over a sample of "
        "training positions: the mean, the range of nine in ten positions, and the lowest and "
        "highest of all; then what keeping that many costs on disk, measured on the same sample. "
        "The dashed line is this run's k (Figure 2 of the paper).",
        (("", concentration.drawing(found, data.top_k)),) if found else (),
        "There is no knowledge/train/concentration.json in the run's folder: `first extract` "
        "writes it, for recipes in which an arm learns from the teacher's knowledge.",
    )


def _ranks(data: ReportData) -> Section:
    drawings = _each(data, ranks.drawing)
    if before_after := ranks.validation(data):
        drawings += (("Validation rows, before and after re-calibration", before_after),)
    return Section(
        "ranks",
        "Miscalibration rank by rank",
        "Each question's candidates are ranked by their probability. A grey bar says how often the "
        "candidate of a rank is right, the hatched part reaches from there to the mean probability "
        "that the model gave it: a tuned model says too much of rank 1 and too little of the "
        "others (Figure 3 of the paper). Below the evaluations the same on the validation rows, of "
        "the most likely tokens, wherever a temperature was fitted." + _first_seed(data),
        drawings,
        "No model was evaluated on questions that have a right answer.",
    )


def _reliability(data: ReportData) -> Section:
    return Section(
        "reliability",
        "Reliability diagrams",
        "Questions are put into bins by their confidence. The black line of a bin is the accuracy "
        "of its questions, with a 95 % interval (Wilson); the hatched part reaches from there to "
        "their mean confidence. The lilac box holds the accuracies that 95 % of perfectly "
        "calibrated models would show with these confidences: a bin within it is no evidence "
        "against the model. On the dashed diagonal confidence is right. The lower bars count the "
        "questions; a bin without any is left empty. Null is the ECE that a perfectly calibrated "
        "model would show, p how often it shows as much as this (Figure 5 of the paper)."
        + _first_seed(data),
        _each(data, reliability.drawing),
        "No model was evaluated, or the confidence in the whole vocabulary is not known.",
    )


def _temperature(data: ReportData) -> Section:
    searched = tuple(
        (name, drawing)
        for name, calibration in data.calibrations.items()
        if (drawing := temperature.search(name, calibration))
    )
    studied = tuple(
        (f"Trust on {name}, arms with fixed temperatures", drawing)
        for name, drawing in _each(data, temperature.fixed)
    )
    return Section(
        "temperature",
        "Temperature",
        "Each criterion over the temperature, on the validation rows; the dashed line is its "
        "lowest point, the shaded range holds that point in 95 % of resamplings of the rows. A "
        "wide range or a flat curve says that the rows cannot tell (Figure 6 of the paper).",
        searched + studied,
        "No recalibrator of this run searched for a temperature: give an arm `recalibrator: {name: "
        "temperature-scaling}` or `posthoc: {name: logit-temperature}`.",
    )


def _coverage(data: ReportData) -> Section:
    seeds = " Curves are means over the seeds." if data.several_seeds else ""
    return Section(
        "coverage",
        "Risk and coverage",
        "What accuracy remains when only the surest answers are given and the others withheld. A "
        "curve that rises to the left knows where it may be wrong. Rescaling all confidences alike "
        "changes ECE but hardly this; the fewer questions are left, the more chance there is in it."
        + seeds,
        _each(data, coverage.drawing),
        "No model was evaluated, or the confidence in the whole vocabulary is not known.",
    )


def _top_k(data: ReportData) -> Section:
    return Section(
        "top-k",
        "How many tokens to keep",
        "Arms that differ only in how many of the teacher's tokens they learn from, with 95 % "
        "intervals. P is the teacher's probability of those tokens, on average.",
        _each(data, studies.top_k),
    )


def _unanswerable(data: ReportData) -> Section:
    over = "the seeds" if data.several_seeds else "the questions"
    return Section(
        "unanswerable",
        "Questions without a right answer",
        "No candidate is right, so the honest confidence is 1 / n, the dashed line; intervals are "
        f"of the mean over {over}, 95 %.",
        _each(data, studies.unanswerable, answerable=False),
    )
