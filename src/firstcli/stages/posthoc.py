"""A model followed by its own temperature: the baseline that needs no training (Guo et al. 2017).

T is fitted on the model's top k at the position that decides, on the validation part, where the
model was never trained; then it divides the candidates' log-probabilities before these are
renormalised. How much lies outside the candidates is unknown from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from firstcli.data.encoded import EncodedStore, lengths_of
from firstcli.data.encoding import EncodedSample
from firstcli.errors import UserError
from firstcli.knowledge.top_k import TopK
from firstcli.metrics.records import EvalRecords
from firstcli.models import readout
from firstcli.models.batching import run_batched
from firstcli.recalibration.builtin import softmax
from firstcli.recalibration.diagnostics import CalibrationArtifact
from firstcli.recipe.references import PosthocRef
from firstcli.recipe.schema import recalibrator_named
from firstcli.runtime import distributed
from firstcli.stages import inputs
from firstcli.stages.extract import BATCH_TOKENS, top_k_of
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

if TYPE_CHECKING:
    from firstcli.api import BoolArray, FloatArray


LITTLE = 0.9  # of the probability on the candidates; the rest tells a temperature of other tokens


def check(run: Run, unit: Unit) -> str:
    """Check that there are rows to fit on; return what the plan says of size."""
    return f"a temperature on {len(_rows(run, unit))} validation samples"


def _rows(run: Run, unit: Unit) -> EncodedStore:
    if not run.training.validation:
        raise UserError(
            f"train.validation: {run.recipe.train.validation} of the training split leaves no row "
            "to fit a temperature on; raise it"
        )
    rows = inputs.training_rows(run, unit.role, "validation")
    rows = rows.where(rows.decide)
    if not len(rows):
        raise UserError(f"{unit.key}: no validation row has a position that decides")
    return rows


def _section(run: Run, unit: Unit) -> PosthocRef:
    section = run.recipe.arms[unit.arm] if unit.arm else run.recipe.teacher
    assert section and section.posthoc
    return section.posthoc


@torch.inference_mode()
def fit(run: Run, unit: Unit, folder: Path) -> dict[str, Any]:
    """Fit the temperature and write its state, with what it was fitted on."""
    assert unit.model
    rows = _rows(run, unit)
    found = _asked(run, unit, rows)
    if not distributed.is_first():
        return {}
    ref = _section(run, unit)
    recalibrator = recalibrator_named(ref)
    topk, is_label = _decisive(rows, found)
    mass = topk.sum(axis=1)
    recalibrator.fit(topk, is_label, mass, "teacher")
    for warning in recalibrator.diagnostics().warnings:
        run.console.warn(f"{unit.model.name}: {warning}")
    artifact = CalibrationArtifact.measure(
        *(recalibrator, topk, is_label, mass),
        name=ref.name,
        options=ref.options,
        positions="decisive",
    )
    artifact.save(folder / f"{unit.model.name}.json")
    return artifact.short_facts()


def _asked(run: Run, unit: Unit, rows: Sequence[EncodedSample]) -> dict[str, TopK]:
    """Return the model's top k at all supervised positions, by sample id."""
    assert unit.model
    limit = inputs.vocabulary(run, unit.role)
    top_k = min(run.recipe.knowledge.top_k, limit)
    reader = readout.Reader(inputs.model(run, unit.model), run.console.say)
    return run_batched(
        *(run.console, unit.key, "samples", rows, lengths_of(rows), BATCH_TOKENS),
        lambda some: top_k_of(reader, some, top_k, limit),
    )


def _decisive(
    rows: Sequence[EncodedSample], found: dict[str, TopK]
) -> tuple[FloatArray, BoolArray]:
    """Return probabilities (N, k) where each row decides, and which token is the true one."""
    topk, is_label = [], []
    for row in rows:
        assert row.decisive is not None
        known, at = found[row.id], row.decisive - row.start
        topk.append(np.exp(known.log_probs[at], dtype=np.float64))
        is_label.append(known.token_ids[at] == row.input_ids[row.decisive])
    return np.array(topk), np.array(is_label)


def applied(run: Run, unit: Unit) -> EvalRecords:
    """Return the model's own answers, with its temperature."""
    assert unit.model
    given = replace(unit.model, posthoc=False)
    folder = run.folder / "eval" / unit.evaluation
    records = EvalRecords.load(folder / f"{given.name}.parquet")
    path = run.folder / "calibration" / f"{unit.model.name}.json"
    temperature = CalibrationArtifact.load(path).state["temperature"]
    if records.candidate_mass is not None and (mass := records.candidate_mass.mean()) < LITTLE:
        run.console.warn(
            f"eval {unit.evaluation}/{unit.model.name}: the candidates hold {100 * mass:.0f} % of "
            "the model's probability; a temperature fitted to all tokens may not suit them"
        )
    return tempered(records, temperature)


def tempered(records: EvalRecords, temperature: float) -> EvalRecords:
    """Divide the candidates' log-probabilities by T and renormalise them over the candidates."""
    with np.errstate(divide="ignore"):
        log_probs = np.log(softmax(records.log_probs, temperature))
    rows = [row[:count] for row, count in zip(log_probs, records.count, strict=True)]
    truth = records.truth
    return EvalRecords.from_log_probs(
        ids=records.ids,
        answers=records.answer.tolist(),
        log_probs=rows,
        truth=None
        if truth is None
        else [row[:count] for row, count in zip(truth, records.count, strict=True)],
        scope="candidates",
    )
