"""Thresholds and prediction sets: what is promised on the validation part, and what came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from firstcli.api import JSON, FloatArray
from firstcli.metrics.prediction_sets import (
    SetSizes,
    coverage_range,
    least_probability,
    set_sizes,
)
from firstcli.metrics.records import EvalRecords
from firstcli.metrics.summary import DASH
from firstcli.metrics.thresholds import (
    AnsweredPart,
    PromisedThreshold,
    answered_part,
    questions_needed,
    threshold_for,
)
from firstcli.reporting.data import ReportData
from firstcli.reporting.terminal import Cell, Group, ReportRow, Table

_NOTHING = Cell(DASH)
_THRESHOLD = ("threshold", "answered", "accuracy", "at least")
_OUTCOME = ("answered", "accuracy", "promise")
_SETS = ("probability",)
_SIZES = ("coverage", "promise", "mean size", "one candidate")


@dataclass(frozen=True, slots=True)
class ModelPromise:
    """The threshold of one model, and what it does on each evaluation."""

    row: str
    model: str
    label: str
    """The row, or the model where a row has several."""
    questions: int
    """Number of validation questions."""
    threshold: PromisedThreshold | None
    needed: int | None
    """Validation questions that would be needed, where there is no threshold; None if no number
    would do."""
    outcomes: dict[str, AnsweredPart]
    """What came out, by evaluation; empty without a threshold."""


@dataclass(frozen=True, slots=True)
class ModelSets:
    """The prediction sets of one model, and what they contain on each evaluation."""

    row: str
    model: str
    label: str
    """The row, or the model where a row has several."""
    questions: int
    """Number of validation questions."""
    least: float
    """Candidates with at least this probability belong to a set."""
    outcomes: dict[str, SetSizes]
    """What came out, by evaluation."""


def model_promises(data: ReportData) -> list[ModelPromise]:
    """Return the threshold of every model whose confidence is known; empty without a target."""
    target = data.settings.target_accuracy
    if target is None:
        return []
    promises = []
    for row, model, label, records in _validated(data):
        confidence = _shown(data, records)
        if confidence is None:
            continue
        chosen = threshold_for(confidence, records.correct, target)
        needed = None if chosen else questions_needed(confidence, records.correct, target)
        outcomes = {
            name: answered_part(chosen.threshold, shown, tested.correct)
            for name, tested in _tested(data, model)
            if chosen and (shown := _shown(data, tested)) is not None
        }
        promises.append(ModelPromise(row, model, label, len(records), chosen, needed, outcomes))
    return promises


def model_sets(data: ReportData) -> list[ModelSets]:
    """Return the prediction sets of every model; empty without a coverage."""
    coverage = data.settings.coverage
    if coverage is None:
        return []
    found = []
    for row, model, label, records in _validated(data):
        least = least_probability(records.in_right, coverage)
        outcomes = {name: set_sizes(tested, least) for name, tested in _tested(data, model)}
        found.append(ModelSets(row, model, label, len(records), least, outcomes))
    return found


def promise_tables(data: ReportData) -> list[Table]:
    """Return the table of thresholds and that of prediction sets, as far as they are asked for."""
    return [*_threshold_table(data), *_set_table(data)]


def promises_as_json(data: ReportData) -> dict[str, JSON]:
    """Return both at full precision, as keys of table.json; empty if neither is asked for."""
    content: dict[str, JSON] = {}
    target, coverage = data.settings.target_accuracy, data.settings.coverage
    if target is not None:
        models = [_threshold_json(promise, target) for promise in model_promises(data)]
        content["thresholds"] = {"target_accuracy": target, "certainty": 0.95, "models": models}
    if coverage is not None:
        models = [_sets_json(sets, coverage) for sets in model_sets(data)]
        content["prediction_sets"] = {"coverage": coverage, "models": models}
    return content


def _validated(data: ReportData) -> Iterator[tuple[str, str, str, EvalRecords]]:
    """Yield the row, the model, its label and its validation records, in the table's order."""
    for row, models in data.members.items():
        for model in models:
            if model in data.validation:
                label = row if len(models) == 1 else model
                yield row, model, label, data.validation[model]


def _tested(data: ReportData, model: str) -> Iterator[tuple[str, EvalRecords]]:
    for name in data.promised:
        if (name, model) in data.records:
            yield name, data.records[name, model]


def _shown(data: ReportData, records: EvalRecords) -> FloatArray | None:
    return records.shown(data.settings.confidence)


def _threshold_table(data: ReportData) -> Iterator[Table]:
    promises, target = model_promises(data), data.settings.target_accuracy
    if not promises or target is None:
        return
    names = data.promised
    groups = [_group(_validation_title(promises), "", _THRESHOLD)]
    groups += [_group(name, name, _OUTCOME) for name in names]
    rows = tuple(
        ReportRow(
            promise.label,
            "student" if promise.row in data.students else "teacher",
            (
                _threshold_cells(promise.threshold),
                *(_outcome_cells(promise.outcomes.get(name), target) for name in names),
            ),
        )
        for promise in promises
    )
    without = _without_threshold([promise for promise in promises if not promise.threshold])
    caption = (
        f"A model answers if its confidence ({data.settings.confidence}) is at least the "
        f"threshold; chosen on the validation part as the lowest with an accuracy of at least "
        f"{_target(target)} % with 95 % certainty; this holds for questions like those of the "
        "validation part; in percent, with exact 95 % intervals"
    )
    title = f"Thresholds for an accuracy of {_target(target)} %"
    caption = ". ".join([caption, *_left_out(data), *without])
    yield Table(title, caption, "", tuple(groups), rows)


