"""Stage `eval`: every model's probability of every candidate, one forward pass per question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.runtime import distributed
from firstcli.stages import checks, posthoc
from firstcli.stages.base import Facts, Stage
from firstcli.stages.posthoc import POSTHOC
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Model, Unit, models_of, records_path

if TYPE_CHECKING:
    from rich.table import Table

    from firstcli import metrics
    from firstcli.api import JSON
    from firstcli.metrics.records import EvalRecords
    from firstcli.recipe.schema import Recipe
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


class Evaluate(Stage):
    """Records the answers of every model on every evaluation."""

    name = "eval"
    help = "Measure accuracy, ECE and Trust of teacher and students, or of any other outputs."
    format = 2  # read out at the output layer: different last bits
    shared = True
    has_arms = True
    checks = (checks.OVERLAP, checks.UNPINNED)

    def key(self, evaluation: str, model: Model) -> str:
        return f"{self.name} {evaluation}/{model.name}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for evaluation in recipe.evaluate:
            for model in models_of(recipe):
                yield Unit(
                    self.key(evaluation.name, model),
                    self.name,
                    Artifact(records_path(folder, evaluation.name, model), False),
                    self._needs(recipe, evaluation.name, model),
                    arm=model.arm,
                    evaluation=evaluation.name,
                    model=model,
                )

    def _needs(self, recipe: Recipe, evaluation: str, model: Model) -> tuple[str, ...]:
        if model.posthoc:  # the plain model's answers with different confidences
            return (self.key(evaluation, replace(model, posthoc=False)), POSTHOC.key(model))
        return posthoc.trained_by(recipe, model)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.stages import fingerprints

        if unit.model and unit.model.posthoc:
            return {}
        return {
            "evaluation samples": run.evaluation_content(unit.evaluation),
            "longest sample": fingerprints.longest_sample(run, unit),
        } | fingerprints.predictions(run, unit.role)

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.stages import inputs

        return f"{len(inputs.questions(run, unit.role, unit.evaluation))} questions"

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return None if unit.model and unit.model.posthoc else probe.evaluation(unit)

    def work(self, run: Run, unit: Unit, folder: Path) -> EvalFacts | None:
        from firstcli import metrics

        assert unit.model
        if unit.model.posthoc:
            records = posthoc.tempered_records(run, unit) if distributed.is_first() else None
        else:
            records = _answered(run, unit)
        if records is None:
            return None
        about = {"evaluation": unit.evaluation, "model": unit.model.name}
        records.save(folder / f"{unit.model.name}.parquet", about)
        if not records.answerable:
            return EvalFacts(len(records), confidence=metrics.mean_confidence(records.confidence))
        accuracy = metrics.accuracy(records.correct)
        ece = metrics.ece(records.confidence, records.correct)
        return EvalFacts(len(records), accuracy, ece, accuracy - ece)

    def summary(self, run: Run, units: Sequence[Unit]) -> dict[str, JSON]:
        """Print the main metrics, one table per evaluation; return every metric."""
        from firstcli import metrics

        settings = run.recipe.metrics
        summaries = {
            key: metrics.summarize(records, settings.confidence, settings.bins)
            for key, records in load_records(run, units).items()
        }
        run.console.show(f"confidence: {settings.confidence}, {settings.bins} bins, in percent")
        for evaluation in dict.fromkeys(evaluation for evaluation, _ in summaries):
            rows = {model: one for (on, model), one in summaries.items() if on == evaluation}
            run.console.show(_table(evaluation, rows))
        return {
            f"{evaluation}/{model}": asdict(summary)
            for (evaluation, model), summary in summaries.items()
        }


def _answered(run: Run, unit: Unit) -> EvalRecords | None:
    """Run the model over all questions; only the first process returns records."""
    import numpy as np
    import torch

    from firstcli.metrics.records import EvalRecords
    from firstcli.models import readout
    from firstcli.models.batching import run_batched
    from firstcli.stages import inputs, scoring

    assert unit.model
    questions = inputs.questions(run, unit.role, unit.evaluation)
    reader = readout.Reader(inputs.model(run, unit.model), run.console.say)
    with torch.inference_mode():
        log_probs = run_batched(
            run.console,
            unit.key,
            "questions",
            questions,
            np.array([len(question.input_ids) for question in questions]),
            scoring.EVALUATION_TOKENS,
            lambda batch: scoring.candidate_log_probs(reader, batch),
        )
    if not distributed.is_first():
        return None
    truths = [question.truth for question in questions]
    known = [truth for truth in truths if truth is not None]
    return EvalRecords.from_log_probs(
        ids=[question.id for question in questions],
        answers=[-1 if question.answer is None else question.answer for question in questions],
        log_probs=[log_probs[question.id] for question in questions],
        truth=known if len(known) == len(truths) else None,
    )


def load_records(run: Run, units: Iterable[Unit]) -> dict[tuple[str, str], EvalRecords]:
    """Read finished records, by evaluation and model."""
    from firstcli.metrics.records import EvalRecords

    return {
        (unit.evaluation, unit.model.name): EvalRecords.load(unit.artifact.path)
        for unit in units
        if unit.model
    }


def _table(evaluation: str, rows: Mapping[str, metrics.EvalMetrics]) -> Table:
    """Return a table that fits 80 columns; it wraps lines rather than cut a number."""
    from rich import box
    from rich.table import Table

    from firstcli.metrics import METRICS

    table = Table(title=evaluation, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title_justify="left")
    table.add_column("model", overflow="fold")
    columns = [METRICS[name] for name in COLUMNS]
    for metric in columns:
        table.add_column(metric.short, justify="right", overflow="fold")
    for model, summary in rows.items():
        table.add_row(model, *(metric.text(getattr(summary, metric.name)) for metric in columns))
    return table


EVALUATE = Evaluate()
