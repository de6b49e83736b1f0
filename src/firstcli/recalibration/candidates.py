"""Recalibrate the candidates' probabilities of a model's answers, after the model has been run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from firstcli.api import TopKRows
from firstcli.metrics.records import EvalRecords
from firstcli.plugins.recalibrators import CheckedRecalibrator


def candidate_rows(records: EvalRecords, task: str) -> TopKRows:
    """Return the candidates of each question as rows, most likely first.

    Rows with fewer candidates than others are filled up with probability 0 and candidate -1.
    """
    order = np.argsort(-records.log_probs, axis=1, kind="stable")  # (N, C)
    count = len(records)
    return TopKRows(
        topk=np.take_along_axis(records.probabilities, order, axis=1),
        mass=np.ones(count),
        mass_mode="one",
        candidate=np.where(order < records.count[:, None], order, -1),
        token_ids=None,
        sample_ids=records.ids,
        position=np.zeros(count, np.int64),
        is_answer=np.ones(count, np.bool_),
        task=task,
    )


def recalibrated(records: EvalRecords, fitted: CheckedRecalibrator, task: str) -> EvalRecords:
    """Return records with recalibrated probabilities of the candidates.

    Args:
        records: a model's answers.
        fitted: the fitted recalibrator.
        task: name of the task that the questions come from.
    """
    rows = candidate_rows(records, task)
    log_probs = np.full(records.log_probs.shape, -np.inf)
    for count in np.unique(records.count):  # no question gets probability for missing candidates
        chosen = np.flatnonzero(records.count == count)
        part = _narrowed(rows.rows(chosen), int(count))
        with np.errstate(divide="ignore"):
            values = np.log(fitted.transform(part).distribution)
        log_probs[chosen[:, None], part.candidate] = values

    whole = None
    if records.whole is not None:
        with np.errstate(invalid="ignore"):  # of padding, replaced by what the token has: -inf
            changed = records.whole + (log_probs - records.log_probs)
        whole = records.ragged(np.where(np.isneginf(log_probs), log_probs, changed))
    return EvalRecords.from_log_probs(
        ids=records.ids,
        answers=records.answer.tolist(),
        log_probs=records.ragged(log_probs),
        truth=None if records.truth is None else records.ragged(records.truth),
        whole=whole,
        groups=records.groups,
        scope="candidates",
        prediction=records.prediction.tolist() if records.stated else None,
    )


def _narrowed(rows: TopKRows, count: int) -> TopKRows:
    return replace(rows, topk=rows.topk[:, :count], candidate=rows.candidate[:, :count])
