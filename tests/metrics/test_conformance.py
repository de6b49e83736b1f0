"""Our metrics compared with those of other libraries, with reasons for all differences.

scikit-learn, scipy and torchmetrics come with the test extras, the others with the extra `oracle`.
`python tests/test_conformance.py` prints the table of `docs/metrics.md`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from firstcli import metrics
from firstcli.metrics.calibration import wilson

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Data:
    """The predictions of one model."""

    confidence: Floats
    correct: npt.NDArray[np.bool_]
    probabilities: Floats
    answer: npt.NDArray[np.int32]

    @property
    def right(self) -> npt.NDArray[np.int64]:
        return self.correct.astype(np.int64)


def predictions(n: int = 1003, seed: int = 0) -> Data:
    """Return over-confident predictions of four candidates, between the edges of all bins."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (n, 4))
    world = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answer = np.array([random.choice(4, p=p) for p in world], np.int32)
    shown = np.exp(1.6 * logits) / np.exp(1.6 * logits).sum(1, keepdims=True)
    return Data(shown.max(1), shown.argmax(1) == answer, shown, answer)


def of(groups: list[tuple[float, int, int]]) -> Data:
    """Return predictions of a few confidences: (value, number right, number wrong)."""
    confidence = np.concatenate([np.full(right + wrong, c) for c, right, wrong in groups])
    correct = np.concatenate([np.arange(right + wrong) < right for _, right, wrong in groups])
    both = np.stack([confidence, 1 - confidence], axis=1)
    return Data(confidence, correct, both, np.where(correct, 0, 1).astype(np.int32))


