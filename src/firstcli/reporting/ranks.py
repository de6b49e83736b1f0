"""Calibration by rank (the paper's Figure 3): probability of the candidates and how often right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import SubFigure

from firstcli.metrics.calibration import wilson
from firstcli.metrics.records import EvalRecords
from firstcli.reporting import gaps
from firstcli.reporting.data import TEACHER, ReportData
from firstcli.reporting.gaps import Gap
from firstcli.reporting.style import Drawing, Numbers, Panel, axes, heading

MAX_RANKS = 5


class Rank(NamedTuple):
    """The candidates of one rank: their mean probability and how often they are right."""

    rank: int
    confidence: float
    frequency: float
    n: int


def profile(records: EvalRecords) -> list[Rank]:
    """Return the first `MAX_RANKS` ranks of the candidates, most likely first.

    A rank covers the questions with that many candidates. Equally likely candidates keep their
    order.
    """
    probabilities = records.probabilities  # (N, C)
    order = np.argsort(-probabilities, axis=1, kind="stable")  # missing candidates come last
    ranked = np.take_along_axis(probabilities, order, axis=1)
    right = order == records.answer[:, None]
    result = []
    for r in range(min(MAX_RANKS, probabilities.shape[1])):
        present = records.count > r  # (N,)
        confidence, frequency = (float(column[present, r].mean()) for column in (ranked, right))
        result.append(Rank(r + 1, confidence, frequency, int(present.sum())))
    return result


def drawing(data: ReportData, evaluation: str) -> Drawing | None:
    """Return one diagram per model, at its first seed."""
    profiles = _profiles(data, evaluation)
    alike = [each for name in data.illustrated for each in _profiles(data, name).values()]
    return _drawing(f"ranks+{evaluation}", profiles, alike) if profiles else None


def _profiles(data: ReportData, evaluation: str) -> dict[str, list[Rank]]:
    records = {row: r for row, r in data.first_of(evaluation).items() if r.answerable}
    shown = [row for row in paper_rows(data) if row in records] or list(records)
    return {row: profile(records[row]) for row in shown}


def paper_rows(data: ReportData) -> tuple[str, ...]:
    """Return the rows of the paper's figures."""
    return (TEACHER, "fine-tune", "distill", data.method)


def validation(data: ReportData) -> Drawing | None:
    """Return diagrams of the validation tokens before and after each recalibration."""
    profiles = {
        f"{name}: {when}": [Rank(r.rank, getattr(r, key), r.frequency, r.n) for r in ranks]
        for name, fitted in data.calibrations.items()
        if (ranks := [rank for rank in fitted.ranks if rank.n][:MAX_RANKS])
        for when, key in (("before", "confidence_before"), ("after", "confidence_after"))
    }
    return _drawing("ranks-validation", profiles, list(profiles.values())) if profiles else None


def _drawing(
    name: str, profiles: Mapping[str, Sequence[Rank]], alike: Sequence[Sequence[Rank]]
) -> Drawing:
    """Return one panel per profile; `alike` are all profiles that share the scale."""
    tops = [max(r.confidence, r.frequency) for ranks in alike for r in ranks]
    top = min(1.0, 1.1 * max(tops))
    panels = tuple(
        Panel(title, partial(_draw, title, ranks, top), _description(title, ranks))
        for title, ranks in profiles.items()
    )
    rows = tuple((title, *rank) for title, ranks in profiles.items() for rank in ranks)
    draw_key = partial(gaps.key, accuracy="how often it is right")
    key = Panel("key", draw_key, "Key to the bars, explained in the text above.")
    numbers = Numbers(("model", *Rank._fields), rows)
    return Drawing(name, panels, numbers, key, size=(3.0, 2.6), key_height=0.45)


def _description(title: str, ranks: Sequence[Rank]) -> str:
    values = "; ".join(
        f"rank {r.rank}: mean probability {100 * r.confidence:.1f} percent, right "
        f"{100 * r.frequency:.1f} percent of the time"
        for r in ranks
    )
    return f"Bars of {title} by rank: {values}."


def _draw(title: str, ranks: Sequence[Rank], top: float, place: SubFigure) -> None:
    first = ranks[0]
    line = f"rank 1: {100 * first.confidence:.1f} % predicted, {100 * first.frequency:.1f} % right"
    heading(place, title, line)
    main = axes(place, bottom=0.42)
    for r in ranks:
        ends = wilson(r.frequency, r.n)
        gaps.draw(main, Gap(r.rank - 0.36, 0.72, r.confidence, r.frequency, *ends))
    main.set(xlim=(0.4, MAX_RANKS + 0.6), ylim=(0, top), xticks=[r.rank for r in ranks])
    main.set(xlabel="rank", ylabel="share right")
