"""Stage `eval`: every model's probability of every candidate, one forward pass a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

from firstcli import metrics
from firstcli.data.encoding import Question
from firstcli.metrics.records import EvalRecords
from firstcli.models import inference, readout
from firstcli.models.batching import run_batched
from firstcli.runtime import distributed
from firstcli.stages import inputs, posthoc
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

BATCH_TOKENS = 8192


def check(run: Run, unit: Unit) -> str:
    """Check that the candidates can be told apart; return what the plan says of size."""
    if not unit.evaluation:
        return posthoc.check(run, unit)
    asked = inputs.questions(run, unit.role, unit.evaluation)
    return f"{len(asked)} questions"


@torch.inference_mode()
def work(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Ask every question and write the records; a temperature behind a model asks nothing."""
    assert unit.model
    if not unit.evaluation:
        return posthoc.fit(run, unit, folder)
    if unit.model.posthoc:
        return _recorded(posthoc.applied(run, unit), unit, folder) if distributed.is_first() else {}
    asked = inputs.questions(run, unit.role, unit.evaluation)
    model = inputs.model(run, unit.model)
    reader = readout.Reader(model, run.console.say)
    lengths = np.array([len(one.input_ids) for one in asked])
    answers = run_batched(
        *(run.console, unit.key, "questions", asked, lengths, BATCH_TOKENS),
        lambda some: candidate_log_probs(reader, some),
    )
    if not distributed.is_first():
        return {}
    truths = [one.truth for one in asked]
    records = EvalRecords.from_log_probs(
        ids=[one.id for one in asked],
        answers=[-1 if one.answer is None else one.answer for one in asked],
        log_probs=[answers[one.id] for one in asked],
        truth=None if any(truth is None for truth in truths) else [t for t in truths if t],
    )
    return _recorded(records, unit, folder)


def _recorded(records: EvalRecords, unit: Unit, folder: Path) -> dict[str, Any]:
    assert unit.model
    about = {"evaluation": unit.evaluation, "model": unit.model.name}
    records.save(folder / f"{unit.model.name}.parquet", about)
    if not records.answerable:
        return {"n": len(records), "confidence": metrics.mean_confidence(records.confidence)}
    accuracy = metrics.accuracy(records.correct)
    ece = metrics.ece(records.confidence, records.correct)
    return {"n": len(records), "accuracy": accuracy, "ece": ece, "trust": accuracy - ece}


def candidate_log_probs(
    reader: readout.Reader, questions: Sequence[Question]
) -> dict[str, list[float]]:
    """Return each candidate's log-probability in the whole vocabulary, by question id."""
    device = next(reader.model.parameters()).device
    padded = inference.pad([one.input_ids for one in questions])
    rows = torch.arange(len(questions), device=device)
    last = torch.tensor([len(one.input_ids) - 1 for one in questions], device=device)
    candidates = [torch.tensor(one.candidate_ids) for one in questions]
    token_ids = pad_sequence(candidates, batch_first=True).to(device)  # (B, C)
    log_probs = reader(
        padded.input_ids.to(device),
        padded.attention_mask.to(device),
        rows,
        last,
        lambda scores: readout.log_probs(scores, token_ids),
    ).tolist()
    return {
        one.id: row[: len(one.candidate_ids)] for one, row in zip(questions, log_probs, strict=True)
    }


def load_records(run: Run, units: Sequence[Unit]) -> dict[tuple[str, str], EvalRecords]:
    """Read finished records, by (evaluation, model)."""
    return {
        (unit.evaluation, unit.model.name): EvalRecords.load(unit.artifact.path)
        for unit in units
        if unit.stage == "eval" and unit.evaluation and unit.model
    }


def summary(run: Run, units: list[Unit]) -> dict[str, Any]:
    """Show the main metrics, a row a model and evaluation; return every metric."""
    settings = run.recipe.metrics
    found = {
        key: metrics.summarize(records, settings.confidence, settings.bins)
        for key, records in load_records(run, units).items()
    }
    run.console.show(f"confidence: {settings.confidence}, {settings.bins} bins, in percent")
    for evaluation in dict.fromkeys(evaluation for evaluation, _ in found):
        rows = {model: one for (on, model), one in found.items() if on == evaluation}
        run.console.show(_table(evaluation, rows))
    return {f"{evaluation}/{model}": asdict(one) for (evaluation, model), one in found.items()}


_COLUMNS = [
    metrics.METRICS[name]
    for name in (
        *("n", "accuracy", "ece", "ece_null", "ece_p", "bins_used"),
        *("trust", "confidence", "nll", "brier", "candidate_mass"),
    )
]


def _table(evaluation: str, rows: Mapping[str, metrics.EvalMetrics]) -> Table:
    """Return a table that fits 80 columns, and breaks lines rather than cut a number."""
    table = Table(title=evaluation, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), title_justify="left")
    table.add_column("model", overflow="fold")
    for metric in _COLUMNS:
        table.add_column(metric.short, justify="right", overflow="fold")
    for model, one in rows.items():
        table.add_row(model, *(metric.text(getattr(one, metric.name)) for metric in _COLUMNS))
    return table
