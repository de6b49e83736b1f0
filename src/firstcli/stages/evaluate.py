"""Stage `eval`: each model's probability of every candidate, by its first token and as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Column, Table

from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.stages import checks, fingerprints, posthoc
from firstcli.stages.base import Facts, Stage
from firstcli.stages.checks import SharedCheck
from firstcli.stages.posthoc import POSTHOC
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    Model,
    Unit,
    evaluations_of,
    models_of,
    records_path,
    shifts_of,
)

if TYPE_CHECKING:
    from firstcli.api import JSON, FloatArray
    from firstcli.metrics import EvalMetrics
    from firstcli.metrics.guessing import Guessing
    from firstcli.metrics.records import Candidates, EvalRecords
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.shift import Shift
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.workspace.run import Run

COLUMNS = (
    *("n", "accuracy", "ece", "ece_null", "ece_p", "bins_used"),
    *("trust", "confidence", "nll", "brier", "candidate_mass"),
)
"""The metrics of the terminal's table."""


@dataclass(frozen=True, slots=True)
class EvalFacts(Facts):
    """The main metrics of one model on one evaluation; without a right answer, its confidence."""

    n: int
    accuracy: float | None = None
    ece: float | None = None
    trust: float | None = None
    confidence: float | None = None
    changed: float | None = None
    """The share of prompts that the evaluation's shift changes, if it has one."""


