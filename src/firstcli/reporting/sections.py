"""The sections of the page in order, with their explanations, figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from firstcli.reporting import (
    concentration,
    coverage,
    forest,
    ranks,
    reliability,
    scatter,
    shift,
    studies,
    temperature,
)
from firstcli.reporting.data import PLUS_T, TEACHER, ReportData
from firstcli.reporting.decision import Decision, shipped_rows
from firstcli.reporting.groups import group_tables
from firstcli.reporting.shift_tables import shift_tables
from firstcli.reporting.style import Drawing
from firstcli.reporting.table import difference_tables, full_tables
from firstcli.reporting.terminal import Table

_NO_CONFIDENCE = "No model was evaluated, or the confidence in the whole vocabulary is not known."


@dataclass(frozen=True, slots=True)
class Section:
    """A title, what the figures show, the figures with their headings, and tables.

    The first figures are visible at once. Further figures, further panels and all tables are
    folded.
    """

    id: str
    title: str
    legend: str
    drawings: Sequence[tuple[str, Drawing]] = ()
    missing: str = ""
    """Text shown if there is no figure; a section without figures, tables and text is omitted."""
    how: str = ""
    """How to read the figures in detail; folded."""
    figures: int = 1
    """Number of visible figures."""
    panels: int = 4
    """Number of visible panels of a figure."""
    tables: Sequence[Table] = ()
    tables_title: str = ""


def overview(data: ReportData) -> list[tuple[str, Drawing]]:
    """Return the pictures of the first screen: accuracy against ECE on each evaluation."""
    return _each(data.judged, data, scatter.drawing)


def sections(data: ReportData, decision: Decision) -> list[Section]:
    """Return the sections in order, those that have figures, tables or a text in their place."""
    built = [
        _differences(data, decision),
        _reliability(data, decision),
        _coverage(data),
        _shift(data),
        _unanswerable(data),
        _groups(data),
        _ranks(data),
        _concentration(data),
        _temperature(data),
        _top_k(data),
        _metrics(data),
    ]
    return [section for section in built if section.drawings or section.tables or section.missing]


def _differences(data: ReportData, decision: Decision) -> Section:
    tables = difference_tables(data)
    reference = decision.ship.row if decision.ship else None
    corrected = data.settings.correction == "holm"
    both = "both the interval over questions and that over the seeds exclude"
    seeds = (
        " The wide, pale bar is Student's t interval over the seeds." if data.several_seeds else ""
    )
    return Section(
        "differences",
        "Differences",
        "How much better the chosen student is than each other one, over the same questions. Right "
        "of zero, it is better. A filled dot is a difference that is distinguishable from zero; a "
        f"hollow, grey one is not.{seeds}",
        _drawn(
            (name, forest.drawing(data, name, reference)) if reference else (name, None)
            for name in data.judged
            if name in data.illustrated
        ),
        how="Each draw weights the questions alike for both rows, so that their difficulty "
        "cancels. A difference is distinguishable if "
        f"{both if data.several_seeds else 'its interval excludes'} zero"
        f"{', and the corrected p-value is below .05' if corrected else ''}. A temperature changes "
        "no answer: the accuracies of a model with and without it are the same, and are not "
        f"compared. Here, {data.tests}.",
        tables=tables,
        tables_title="All differences: each student minus each baseline",
    )


def _groups(data: ReportData) -> Section:
    return Section(
        "groups",
        "Groups of questions",
        "Micro averages count each question once, macro averages each group.",
        how="The macro ECE is the mean of the groups' ECEs. It is usually larger than the ECE of "
        "all questions: gaps of different groups cannot cancel, and chance opens larger gaps in "
        "small groups. Its null is the mean of the groups' nulls. Trust = accuracy - ECE in both "
        "averages.",
        tables=group_tables(data),
        tables_title="Accuracy and ECE of each group",
    )


def _metrics(data: ReportData) -> Section:
    tables = full_tables(data)
    return Section("metrics", "All metrics", "", tables=tables, tables_title="All metrics")


def _concentration(data: ReportData) -> Section:
    measured = data.concentration
    return Section(
        "concentration",
        "Concentrated knowledge",
        "The total probability of the teacher's most likely tokens, and the disk space that they "
        "take. The dashed line is this run's k (Figure 2 of the paper).",
        [("", concentration.drawing(measured, data.top_k))] if measured else [],
        "The run folder has no knowledge/train/concentration.json. `first extract` writes it "
        "where an arm learns the most likely tokens of a teacher.",
        how="Measured on a sample of training positions: the mean, the range of 90 % of "
        "positions, the minimum and the maximum. The disk space is that of the same sample.",
    )


def _ranks(data: ReportData) -> Section:
    validation = ("Validation data before and after recalibration", ranks.validation(data))
    return Section(
        "ranks",
        "Miscalibration rank by rank",
        "Each question's candidates are ranked by their probability. A grey bar shows how often "
        "the candidate of a rank is right; the hatched part extends from there to its mean "
        "probability (Figure 3 of the paper).",
        _each(data.judged, data, ranks.drawing) + _drawn([validation]),
        "No model was evaluated on questions that have a right answer.",
        how="Fine-tuned models overestimate rank 1 and underestimate the other ranks. The last "
        "figure shows the same for the most likely tokens of the validation data if a "
        "temperature was fitted." + _first_seed(data),
    )


def _reliability(data: ReportData, decision: Decision) -> Section:
    chosen = (TEACHER, *shipped_rows(decision), data.method, *ranks.paper_rows(data))
    first = list(dict.fromkeys(row.removesuffix(PLUS_T) for row in chosen))
    return Section(
        "reliability",
        "Reliability",
        "Accuracy over confidence. On the dashed diagonal, a model is as often right as it says; "
        "below it, the model is over-confident. Hollow dots are the same model with its "
        "temperature (Figure 5 of the paper).",
        _each(data.judged, data, partial(reliability.drawing, first=first)),
        _NO_CONFIDENCE,
        how="Questions are binned by confidence. Each dot is a bin, at the mean confidence of its "
        "questions, with a 95 % Wilson interval of their accuracy; bins with fewer than "
        f"{reliability.FEW} questions are faded. The lilac box is the range of accuracies of 95 % "
        "of perfectly calibrated models: a dot inside the box is not evidence of "
        "miscalibration. The lower bars show the number of questions, the outline that with the "
        "temperature. Null is the ECE of a perfectly calibrated model." + _first_seed(data),
    )


def _temperature(data: ReportData) -> Section:
    fits = sorted(data.calibrations.items(), key=lambda item: item[0].endswith(PLUS_T))
    searched = [(name, temperature.search(name, fit)) for name, fit in fits]
    fixed = _each(data.judged, data, temperature.fixed)
    return Section(
        "temperature",
        "Temperature",
        "Each criterion over the temperature, on the validation data (Figure 6 of the paper).",
        _drawn(searched)
        + [(f"Trust on {name}, arms with fixed temperatures", each) for name, each in fixed],
        "No recalibrator of this run searched for a temperature: give an arm `recalibrator: "
        "{name: temperature-scaling}` or `posthoc: {name: logit-temperature}`.",
        how="The dashed line marks the minimum; the shaded range contains the minimum in 95 % of "
        "resamples. With a wide range or a flat curve, the data does not determine the "
        "temperature.",
    )


def _coverage(data: ReportData) -> Section:
    return Section(
        "coverage",
        "Risk and coverage",
        "The accuracy if the model gives only its most confident answers and withholds the rest. "
        "If a curve rises to the left, the confidence indicates which answers may be wrong.",
        _each(data.judged, data, coverage.drawing),
        _NO_CONFIDENCE,
        how="A temperature changes the ECE but hardly these curves. The fewer questions remain, "
        "the larger the influence of chance."
        + (" The curves are means over the seeds." if data.several_seeds else ""),
        figures=2,
    )


def _top_k(data: ReportData) -> Section:
    return Section(
        "top-k",
        "How many tokens to keep",
        "Arms that differ only in the number of teacher tokens from which they learn, with "
        "95 % intervals. P is the teacher's mean total probability of those tokens.",
        _each(data.judged, data, studies.top_k),
    )


def _shift(data: ReportData) -> Section:
    return Section(
        "shift",
        "Confidence under shift",
        "The same questions with typing errors, in another case, without some words or in other "
        "words. If accuracy falls and confidence does not, the model does not notice what it no "
        "longer understands.",
        _each([*data.shifts], data, shift.drawing),
        how="Above, the accuracy, and below, the mean confidence, with 95 % intervals over "
        "questions; both have the same scale. At the left end are the questions as they are. "
        "Labels and, where they are known, true probabilities are those of the unchanged question. "
        "A temperature changes no answer, so its accuracy is that of the model without it. "
        "Nothing is trained, fitted or chosen on shifted questions."
        + (" All values are means over the seeds." if data.several_seeds else ""),
        tables=shift_tables(data),
        tables_title="Accuracy, confidence, ECE and Trust under each shift",
    )


def _unanswerable(data: ReportData) -> Section:
    return Section(
        "unanswerable",
        "Questions without a right answer",
        "No candidate is right, so a calibrated model has a confidence of 1 / n, the dashed "
        "line. The 95 % intervals are those of the mean over "
        f"{'the seeds' if data.several_seeds else 'the questions'}.",
        _each(data.unanswerable, data, studies.unanswerable),
    )


def _first_seed(data: ReportData) -> str:
    """Return the end of a legend whose figures show one seed of several."""
    if not data.several_seeds:
        return ""
    seed = f" ({data.seeds[0]})" if data.seeds else ""
    return (
        f" Only the first seed{seed} is shown: pooling would count each question several times "
        "and make the intervals too narrow."
    )


def _each(
    evaluations: Sequence[str], data: ReportData, draw: Callable[[ReportData, str], Drawing | None]
) -> list[tuple[str, Drawing]]:
    illustrated = data.illustrated
    return _drawn([(name, draw(data, name)) for name in evaluations if name in illustrated])


def _drawn(drawings: Iterable[tuple[str, Drawing | None]]) -> list[tuple[str, Drawing]]:
    return [(heading, drawing) for heading, drawing in drawings if drawing]
