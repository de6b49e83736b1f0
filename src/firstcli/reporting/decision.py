"""The decision of a report: which student to take, from the paired differences of all students.

`docs/report.md` states the rule. Names of rows are in backticks, as in Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Literal

from firstcli.api import JSON
from firstcli.metrics import METRICS
from firstcli.metrics.guessing import explains_all
from firstcli.metrics.uncertainty import MIN_QUESTIONS
from firstcli.reporting.commands import commands
from firstcli.reporting.data import PLUS_T, Compared, ReportData

Verdict = Literal[
    "ship", "either", "no-winner", "not-worth-it", "too-few-questions", "only-student", "undecided"
]
FORMAT = 1
DECIDES = METRICS["trust"]
"""The metric that decides."""
FINE = 0.03
"""Smallest detectable difference up to which "nothing separates" means "level"."""
COARSE = 0.08
"""Smallest detectable difference beyond which students are never called level."""
_NAMED = 3  # more level students are counted, not listed in the headline
_FURTHER = 3  # evaluations besides the first one that are described one by one


@dataclass(frozen=True, slots=True)
class Shipped:
    """The student to take."""

    row: str
    arm: str
    posthoc: bool
    """Whether its post-hoc temperature belongs to it."""
    folder: str | None
    """Its folder, relative to the run folder; the first seed's, with several seeds. None if there
    is no run."""

    @property
    def model(self) -> str:
        """What `--arm` calls it: with several seeds, a row has several models."""
        trained = (self.folder or self.arm).rpartition("/")[2]
        return f"{trained}{PLUS_T if self.posthoc else ''}"


@dataclass(frozen=True, slots=True)
class Decision:
    """One headline, the student that it leads to, why, and what the run cannot tell."""

    verdict: Verdict
    headline: str
    ship: Shipped | None = None
    level: tuple[str, ...] = ()
    """The rows that are not distinguishable from the best one, if some other row is."""
    reasons: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    exportable: tuple[str, ...] = ()
    """The models whose temperature `first export` folds into the weights; of each row, the first
    seed's."""
    detectable: float | None = None
    """The smallest difference in Trust that the questions can show, as a fraction of 1."""

    def to_json(self) -> str:
        """Return the content of `decision.json`."""
        content: dict[str, JSON] = {"format": FORMAT, **asdict(self)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the students of one evaluation compare with the one of highest Trust."""

    evaluation: str
    questions: int
    best: str
    level: tuple[str, ...]
    """The best row and those not distinguishable from it, in descending order of Trust."""
    behind: tuple[str, ...]
    """The rows with a clearly lower Trust, in descending order of Trust."""
    detectable: float
    """The difference that would be distinguishable; the median over the other rows."""
    by_questions: float
    """The same if all seeds agreed: what the number of questions alone leaves invisible."""
    seeds: int
    """Number of seeds of each row."""

    @property
    def resolution(self) -> str:
        """What limits the detectable difference, for sentences."""
        questions = f"at n = {self.questions:,}"
        return f"{questions} with {self.seeds} seeds" if self.by_seeds else questions

    @property
    def by_seeds(self) -> bool:
        """Whether the seeds differ by more than the questions explain."""
        return self.detectable > self.by_questions


def decide(data: ReportData) -> Decision:
    """Return the decision of a report.

    The first evaluation with right answers decides, by Trust. The student to ship is the simplest
    of those that are not distinguishable from the best: without a teacher before distilled, plain
    before `+ T`, then the one of higher Trust. If the questions are too few to tell, it is the one
    of highest Trust.
    """
    if not data.judged:
        return Decision("undecided", "No decision: no evaluation has questions with right answers.")
    evaluation = data.judged[0]
    trust = _trust(data, evaluation)
    if not trust:
        missing = "no student has a Trust" if data.students else "only the teacher was evaluated"
        headline = f"No student to ship: {missing} on {evaluation}."
        return Decision("undecided", headline, reasons=tuple(_guesses(data)))
    if len(trust) == 1:
        (row,) = trust
        if data.location is None:
            return Decision("undecided", f"No decision: there is no other model than {_code(row)}.")
        shipped, exportable = _shipped(data, row), _exportable(data, ())
        headline = f"Ship {_code(row)}: it is the only student, so it is compared with none."
        return Decision(
            "only-student",
            headline,
            shipped,
            reasons=(*_reasons(data, row), *_guesses(data)),
            limits=tuple(_limits(data)),
            commands=_commands(data, shipped, exportable),
            exportable=exportable,
        )
    place = standing(data, evaluation)
    if place is None:
        headline = f"No decision: the students answered different questions of {evaluation}."
        return Decision("undecided", headline)
    verdict = _verdict(data, place)
    # too few questions leave the best guess; among students that are level, the simplest counts
    choices = place.level[:1] if verdict == "too-few-questions" else place.level
    row = min(choices, key=lambda each: _simplicity(data, each, trust[each]))
    shipped, exportable = _shipped(data, row), _exportable(data, place.level)
    return Decision(
        verdict,
        _headline(data, verdict, place, row),
        shipped,
        place.level if place.behind else (),
        (*_reasons(data, row), *_guesses(data)),
        (_power(data, place), *_limits(data)),
        _commands(data, shipped, exportable),
        exportable,
        place.detectable,
    )


def shipped_rows(decision: Decision) -> tuple[str, ...]:
    """Return the rows that the tables point out: the student to take, and those level with it."""
    return decision.level or ((decision.ship.row,) if decision.ship else ())


def standing(data: ReportData, evaluation: str) -> Standing | None:
    """Return how the students compare on an evaluation; None if no two can be compared."""
    trust = _trust(data, evaluation)
    if not (best := data.best(evaluation, DECIDES.name)):
        return None
    tests = {row: data.compared(evaluation, row, best) for row in trust if row != best}
    tested = {row: found[DECIDES.name] for row, found in tests.items() if DECIDES.name in found}
    if not tested:
        return None
    ordered = sorted((best, *tested), key=lambda row: -trust[row])
    apart = {row for row in tested if data.distinguishable(evaluation, row, best, DECIDES.name)}
    return Standing(
        evaluation,
        len(data.records_of(evaluation, best)[0]),
        best,
        tuple(row for row in ordered if row not in apart),
        tuple(row for row in ordered if row in apart),
        median(map(detectable, tested.values())),
        median(detectable(Compared(each.questions, None)) for each in tested.values()),
        len(data.records_of(evaluation, best)),
    )


def detectable(compared: Compared) -> float:
    """Return the smallest difference that intervals of this width would distinguish from zero."""
    tests = (compared.questions, *((compared.seeds,) if compared.seeds else ()))
    towards_zero: list[float] = [
        test.value - test.interval.low if test.value > 0 else test.interval.high - test.value
        for test in tests
    ]
    return max(towards_zero)


def _trust(data: ReportData, evaluation: str) -> dict[str, float]:
    means = {row: data.mean(evaluation, row, DECIDES.name) for row in data.students}
    return {row: mean for row, mean in means.items() if mean is not None}


def _verdict(data: ReportData, place: Standing) -> Verdict:
    models = _models(place.level)
    if len(models) == 1:
        return "ship"
    if place.questions < MIN_QUESTIONS or place.detectable > _coarsest(place):
        return "too-few-questions"
    distilled = [row for row in data.students if not _needs_no_teacher(data, row)]
    if distilled and any(_needs_no_teacher(data, row) for row in place.level):
        return "not-worth-it"
    few = len(models) == 2 or (place.behind and len(models) <= _NAMED)
    return "either" if few else "no-winner"


def _coarsest(place: Standing) -> float:
    """Return the largest detectable difference with which students can be told to be level."""
    return COARSE if place.behind else FINE


def _simplicity(data: ReportData, row: str, trust: float) -> tuple[bool, bool, float]:
    return not _needs_no_teacher(data, row), row.endswith(PLUS_T), -trust


def _needs_no_teacher(data: ReportData, row: str) -> bool:
    return row.removesuffix(PLUS_T) in data.labels_only


def _models(rows: Iterable[str]) -> list[str]:
    """Return one row per trained model: the first of X and X + T."""
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(row.removesuffix(PLUS_T), row)
    return list(found.values())


def _headline(data: ReportData, verdict: Verdict, place: Standing, row: str) -> str:
    where = f"on {place.evaluation}"
    take = "Prefer" if data.location is None else "Ship"  # outputs of others are not shipped
    names = _models((row, *place.level))  # the shipped one first
    if verdict == "ship":
        if row != place.best:  # what is clear of X + T need not be clear of X
            best = f"{_code(place.best)}, whose Trust {where} is clearly the highest"
            return f"{take} {_code(row)}: level with {best}, and simpler without a temperature."
        reason = f"its Trust {where} is clearly the highest"
        return f"{take} {_code(row)}: {reason}{_against_temperature(data, place, row)}."
    if verdict == "too-few-questions":
        if place.questions < MIN_QUESTIONS:
            reason = f"intervals need {MIN_QUESTIONS} questions, and n = {place.questions}"
            return f"Too few questions to tell: {reason}."
        few = "questions" if place.by_questions > _coarsest(place) else "seeds"
        hidden = f"differences below {_points(place.detectable)} are invisible {place.resolution}"
        return f"Too few {few} to tell: {hidden}."
    if verdict == "not-worth-it":
        method = "FIRST" if _recalibrates(data) else "distillation"
        if row == place.best:
            return f"Do not bother with {method} here: nothing is clearly better than {_code(row)}."
        level = f"{_code(row)} is level with the best, {_code(place.best)}"
        return f"Do not bother with {method} here: {level}."
    if verdict == "either":
        reason = f"no clear difference in Trust {where}"
        return f"{take} {_listed(names, 'or')}: {reason}{_against_temperature(data, place, row)}."
    shown = [*map(_code, names[:_NAMED]), f"{len(names) - _NAMED} more"][: len(names)]
    return f"No clear winner: {', '.join(shown[:-1])} and {shown[-1]} are level {where}."


def _against_temperature(data: ReportData, place: Standing, row: str) -> str:
    """Say why a student is shipped without its temperature; empty if it has no row with one."""
    hot, trust = f"{row}{PLUS_T}", _trust(data, place.evaluation)
    if hot not in trust or not data.compared(place.evaluation, hot, row):
        return ""
    if not data.distinguishable(place.evaluation, hot, row, DECIDES.name):
        return "; its temperature makes no clear difference"
    return "; its temperature makes it worse" if trust[hot] < trust[row] else ""


def _guesses(data: ReportData) -> Iterator[str]:
    """Yield a sentence on the models that answer no better than somebody who guesses."""
    evaluation = data.judged[0]
    found = {
        row: guess
        for row in data.rows
        if not row.endswith(PLUS_T)  # a temperature changes no answer
        and (records := data.records_of(evaluation, row))
        and (guess := explains_all(records))
    }
    if found:
        guess = next(iter(found.values()))
        answers = "answers" if len(found) == 1 else "answer"
        named = _listed([*found], "and") if len(found) <= _NAMED else f"{len(found)} models"
        yield (
            f"{named} {answers} {evaluation} not clearly better than guessing ({guess}: "
            f"{METRICS['accuracy'].text(guess.accuracy)} %); look at `first plan --show 2`, or "
            "train longer."
        )


def _recalibrates(data: ReportData) -> bool:
    """Whether an arm learns from recalibrated probabilities, as FIRST does."""
    return any(facts.kind.split(",")[0] != "none" for facts in data.arms.values())


def _reasons(data: ReportData, row: str) -> Iterator[str]:
    """Yield how a student does on each evaluation; the first one decides."""
    first, *others = data.judged
    parts = [f"{_code(row)} has {_numbers(data, first, row)}"]
    if (place := standing(data, first)) and place.behind:
        if level := [each for each in place.level if each != row]:
            parts.append(f"level with it: {_valued(data, first, level)}")
        parts.append(f"clearly behind: {_valued(data, first, place.behind)}")
    yield f"{first} (decides): {'; '.join(parts)}."
    for evaluation in others[:_FURTHER]:
        yield f"{evaluation}: {_elsewhere(data, evaluation, row)}."
    if rest := others[_FURTHER:]:
        places = [place for evaluation in rest if (place := standing(data, evaluation))]
        level = [place.evaluation for place in places if row in place.level]
        behind = [place.evaluation for place in places if row in place.behind]
        yield (
            f"{len(rest)} further evaluations: {_code(row)} is level with the best on "
            f"{len(level)} and clearly behind on {len(behind)}."
        )


def _elsewhere(data: ReportData, evaluation: str, row: str) -> str:
    place = standing(data, evaluation)
    if row not in _trust(data, evaluation):
        return f"{_code(row)} has no results"
    numbers = _numbers(data, evaluation, row)
    if place is None:
        return f"{_code(row)} has {numbers}"
    if row in place.behind:
        gap = data.compared(evaluation, row, place.best)[DECIDES.name].questions
        low, high = sorted((-gap.interval.low, -gap.interval.high))
        ends = f"[{DECIDES.text(low)}, {DECIDES.text(high)}]"
        better = f"{_code(place.best)} is clearly better"
        return f"{better}, by {DECIDES.text(-gap.value)} {ends}; {_code(row)} has {numbers}"
    if place.level == (row,):
        return f"{_code(row)} is clearly the best there, too, with {numbers}"
    return f"no student is clearly better; {_code(row)} has {numbers}"


def _numbers(data: ReportData, evaluation: str, row: str) -> str:
    accuracy, ece, trust = (
        METRICS[name].text(data.mean(evaluation, row, name))
        for name in ("accuracy", "ece", "trust")
    )
    return f"accuracy {accuracy}, ECE {ece}, Trust {trust}"


def _valued(data: ReportData, evaluation: str, rows: Sequence[str]) -> str:
    values = [(row, DECIDES.text(data.mean(evaluation, row, DECIDES.name))) for row in rows]
    shown = [f"{_code(row)} ({value})" for row, value in values[:2]]
    return ", ".join([*shown, *([f"{len(rows) - 2} more"] if len(rows) > 2 else [])])


def _power(data: ReportData, place: Standing) -> str:
    if place.questions < MIN_QUESTIONS:
        return f"{place.questions} questions are too few for intervals."
    more = ", and the Holm correction hides more" if data.settings.correction == "holm" else ""
    return (
        f"Differences in Trust below about {_points(place.detectable)} are invisible "
        f"{place.resolution}{more}."
    )


def _limits(data: ReportData) -> Iterator[str]:
    """Yield what the run cannot tell, whatever its numbers are."""
    evaluation = data.judged[0]
    if data.several_seeds:
        count = max(map(len, data.members.values()))
        yield f"{count} seeds: a difference counts only if it also exceeds that between seeds."
    elif data.location is not None:
        yield "One seed: with another one, the students may change places."
    if unknown := [row for row in data.students if row not in _trust(data, evaluation)]:
        yield f"Without a Trust on {evaluation}: {_listed(unknown, 'and')}."
    place = standing(data, evaluation)
    known = {*place.level, *place.behind} if place else set(data.students)
    if apart := [row for row in _trust(data, evaluation) if row not in known]:
        yield f"Answered different questions and were not compared: {_listed(apart, 'and')}."
    if data.location is not None and not any(row.endswith(PLUS_T) for row in data.students):
        yield (
            "No student has a row with a temperature, the simplest calibration: give an arm "
            "`posthoc: {name: logit-temperature}`."
        )
    if data.arms and not data.labels_only:
        yield "No arm has `learn: labels`, so nothing shows whether the teacher is worth it."


def _shipped(data: ReportData, row: str) -> Shipped:
    arm = row.removesuffix(PLUS_T)
    folder = f"students/{data.members[arm if arm in data.members else row][0]}".removesuffix("+T")
    return Shipped(row, arm, row.endswith(PLUS_T), folder if data.location else None)


def _commands(data: ReportData, shipped: Shipped, exportable: Sequence[str]) -> tuple[str, ...]:
    return (
        () if data.location is None else tuple(commands(data.location, shipped.model, exportable))
    )


def _exportable(data: ReportData, level: Sequence[str]) -> tuple[str, ...]:
    """Return the students with a temperature, those level with the best one first."""
    if data.location is None:
        return ()
    post_hoc = [row for row in data.students if row.endswith(PLUS_T)]
    ordered = sorted(post_hoc, key=lambda row: row not in level)
    return tuple(_shipped(data, row).model for row in ordered)


def _points(share: float) -> str:
    points = round(100 * share, 0 if share >= 0.02 else 1)
    return f"{points:g} point{'s' * (points != 1)}"


def _listed(rows: Sequence[str], word: str) -> str:
    names = [_code(row) for row in rows]
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _code(row: str) -> str:
    return f"`{row}`"
