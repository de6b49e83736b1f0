"""The reliability diagram beside a model card."""

from __future__ import annotations

from firstcli.metrics import reliability_bins, summarize
from firstcli.metrics.records import Confidence, EvalRecords
from firstcli.reporting import reliability, style


def reliability_diagram(
    title: str, records: EvalRecords, confidence: Confidence, bins: int
) -> bytes:
    """Return the diagram of a model on one evaluation as PNG.

    Args:
        title: heading of the diagram.
        records: the model's answers.
        confidence: the kind of confidence; it must be known.
        bins: number of bins.
    """
    shown = records.shown(confidence)
    assert shown is not None
    numbers = summarize(records, confidence, bins)
    drawn = reliability_bins(shown, records.correct, bins)
    curve = reliability.BinnedRow(title, numbers, drawn, style.looks([title])[title])
    panel = reliability.panel([curve], confidence)
    drawing = style.Drawing("reliability", (panel,), style.Numbers((), ()))
    return style.png(drawing)
