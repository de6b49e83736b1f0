"""Accuracy and ECE of a multiple-choice task in lm-evaluation-harness.

`first export --lm-eval` copies this file beside the task's YAML, which names its functions. It
needs nothing of firstcli.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from math import exp, fsum
from pathlib import Path
from typing import Any

BINS = 10
"""Bins of equal width; an edge belongs to the bin below it."""


def load(file: str, **_: Any) -> dict[str, Any]:
    """Return the split `test`: the questions in a file beside this one."""
    from datasets import Dataset

    text = (Path(__file__).parent / file).read_text("utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.splitlines()])}


def score(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return a question's metrics from the log-likelihood of each choice."""
    log_likelihoods = [log_likelihood for log_likelihood, _ in results]
    top = max(log_likelihoods)
    confidence = 1 / fsum(exp(each - top) for each in log_likelihoods)
    correct = log_likelihoods.index(top) == doc["answer"]
    return {"acc": float(correct), "ece": (confidence, correct)}


def ece(answers: Sequence[tuple[float, bool]]) -> float:
    """Return the expected calibration error: the weighted mean of |accuracy - confidence|."""
    gaps: dict[int, list[float]] = {}
    edges = [i / BINS for i in range(1, BINS)]
    for confidence, correct in answers:
        gaps.setdefault(bisect_left(edges, confidence), []).append(correct - confidence)
    return fsum(abs(fsum(bin)) for bin in gaps.values()) / len(answers)