BETWEEN = predictions()
# Rounding and piecewise constant recalibrators give such values: which bin has the edge matters.
EDGES = of([(i / 20, i // 4 + 9 * (i // 2 % 2), 14 - 9 * (i // 2 % 2)) for i in range(1, 20)])
ENDS = of([(0.0, 5, 1), (0.05, 0, 6), (0.35, 2, 4), (0.95, 9, 0), (1.0, 5, 5)])


def sklearn_ece(d: Data) -> float:
    from sklearn.calibration import calibration_curve

    right, shown = calibration_curve(d.correct, d.confidence, n_bins=10, pos_label=1)
    index = np.searchsorted(np.linspace(0, 1, 11)[1:-1], d.confidence)
    counts = np.bincount(index, minlength=10)
    return float(np.sum(np.abs(right - shown) * counts[counts > 0]) / len(d.confidence))


def sklearn_brier(d: Data) -> float:
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(d.right, d.confidence, pos_label=1))


def sklearn_brier_of_all(d: Data) -> float:
    from sklearn.metrics import mean_squared_error
    from sklearn.preprocessing import label_binarize

    outcome = label_binarize(d.answer, classes=range(d.probabilities.shape[1]))
    return float(mean_squared_error(outcome, d.probabilities) * d.probabilities.shape[1])


def sklearn_nll(d: Data) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(d.answer, d.probabilities, labels=range(d.probabilities.shape[1])))


def scipy_auroc(d: Data) -> float:
    from scipy.stats import mannwhitneyu

    right, wrong = d.confidence[d.correct], d.confidence[~d.correct]
    return float(mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


def scipy_wilson(d: Data) -> float:
    from scipy.stats import binomtest

    return float(binomtest(int(d.right.sum()), len(d.right)).proportion_ci(0.95, "wilson").low)


def torchmetrics_error(norm: Literal["l1", "max"]) -> Callable[[Data], float]:
    def measured(d: Data) -> float:
        import torch
        from torchmetrics.functional.classification import binary_calibration_error as error

        return float(error(torch.tensor(d.confidence), torch.tensor(d.right), n_bins=10, norm=norm))

    return measured


def torchmetrics_multiclass_ece(d: Data) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error as error

    answer = torch.tensor(d.answer.astype(np.int64))
    return float(error(torch.tensor(d.probabilities), answer, num_classes=4, n_bins=10))


def torchmetrics_auroc(d: Data) -> float:
    import torch
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(torch.tensor(d.confidence), torch.tensor(d.right)))


def netcal_error(name: str, **options: Any) -> Callable[[Data], float]:
    def measured(d: Data) -> float:
        netcal = pytest.importorskip("netcal.metrics")
        return float(getattr(netcal, name)(10, **options).measure(d.confidence, d.right))

    return measured


def uncertainty_calibration(name: str) -> Callable[[Data], float]:
    def measured(d: Data) -> float:
        library = pytest.importorskip("calibration")
        return float(getattr(library, name)(d.confidence, d.right, num_bins=10))

    return measured


def uncertainty_calibration_marginal(d: Data) -> float:
    library = pytest.importorskip("calibration")
    answer = d.answer.astype(np.int64)
    return float(library.get_ece(d.probabilities, answer, num_bins=10, mode="marginal"))


def uncertainty_calibration_aurc(d: Data) -> float:
    library = pytest.importorskip("calibration")
    return 1.0 - float(library.get_selective_stats(d.confidence, d.right)[0])


@contextmanager
def _restored_style() -> Iterator[None]:
    """Relplot changes matplotlib's settings for the whole process."""
    import matplotlib as mpl

    with mpl.rc_context():
        yield


def relplot(name: str) -> Callable[[Data], float]:
    def measured(d: Data) -> float:
        with _restored_style():
            library = pytest.importorskip("relplot.metrics")
            return float(getattr(library, name)(d.confidence, d.right))

    return measured


def guo_ece(d: Data) -> float:
    """Return the ECE of the code of Guo et al. 2017, whose first bin does not contain 0."""
    total = 0.0
    for lo, hi in zip(np.linspace(0, 1, 11)[:-1], np.linspace(0, 1, 11)[1:], strict=True):
        inside = (d.confidence > lo) & (d.confidence <= hi)
        total += abs(float(np.sum(d.confidence[inside] - d.correct[inside])))
    return total / len(d.confidence)


def ours_ece(d: Data) -> float:
    return metrics.ece(d.confidence, d.correct)


def ours_mce(d: Data) -> float:
    return metrics.mce(d.confidence, d.correct)


def ours_mass(d: Data) -> float:
    return metrics.ece_mass(d.confidence, d.correct)


def ours_smooth(d: Data) -> float:
    return metrics.ece_smooth(d.confidence, d.correct)


def ours_classwise(d: Data) -> float:
    count = np.full(len(d.answer), d.probabilities.shape[1], np.int32)
    return metrics.ece_classwise(d.probabilities, d.answer, count)


def ours_brier_top(d: Data) -> float:
    return metrics.brier_top(d.confidence, d.correct)


def ours_brier(d: Data) -> float:
    return metrics.brier(d.probabilities, d.answer)


def ours_nll(d: Data) -> float:
    return metrics.nll(d.probabilities, d.answer).value


def ours_auroc(d: Data) -> float:
    value = metrics.auroc(d.confidence, d.correct)
    assert value is not None
    return value


def ours_aurc(d: Data) -> float:
    return metrics.aurc(d.confidence, d.correct)


def ours_wilson(d: Data) -> float:
    return wilson(float(d.correct.mean()), len(d.correct))[0]


@dataclass(frozen=True)
class Case:
    """A metric and its counterpart in a library; `differs` explains a difference."""

    metric: str
    library: str
    data: Data
    on: str
    ours: Callable[[Data], float]
    theirs: Callable[[Data], float]
    tolerance: float = 1e-9
    differs: str = ""

    @property
    def name(self) -> str:
        return f"{self.metric} - {self.library} - {self.on}"

    def values(self) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.ours(self.data), self.theirs(self.data)


SKLEARN, SCIPY, TORCHMETRICS = "scikit-learn", "scipy", "torchmetrics"
NETCAL, UC, RELPLOT, GUO = "netcal", "uncertainty-calibration", "relplot", "Guo et al.'s code"
MODULES = {
    SKLEARN: "sklearn", SCIPY: "scipy", TORCHMETRICS: "torchmetrics", NETCAL: "netcal",
    UC: "calibration", RELPLOT: "relplot", GUO: "numpy",
}  # fmt: skip

ABOVE = "an edge belongs to the bin above it, [lo, hi)"
PHANTOM = "a confidence of 1 has an extra bin after the last"
HALF = "confidences of exactly 0 and 1 count half, as their mirror image is left out"
GENERAL, EDGE, END = "between the edges", "on the edges", "0 and 1"

CASES = [
    Case("ECE", SKLEARN, BETWEEN, GENERAL, ours_ece, sklearn_ece),
    Case("ECE", SKLEARN, EDGES, EDGE, ours_ece, sklearn_ece),
    Case("ECE", SKLEARN, ENDS, END, ours_ece, sklearn_ece),
    Case("ECE", TORCHMETRICS, BETWEEN, GENERAL, ours_ece, torchmetrics_error("l1")),
    Case("ECE", TORCHMETRICS, EDGES, EDGE, ours_ece, torchmetrics_error("l1"), differs=ABOVE),
    Case("ECE", TORCHMETRICS, ENDS, END, ours_ece, torchmetrics_error("l1"), differs=PHANTOM),
    Case(
        "ECE", f"{TORCHMETRICS}, multiclass", BETWEEN, GENERAL, ours_ece,
        torchmetrics_multiclass_ece, differs="it computes in float32",
    ),
    Case("ECE", NETCAL, BETWEEN, GENERAL, ours_ece, netcal_error("ECE")),
    Case("ECE", NETCAL, EDGES, EDGE, ours_ece, netcal_error("ECE"), differs=ABOVE),
    Case("ECE", NETCAL, ENDS, END, ours_ece, netcal_error("ECE")),
    Case("ECE", UC, BETWEEN, GENERAL, ours_ece, uncertainty_calibration("get_ece")),
    Case("ECE", UC, EDGES, EDGE, ours_ece, uncertainty_calibration("get_ece")),
    Case("ECE", UC, ENDS, END, ours_ece, uncertainty_calibration("get_ece")),
    Case("ECE", RELPLOT, BETWEEN, GENERAL, ours_ece, relplot("binnedECE")),
    Case("ECE", RELPLOT, EDGES, EDGE, ours_ece, relplot("binnedECE"), differs=ABOVE),
    Case("ECE", RELPLOT, ENDS, END, ours_ece, relplot("binnedECE"), differs=PHANTOM),
    Case("ECE", GUO, BETWEEN, GENERAL, ours_ece, guo_ece),
    Case("ECE", GUO, EDGES, EDGE, ours_ece, guo_ece),
    Case("ECE", GUO, ENDS, END, ours_ece, guo_ece, differs="a confidence of 0 is in no bin"),
    Case(
        "ECE, equal mass", NETCAL, BETWEEN, GENERAL, ours_mass,
        netcal_error("ECE", equal_intervals=False),
    ),
    Case(
        "ECE, equal mass", UC, BETWEEN, GENERAL, ours_mass, uncertainty_calibration("get_ece_em")
    ),
    Case("ECE, equal mass", UC, EDGES, EDGE, ours_mass, uncertainty_calibration("get_ece_em")),
    Case("ECE, classwise", UC, BETWEEN, GENERAL, ours_classwise, uncertainty_calibration_marginal),
    Case("ECE, smooth", RELPLOT, BETWEEN, GENERAL, ours_smooth, relplot("smECE"), 1e-3),
    Case("ECE, smooth", RELPLOT, EDGES, EDGE, ours_smooth, relplot("smECE"), 1e-3),
    Case("ECE, smooth", RELPLOT, ENDS, END, ours_smooth, relplot("smECE"), 1e-3, HALF),
    Case("MCE", TORCHMETRICS, BETWEEN, GENERAL, ours_mce, torchmetrics_error("max")),
    Case("MCE", NETCAL, BETWEEN, GENERAL, ours_mce, netcal_error("MCE")),
    Case("Brier, top label", SKLEARN, BETWEEN, GENERAL, ours_brier_top, sklearn_brier),
    Case("Brier, multi-class", SKLEARN, BETWEEN, GENERAL, ours_brier, sklearn_brier_of_all),
    Case("NLL", SKLEARN, BETWEEN, GENERAL, ours_nll, sklearn_nll),
    Case("AUROC", SCIPY, BETWEEN, GENERAL, ours_auroc, scipy_auroc),
    Case("AUROC", SCIPY, EDGES, EDGE, ours_auroc, scipy_auroc),
    Case("AUROC", TORCHMETRICS, BETWEEN, GENERAL, ours_auroc, torchmetrics_auroc, 1e-6),
    Case("AURC", UC, BETWEEN, GENERAL, ours_aurc, uncertainty_calibration_aurc),
    Case("Wilson interval", SCIPY, BETWEEN, GENERAL, ours_wilson, scipy_wilson),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=case.name,
            marks=pytest.mark.xfail(strict=True, raises=AssertionError, reason=case.differs)
            if case.differs
            else (),
        )
        for case in CASES
    ],
)
def test_metrics_of_other_libraries(case: Case) -> None:
    ours, theirs = case.values()
    assert ours == pytest.approx(theirs, abs=case.tolerance)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_smooth_ece_of_more_distributions(seed: int, power: float) -> None:
    random = np.random.default_rng(seed)
    confidence = random.beta(2, 1, 500)
    correct = random.random(500) < confidence**power
    data = Data(confidence, correct, np.zeros((1, 1)), np.zeros(1, np.int32))
    assert ours_smooth(data) == pytest.approx(relplot("smECE")(data), abs=1e-3)


def _row(case: Case) -> str:
    head = f"| {case.metric} | {case.library} | {case.on} |"
    module = MODULES[case.library.partition(",")[0]]
    if importlib.util.find_spec(module) is None:
        return f"{head} not installed |"
    ours, theirs = case.values()
    gap = abs(ours - theirs)
    if case.differs:
        return f"{head} differs by {gap:.1e}: {case.differs} |"
    return f"{head} agrees to {max(gap, 1e-16):.0e} |"


if __name__ == "__main__":
    print("| metric | library | confidences | outcome |\n|:--|:--|:--|:--|")
    print("\n".join(map(_row, CASES)))