def _left_out(data: ReportData) -> Iterator[str]:
    """Yield which evaluations are left out, and why."""
    if names := [name for name in data.judged if name in data.other_answers]:
        yield (
            f"Nothing is promised about {', '.join(names)}: the answers are made otherwise than "
            "those to the validation questions"
        )


def _without_threshold(promises: list[ModelPromise]) -> Iterator[str]:
    """Yield why there is no threshold, once for all models with the same reason."""
    by_need: dict[int | None, list[ModelPromise]] = {}
    for promise in promises:
        needed = None if promise.needed is None else _rounded(promise.needed)
        by_need.setdefault(needed, []).append(promise)
    for needed, alike in by_need.items():
        questions = max(promise.questions for promise in alike)
        names = ", ".join(promise.label for promise in alike)
        reason = (
            "the most confident answers are wrong too often, so that more questions would not help"
            if needed is None
            else f"about {needed} questions would be needed if the accuracy stays as it is"
        )
        yield f"No threshold can be promised for {names} with {questions} questions: {reason}"


def _threshold_cells(chosen: PromisedThreshold | None) -> tuple[Cell, ...]:
    if chosen is None:
        return Cell("none"), *(_NOTHING,) * (len(_THRESHOLD) - 1)
    return (
        Cell(f"{chosen.threshold:.4f}"),
        Cell(_percent(chosen.share)),
        Cell(_percent(chosen.accuracy)),
        Cell(_percent(chosen.bound)),
    )


def _outcome_cells(part: AnsweredPart | None, target: float) -> tuple[Cell, ...]:
    if part is None:
        return (_NOTHING,) * len(_OUTCOME)
    answered = Cell(_percent(part.share))
    if part.accuracy is None:
        return answered, _NOTHING, _NOTHING
    return (
        answered,
        Cell(_percent(part.accuracy), interval=_range(part.interval)),
        Cell(_verdict(part.keeps(target), part.refutes(target))),
    )


def _verdict(keeps: bool, refutes: bool) -> str:
    if keeps:
        return "kept"
    return "broken" if refutes else "below by chance"


def _set_table(data: ReportData) -> Iterator[Table]:
    found, coverage = model_sets(data), data.settings.coverage
    if not found or coverage is None:
        return
    names = data.promised
    groups = [_group(_validation_title(found), "", _SETS)]
    groups += [_group(name, name, _SIZES) for name in names]
    rows = tuple(
        ReportRow(
            sets.label,
            "student" if sets.row in data.students else "teacher",
            (
                (Cell(f"{sets.least:.4f}"),),
                *(_size_cells(sets, sets.outcomes.get(name), coverage) for name in names),
            ),
        )
        for sets in found
    )
    caption = (
        "A set contains the candidates with at least this probability, and always the most likely "
        f"one; the right candidate is in {_target(coverage)} % of the sets, for questions like "
        "those of the validation part and on average over such parts; coverage in percent, with "
        "exact 95 % intervals; mean size in candidates; sets of one candidate in percent"
    )
    title = f"Prediction sets with a coverage of {_target(coverage)} %"
    yield Table(title, ". ".join([caption, *_left_out(data)]), "", tuple(groups), rows)


def _size_cells(sets: ModelSets, sizes: SetSizes | None, coverage: float) -> tuple[Cell, ...]:
    if sizes is None:
        return (_NOTHING,) * len(_SIZES)
    low, _ = coverage_range(sets.questions, sizes.questions, coverage)
    return (
        Cell(_percent(sizes.coverage), interval=_range(sizes.interval)),
        Cell(_verdict(sizes.coverage >= coverage, sizes.coverage < low)),
        Cell(f"{sizes.mean_size:.2f}"),
        Cell(_percent(sizes.singletons / sizes.questions)),
    )


def _group(title: str, evaluation: str, headings: tuple[str, ...]) -> Group:
    return Group(title, evaluation, headings, headings)


def _validation_title(models: list[ModelPromise] | list[ModelSets]) -> str:
    sizes = sorted({each.questions for each in models})
    return f"validation (n = {' or '.join(map(str, sizes))})"


def _threshold_json(promise: ModelPromise, target: float) -> dict[str, JSON]:
    chosen = promise.threshold
    return {
        "row": promise.row,
        "model": promise.model,
        "questions": promise.questions,
        "questions_needed": promise.needed,
        "threshold": None if chosen is None else chosen.threshold,
        "answered": None if chosen is None else chosen.share,
        "accuracy": None if chosen is None else chosen.accuracy,
        "bound": None if chosen is None else chosen.bound,
        "evaluations": {
            name: {
                "questions": part.questions,
                "answered": part.share,
                "accuracy": part.accuracy,
                "interval": list(part.interval),
                "kept": part.keeps(target),
                "refuted": part.refutes(target),
            }
            for name, part in promise.outcomes.items()
        },
    }


def _sets_json(sets: ModelSets, coverage: float) -> dict[str, JSON]:
    return {
        "row": sets.row,
        "model": sets.model,
        "questions": sets.questions,
        "least_probability": sets.least,
        "evaluations": {
            name: {
                "questions": sizes.questions,
                "coverage": sizes.coverage,
                "interval": list(sizes.interval),
                "expected": list(coverage_range(sets.questions, sizes.questions, coverage)),
                "mean_size": sizes.mean_size,
                "singletons": sizes.singletons / sizes.questions,
            }
            for name, sizes in sets.outcomes.items()
        },
    }


def _target(share: float) -> str:
    return f"{100 * share:.6g}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}" if share in (0.0, 1.0) else f"{100 * share:.1f}"


def _range(interval: tuple[float, float]) -> str:
    return f"[{', '.join(f'{100 * end:.1f}' for end in interval)}]"


def _rounded(count: int) -> int:
    """Round an estimate up to two digits."""
    unit = int(f"1{'0' * (len(str(count)) - 2)}")
    return -(-count // unit) * unit
