"""Accuracy, ECE and Trust of each group of an evaluation's questions, and their means over groups.

The metrics of all questions are micro averages: large groups weigh more. A macro average is the
mean of the groups' values, whatever their sizes. The macro ECE usually exceeds the ECE of all
questions: gaps of different groups cannot cancel, and chance opens larger gaps in small groups. Its
null value shows how much of it chance explains.

Shapes: N questions, G groups, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from firstcli.api import FloatArray
from firstcli.metrics.calibration import bin_index, ece_null
from firstcli.metrics.records import Confidence, EvalRecords


class Scores(NamedTuple):
    """Means over groups; None if the confidence is unknown."""

    accuracy: float
    ece: float | None
    trust: float | None


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The metrics of one model on each group of an evaluation, as fractions."""

    names: tuple[str, ...]  # G, sorted
    sizes: tuple[int, ...]  # G
    accuracy: FloatArray  # (G,)
    ece: FloatArray | None  # (G,)
    null: float | None
    """Mean over the groups of the ECE of a perfectly calibrated model with these confidences."""

    @property
    def macro(self) -> Scores:
        """The means over the groups, whatever their sizes."""
        accuracy = float(self.accuracy.mean())
        if self.ece is None:
            return Scores(accuracy, None, None)
        ece = float(self.ece.mean())
        return Scores(accuracy, ece, accuracy - ece)


def group_scores(records: EvalRecords, confidence: Confidence, bins: int) -> GroupScores | None:
    """Return the metrics by group; None without groups or without right candidates.

    Args:
        records: one row per question.
        confidence: the prediction's probability among the `candidates` or in the `full` vocabulary.
        bins: number of equal-width bins, the same in every group.
    """
    if records.groups is None or not records.answerable:
        return None
    names, group, sizes = np.unique(records.groups, return_inverse=True, return_counts=True)
    accuracy = np.bincount(group, weights=records.correct) / sizes
    shown, ece, null = records.shown(confidence), None, None
    if shown is not None:
        cell = group * bins + bin_index(shown, bins)  # (N,)
        gaps = np.bincount(cell, weights=shown - records.correct, minlength=len(names) * bins)
        ece = np.abs(gaps).reshape(-1, bins).sum(axis=1) / sizes
        nulls = [ece_null(shown[group == g], bins).mean() for g in range(len(names))]
        null = float(np.mean(nulls))
    return GroupScores(tuple(names.tolist()), tuple(sizes.tolist()), accuracy, ece, null)