class Evaluate(Stage):
    """Records the answers of every model on every evaluation."""

    name = "eval"
    help = "Measure accuracy, ECE and Trust of teacher and students, or of the outputs in a file."
    example = "recipe.yaml --arm first-logit --arm teacher"
    format = 3  # float32 logits of half-precision products
    shared = True
    has_arms = True
    checks = (checks.OVERLAP, checks.OTHER_ANSWERS, checks.UNPINNED)

    def key(self, evaluation: str, model: Model) -> str:
        return f"{self.name} {evaluation}/{model.name}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        shifted = [name for each in shifts_of(recipe).values() for name in each]
        for name in (*evaluations_of(recipe), *shifted):
            for model in models_of(recipe):
                yield self.unit(recipe, folder, name, model)

    def unit(self, recipe: Recipe, folder: Path, name: str, model: Model) -> Unit:
        """Return the unit of one evaluation and one model.

        Args:
            recipe: the recipe.
            folder: the run folder.
            name: the evaluation.
            model: the model.
        """
        artifact = Artifact(records_path(folder, name, model), False)
        needs = posthoc.trained_by(recipe, model)
        if model.posthoc:  # the plain model's answers with different confidences
            needs = (self.key(name, replace(model, posthoc=False)), POSTHOC.key(model))
        key = self.key(name, model)
        return Unit(key, self.name, artifact, needs, evaluation=name, model=model)

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        if unit.model.posthoc:
            return POSTHOC.checks_of(run, unit)
        chats = (checks.OTHER_CHATS,) if unit.evaluation and _has_chats(run) else ()
        return (*self.checks, *chats, *checks.untrained_teacher(run, unit.role))

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        if unit.model.posthoc:
            return {}
        inputs: dict[str, object] = {
            "evaluation samples": run.evaluation_content(unit.evaluation),
            "longest sample": fingerprints.longest_sample(run, unit),
        }
        if (settings := run.generation(unit.evaluation)) is not None:
            inputs |= fingerprints.generation(run, settings, unit)
        return inputs | fingerprints.predictions(run, unit.role, unit.evaluation)

    def check(self, run: Run, unit: Unit) -> str:
        import numpy as np

        from firstcli.models.answers import EVALUATION_TOKENS
        from firstcli.stages import inputs, reading_memory, role_models, whole_candidates

        if run.generation(unit.evaluation) is not None:
            from firstcli.stages import generated

            return generated.check(run, unit.role, generated.questions_of(run, unit))
        questions = inputs.questions(run, unit.role, unit.evaluation)
        text = f"{len(questions)} questions"
        if sequences := whole_candidates.sequences(run, unit.role, unit.evaluation):
            text += f", {len(sequences)} candidates of several tokens"
        if role_models.remote(run, unit.role) is not None:
            return text
        lengths = np.array([len(question.input_ids) for question in questions], np.int64)
        return f"{text}; {reading_memory.check(run, unit.role, lengths, EVALUATION_TOKENS)}"

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        is_remote = probe.run.model_section(unit.role).plugin.is_remote
        generates = probe.run.generation(unit.evaluation) is not None
        return None if unit.model.posthoc or is_remote or generates else probe.evaluation(unit)

    def work(self, run: Run, unit: Unit, folder: Path) -> EvalFacts | None:
        if not unit.model.posthoc:
            records = _answered(run, unit, folder)
        elif distributed.is_first() or run.generation(unit.evaluation) is not None:
            # What is fitted to generated answers needs all processes.
            records = posthoc.recalibrated_records(run, unit)
        if not distributed.is_first():
            return None
        about = {"evaluation": unit.evaluation, "model": unit.model.name}
        records.save(folder / f"{unit.model.name}.parquet", about)
        facts = _facts(records, records.confidence)
        return replace(facts, changed=run.changed_share(unit.evaluation))

    def is_brief(self, unit: Unit) -> bool:
        return unit.model.posthoc

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        from firstcli.runtime.console import percent

        facts, guess = _shown(run, unit)
        names = ("accuracy", "ECE", "Trust", "confidence")
        values = (facts.accuracy, facts.ece, facts.trust, facts.confidence)
        shown = [(name, v) for name, v in zip(names, values, strict=True) if v is not None]
        phrases = [f"{name} {percent(value)}" for name, value in shown]
        if guess is not None:
            phrases.append(f"not clearly better than {guess} ({percent(guess.accuracy)})")
        return phrases

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        """Print the main metrics, one table per evaluation; return every metric."""
        from firstcli import metrics

        settings, is_seen = run.recipe.metrics, run.recipe.is_validation
        shown = [unit for unit in units if not is_seen(unit.evaluation)]  # recalibrators saw it
        summaries = {
            key: metrics.summarize(records, settings.confidence, settings.bins)
            for key, records in load_records(shown, settings.candidates).items()
        }
        run.console.show(f"{settings.definition}, in percent")
        rows: dict[str, dict[str, EvalMetrics]] = {}
        for (evaluation, model), row in summaries.items():
            rows.setdefault(evaluation, {})[model] = row
        shifts = shifts_of(run.recipe)
        shifted = {name for each in shifts.values() for name in each}
        for evaluation in (name for name in rows if name not in shifted):
            run.console.show(_table(evaluation, rows[evaluation]))
        for evaluation, each in shifts.items():
            if evaluation in rows:
                run.console.show(_shift_table(evaluation, each, rows, changed_shares(run)))
        return {
            f"{evaluation}/{model}": asdict(summary)
            for (evaluation, model), summary in summaries.items()
        }


def _answered(run: Run, unit: Unit, folder: Path) -> EvalRecords:
    """Run a model over the questions of an evaluation."""
    if run.generation(unit.evaluation) is not None:
        from firstcli.stages import generated

        return generated.answered(run, unit, generated.questions_of(run, unit))
    from firstcli.stages import remote, scoring

    return scoring.answered(run, unit, remote.answers_file(folder))


def _facts(records: EvalRecords, confidence: FloatArray, bins: int = 10) -> EvalFacts:
    """Return the main metrics of records.

    Args:
        records: the answers.
        confidence: of each prediction, (N,).
        bins: of the ECE.
    """
    from firstcli import metrics

    if not records.answerable:
        return EvalFacts(len(records), confidence=metrics.mean_confidence(confidence))
    accuracy = metrics.accuracy(records.correct)
    ece = metrics.ece(confidence, records.correct, bins)
    return EvalFacts(len(records), accuracy, ece, accuracy - ece)


