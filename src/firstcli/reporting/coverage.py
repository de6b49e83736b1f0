"""Risk-coverage curves: accuracy of the most confident answers, over their share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.figure import SubFigure

from firstcli.api import FloatArray
from firstcli.metrics import risk_coverage
from firstcli.reporting import style
from firstcli.reporting.data import ReportData

COVERAGES = np.arange(5, 101) / 100  # fewer questions are not informative
_TABULATED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def curve(data: ReportData, evaluation: str, row: str) -> FloatArray | None:
    """Return the mean accuracy over the seeds at each of `COVERAGES`."""
    by_seed = []
    for records, confidence in data.shown(evaluation, row):
        _, accuracy = risk_coverage(confidence, records.correct)
        kept = np.ceil(COVERAGES * len(records) - 1e-9).astype(int)
        by_seed.append(accuracy[np.maximum(kept, 1) - 1])
    return np.mean(by_seed, axis=0) if by_seed else None


def drawing(data: ReportData, evaluation: str) -> style.Drawing | None:
    """Return the curves of all rows in one panel; None if no confidence is known."""
    known = _known(data, evaluation)
    if not known:
        return None
    every = [values for name in data.illustrated for values in _known(data, name).values()]
    ends = (min(values.min() for values in every), max(values.max() for values in every))
    margin = 0.05 * (ends[1] - ends[0]) + 0.01
    span = (max(0.0, ends[0] - margin), min(1.0, ends[1] + margin))
    tabulated = [int(np.argmin(np.abs(COVERAGES - share))) for share in _TABULATED]
    rows = [(row, *(float(values[i]) for i in tabulated)) for row, values in known.items()]
    columns = ("model", *(f"{100 * share:.0f} % answered" for share in _TABULATED))
    half = tabulated[_TABULATED.index(0.5)]
    accuracies = "; ".join(
        f"{row} {100 * values[-1]:.1f} percent of all answers, {100 * values[half]:.1f} percent of "
        "the more confident half"
        for row, values in known.items()
    )
    description = f"Risk-coverage curves on {evaluation}, accuracy by model: {accuracies}."
    look = {row: each for row, each in style.looks(data.rows).items() if row in known}
    panel = style.Panel(evaluation, partial(_draw, evaluation, known, look, span), description)
    name, size = f"risk-coverage+{evaluation}", (4.6, 2.45 + style.key_height(len(known)))
    return style.Drawing(name, (panel,), style.Numbers(columns, rows), size=size)


def _known(data: ReportData, evaluation: str) -> dict[str, FloatArray]:
    curves = {row: curve(data, evaluation, row) for row in data.rows}
    return {row: values for row, values in curves.items() if values is not None}


def _draw(
    title: str,
    curves: Mapping[str, FloatArray],
    look: Mapping[str, style.Look],
    span: tuple[float, float],
    place: SubFigure,
) -> None:
    main = style.keyed_axes(place, title, look, left=0.62, right=0.25)
    for row, values in curves.items():
        main.plot(COVERAGES, values, markevery=(5, 19), **look[row].options)
    main.set(xlim=(0, 1.01), ylim=span, xlabel="share of questions answered, most confident first")
    main.set_ylabel("accuracy of the answers")
    style.percent(main.xaxis)
    style.percent(main.yaxis)
    main.grid(True)
