"""An invented run to report on."""

from __future__ import annotations

import math
from typing import Any

from firstcli.api import Curve, Sample
from firstcli.metrics.records import EvalRecords
from firstcli.recalibration.diagnostics import RankCalibration
from firstcli.recipe.sections import MetricsSettings
from firstcli.reporting.data import ArmFacts, FittedRecalibrator, ReportData, TeacherPart

EVIL = "<script>alert('x')</script>"


def answers(
    confidence: float,
    right: int,
    n: int = 200,
    *,
    known: bool = False,
    answerable: bool = True,
    post_hoc: bool = False,
) -> EvalRecords:
    """Return n questions of equal confidence, of which the first `right` are answered correctly."""
    other = (1 - confidence) / 2
    return EvalRecords.from_log_probs(
        ids=[f"q{i:04}" for i in range(n)],
        answers=[(0 if i < right else 1) if answerable else -1 for i in range(n)],
        log_probs=[[math.log(0.9 * p) for p in (confidence, other, other)]] * n,
        truth=[[0.75, 0.15, 0.1]] * n if known else None,
        scope="candidates" if post_hoc else "vocabulary",
    )


def report(**changes: Any) -> ReportData:
    """Return a report of a teacher and four students on two evaluations, with fields replaced."""
    rows = ("teacher", "fine-tune", "fine-tune + T", "distill", "first")
    content: dict[str, Any] = {
        "run": "demo",
        "recipe": "name: demo\n",
        "members": {row: (row.replace(" + T", "+T"),) for row in rows},
        "evaluations": ["csqa", "world"],
        "records": {
            ("csqa", "teacher"): answers(0.95, 180),
            ("csqa", "fine-tune"): answers(0.95, 140),
            ("csqa", "fine-tune+T"): answers(0.75, 140, post_hoc=True),
            ("csqa", "distill"): answers(0.85, 140),
            ("csqa", "first"): answers(0.85, 160),
            ("world", "teacher"): answers(0.8, 160, known=True),
            ("world", "fine-tune"): answers(0.9, 160, known=True),
            ("world", "first"): answers(0.78, 140, known=True),
        },
        "settings": MetricsSettings(),
        "notes": [("temperature of first", "T = 0.34")],
        "versions": {"firstcli": "1.2.3"},
    }
    return ReportData(**(content | changes))


def sample(id: str, prompt: str) -> Sample:
    return Sample.question(prompt, (" yes", " no", " maybe"), 0, id=id)


def curve(best: float, *temperatures: float) -> Curve:
    """Return a criterion with its minimum at `best`."""
    points = tuple((t, 0.1 + (t - best) ** 2) for t in sorted({best, *temperatures}))
    return Curve(points, best, (0.9 * best, 1.1 * best))


CALIBRATION = FittedRecalibrator(
    ranks=(RankCalibration(1, 0.9, 0.6, 0.6, 90), RankCalibration(2, 0.1, 0.3, 0.3, 90)),
    curves={"ece": curve(0.4, 0.1, 1.0), "nll": curve(0.5, 0.1, 1.0)},
    criterion="ece",
)

CONCENTRATION: dict[str, Any] = {
    "positions": 1234,
    "precision": "standard",
    "ranks": list(range(1, 101)),
    "mean": [1 - 0.3 / r**2 for r in range(1, 101)],
    "low": [1 - 0.8 / r for r in range(1, 101)],
    "p05": [1 - 0.5 / r**1.5 for r in range(1, 101)],
    "p95": [1 - 0.01 / r for r in range(1, 101)],
    "high": [1.0] * 100,
    "bytes": {"1": 2.1, "2": 3.2, "5": 5.8, "10": 9.5, "100": 58.0},
}


def everything(**changes: Any) -> ReportData:
    """Return a report that fills all sections of the page."""
    base = report()
    extra = {f"k{k}": (f"k{k}",) for k in (1, 20)} | {"cold": ("cold",), "warm": ("warm",)}
    records = dict(base.records)
    records |= {("csqa", name): answers(0.8, 150 + i) for i, name in enumerate(extra)}
    records |= {
        ("none", row): answers(0.6, 0, answerable=False) for row in ("teacher", "fine-tune")
    }
    content: dict[str, Any] = {
        "members": dict(base.members) | extra,
        "evaluations": ["csqa", "world", "none"],
        "records": records,
        "seconds": {"finetune": 12.0, "distill first": 100.0, "distill distill": 300.0},
        "calibrations": {"first": CALIBRATION, "fine-tune + T": CALIBRATION},
        "concentration": CONCENTRATION,
        "arms": {
            "first": ArmFacts("temperature-scaling", None, 5, 0.99),
            "k1": ArmFacts("temperature-scaling", None, 1, 0.7),
            "k20": ArmFacts("temperature-scaling", None, 20, 0.999),
            "cold": ArmFacts("temperature-scaling", 0.2, 5, 0.99),
            "warm": ArmFacts("temperature-scaling", 0.8, 5, 0.99),
            "distill": ArmFacts("none", None, 5, 0.99),
        },
        "teacher_parts": [
            TeacherPart("training", 0.97, 0.98, 2000),
            TeacherPart("validation", 0.81, 0.64, 200),
        ],
        "questions": {
            "csqa": [sample("q0001", f"Is this a script? {EVIL}"), sample("q0150", "Is it?")],
            "none": [sample("q0002", "Which of these?\n(none)")],
        },
    }
    return report(**(content | changes))