def _shown(run: Run, unit: Unit) -> tuple[EvalFacts, Guessing | None]:
    """Return the main metrics with the recipe's `metrics`, and the guessing that explains them.

    The stored ones are of first tokens and 10 bins, because `metrics` must not repeat the work.
    They stand in where no candidates were recorded as `metrics` asks for; the report then says so.
    Without the confidence that it asks for, the accuracy is all.
    """
    from firstcli.metrics.guessing import explains_all

    settings = run.recipe.metrics
    try:
        (records,) = load_records([unit], settings.candidates).values()
    except UserError:
        return EvalFacts.of(run.manifests[unit.key].facts), None
    confidence = records.shown(settings.confidence)
    guess = explains_all([records]) if records.answerable else None
    if confidence is None:
        stored = EvalFacts.of(run.manifests[unit.key].facts)
        return EvalFacts(stored.n, stored.accuracy), guess
    return _facts(records, confidence, settings.bins), guess


def changed_shares(run: Run) -> dict[str, float]:
    """Return the share of prompts that each shift changes, as far as a finished unit states it."""
    found = {}
    for unit in EVALUATE.units(run.recipe, run.folder):
        if unit.key in run.manifests:
            share = EvalFacts.of(run.manifests[unit.key].facts).changed
            if share is not None:
                found[unit.evaluation] = share
    return found


def load_records(
    units: Iterable[Unit], candidates: Candidates
) -> dict[tuple[str, str], EvalRecords]:
    """Read finished records, by evaluation and model.

    Raises:
        UserError: a file is damaged, or does not contain the scores of `metrics.candidates`.
    """
    from firstcli.metrics.records import EvalRecords

    records = {}
    for unit in units:
        stored = EvalRecords.load(unit.artifact.path)
        try:
            records[unit.evaluation, unit.model.name] = stored.scored(candidates)
        except UserError as error:
            raise UserError(f"metrics.candidates: {unit.artifact.path}: {error}") from error
    return records


def _table(evaluation: str, rows: Mapping[str, EvalMetrics]) -> Table:
    """Return a table that fits 80 columns."""
    from firstcli.metrics import METRICS

    counts = {summary.n for summary in rows.values()}
    title = f"{evaluation}: {counts.pop():,} questions" if len(counts) == 1 else evaluation
    metrics = [METRICS[name] for name in COLUMNS if name != "n" or counts]
    columns = [Column(metric.short, justify="right") for metric in metrics]
    table = Table(
        "model",
        *columns,
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title_justify="left",
    )
    for model, summary in rows.items():
        table.add_row(model, *(metric.text(getattr(summary, metric.name)) for metric in metrics))
    return table


def _shift_table(
    evaluation: str,
    shifts: Mapping[str, Shift],
    rows: Mapping[str, Mapping[str, EvalMetrics]],
    changed: Mapping[str, float],
) -> Table:
    """Return accuracy and mean confidence under the strongest shift of each kind.

    Args:
        evaluation: the evaluation.
        shifts: its shifts by name.
        rows: the metrics of each model, by evaluation.
        changed: the shares of prompts that are changed, by the names of the shifts.
    """
    from firstcli.metrics import METRICS
    from firstcli.reporting.shift_tables import (
        UNSHIFTED,
        changed_in_words,
        counts_in_words,
        in_words,
        strongest,
    )

    titles = {evaluation: UNSHIFTED}
    titles |= {name: in_words(shift) for name, shift in strongest(shifts).items()}
    counts = {name: min(row.n for row in rows[name].values()) for name in titles}
    notes = (changed_in_words(strongest(shifts), changed), counts_in_words(titles, counts))
    table = Table(
        "model",
        *(Column(title, justify="right") for title in titles.values()),
        title=f"{evaluation} under shift: accuracy / mean confidence",
        caption="; ".join(filter(None, notes)) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title_justify="left",
    )
    metrics = [METRICS["accuracy"], METRICS["confidence"]]
    for model in rows[evaluation]:
        found = [rows[name][model] for name in titles]
        cells = [" / ".join(m.text(getattr(each, m.name)) for m in metrics) for each in found]
        table.add_row(model, *cells)
    return table


def _has_chats(run: Run) -> bool:
    """Whether training, which may be on conversations, or an evaluation may be a chat."""
    if not run.recipe.train.task.plugin.has_candidates:
        return True
    tasks = [run.recipe.train.task, *(each.task for each in run.recipe.evaluate)]
    return any(task.chat for task in tasks)


EVALUATE = Evaluate()
