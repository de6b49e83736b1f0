"""The sections of the page in order, with their explanations and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firstcli.reporting import concentration, coverage, ranks, reliability, studies, temperature
from firstcli.reporting.data import ReportData
from firstcli.reporting.style import Drawing

_NO_CONFIDENCE = "No model was evaluated, or the confidence in the whole vocabulary is not known."


@dataclass(frozen=True, slots=True)
class Section:
    """A title, an explanation of the figures, and the figures with their headings."""

    id: str
    title: str
    legend: str
    drawings: Sequence[tuple[str, Drawing]]
    missing: str = ""
    """Text shown if there is no figure; if empty, the section is omitted."""


def sections(data: ReportData) -> list[Section]:
    """Return the sections that have figures or a text in their place."""
    builders = (_concentration, _ranks, _reliability, _temperature, _coverage, _top_k)
    built = [build(data) for build in (*builders, _unanswerable)]
    return [section for section in built if section.drawings or section.missing]


def _concentration(data: ReportData) -> Section:
    measured = data.concentration
    return Section(
        "concentration",
        "Concentrated knowledge",
        "The total probability of the teacher's most likely tokens over a sample of training "
        "positions: the mean, the range of 90 % of positions, the minimum and the maximum. "
        "Beside it, the disk space for that many tokens, measured on the same sample. The "
        "dashed line is this run's k (Figure 2 of the paper).",
        [("", concentration.drawing(measured, data.top_k))] if measured else [],
        "The run folder has no knowledge/train/concentration.json. `first extract` writes it "
        "for recipes in which an arm learns from the teacher's knowledge.",
    )


def _ranks(data: ReportData) -> Section:
    validation = ("Validation data before and after recalibration", ranks.validation(data))
    return Section(
        "ranks",
        "Miscalibration rank by rank",
        "Each question's candidates are ranked by their probability. A grey bar shows how "
        "often the candidate of a rank is right; the hatched part extends from there to its "
        "mean predicted probability. Fine-tuned models overestimate rank 1 and underestimate "
        "the other ranks (Figure 3 of the paper). Below the evaluations, the same is shown for "
        "the most likely tokens of the validation data if a temperature was fitted."
        + _first_seed(data),
        _each(data.judged, data, ranks.drawing) + _drawn([validation]),
        "No model was evaluated on questions that have a right answer.",
    )


def _reliability(data: ReportData) -> Section:
    return Section(
        "reliability",
        "Reliability diagrams",
        "Questions are binned by confidence. The black line of a bin is the accuracy of its "
        "questions, with a 95 % Wilson interval; the hatched part extends from there to their "
        "mean confidence. The lilac box is the range of accuracies of 95 % of perfectly "
        "calibrated models with these confidences: a bin inside the box is not evidence of "
        "miscalibration. On the dashed diagonal, confidence equals accuracy. The lower bars "
        "show the number of questions; bins without questions are empty. Null is the ECE of a "
        "perfectly calibrated model, p how often its ECE is at least this large (Figure 5 of "
        "the paper)." + _first_seed(data),
        _each(data.judged, data, reliability.drawing),
        _NO_CONFIDENCE,
    )


def _temperature(data: ReportData) -> Section:
    searched = [(name, temperature.search(name, fit)) for name, fit in data.calibrations.items()]
    fixed = _each(data.judged, data, temperature.fixed)
    return Section(
        "temperature",
        "Temperature",
        "Each criterion over the temperature, on the validation data. The dashed line marks "
        "the minimum; the shaded range contains the minimum in 95 % of resamples. With a wide "
        "range or a flat curve, the data does not determine the temperature (Figure 6 of the "
        "paper).",
        _drawn(searched)
        + [(f"Trust on {name}, arms with fixed temperatures", each) for name, each in fixed],
        "No recalibrator of this run searched for a temperature: give an arm `recalibrator: "
        "{name: temperature-scaling}` or `posthoc: {name: logit-temperature}`.",
    )


def _coverage(data: ReportData) -> Section:
    return Section(
        "coverage",
        "Risk and coverage",
        "The accuracy if the model gives only its most confident answers and withholds the "
        "rest. If a curve rises to the left, the confidence indicates which answers may be "
        "wrong. A temperature changes the ECE but hardly these curves. The fewer "
        "questions remain, the larger the influence of chance."
        + (" The curves are means over the seeds." if data.several_seeds else ""),
        _each(data.judged, data, coverage.drawing),
        _NO_CONFIDENCE,
    )


def _top_k(data: ReportData) -> Section:
    return Section(
        "top-k",
        "How many tokens to keep",
        "Arms that differ only in the number of teacher tokens from which they learn, with "
        "95 % intervals. P is the teacher's mean total probability of those tokens.",
        _each(data.judged, data, studies.top_k),
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


def _drawn(drawings: Sequence[tuple[str, Drawing | None]]) -> list[tuple[str, Drawing]]:
    return [(heading, drawing) for heading, drawing in drawings if drawing]
