"""Metrics compared with naive loops, scikit-learn and torchmetrics, and their edge cases."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli import metrics
from firstcli.metrics.calibration import ece_null
from firstcli.metrics.records import EvalRecords, Scope

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

GRID = [i / 20 for i in range(21)]  # exact 0 and 1, and values at or near each edge


def naive_ece(confidence: Floats, outcome: Floats, bins: int) -> float:
    edges = [float(edge) for edge in np.linspace(0.0, 1.0, bins + 1)]
    total = 0.0
    for b, (lo, hi) in enumerate(pairwise(edges)):
        inside = [
            (c, y)
            for c, y in zip(confidence, outcome, strict=True)
            if lo < c <= hi or (b == 0 and c == lo)
        ]
        if inside:
            mean_confidence = math.fsum(c for c, _ in inside) / len(inside)
            mean_outcome = math.fsum(y for _, y in inside) / len(inside)
            total += abs(mean_outcome - mean_confidence) * len(inside) / len(confidence)
    return total


def sklearn_ece(confidence: Floats, correct: Bools, bins: int) -> float:
    from sklearn.calibration import calibration_curve

    truth, predicted = calibration_curve(correct, confidence, n_bins=bins, pos_label=1)
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    counts = np.bincount(index, minlength=bins)
    counts = counts[counts > 0]
    return float(np.sum(np.abs(truth - predicted) * counts / len(confidence)))


def torchmetrics_ece(confidence: Floats, correct: Bools, bins: int) -> float:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    value = binary_calibration_error(
        torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct).long(), n_bins=bins
    )
    return float(value)


gridded = st.lists(st.tuples(st.sampled_from(GRID), st.booleans()), min_size=1, max_size=60)
anything = st.lists(
    st.tuples(st.floats(0.0, 1.0, allow_subnormal=False), st.booleans()), min_size=1, max_size=60
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(rows=gridded | anything, bins=st.sampled_from([1, 2, 5, 10, 15]))
def test_ece_equals_a_naive_loop_and_scikit_learn_also_on_edges(
    rows: list[tuple[float, bool]], bins: int
) -> None:
    confidence = np.array([c for c, _ in rows])
    correct = np.array([y for _, y in rows])
    ours = metrics.ece(confidence, correct, bins)
    assert ours == pytest.approx(naive_ece(confidence, correct, bins), abs=1e-12)
    assert ours == pytest.approx(sklearn_ece(confidence, correct, bins), abs=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 500), bins=st.sampled_from([5, 10, 15]))
def test_ece_equals_torchmetrics_between_the_edges(seed: int, n: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    confidence, correct = random.uniform(1e-6, 1 - 1e-6, n), random.random(n) < 0.6
    ours = metrics.ece(confidence, correct, bins)
    assert ours == pytest.approx(torchmetrics_ece(confidence, correct, bins), abs=1e-12)


def test_ece_keeps_exact_zero_and_one() -> None:
    # Some implementations drop a confidence of 0 (here they give 0.15) ...
    assert metrics.ece(np.array([0.0] * 5 + [0.7] * 5), np.ones(10, bool)) == pytest.approx(0.65)
    # ... or put a confidence of 1 into an extra bin (0.275).
    half = np.array([True, False] * 5 + [True] * 10)
    assert metrics.ece(np.array([1.0] * 10 + [0.95] * 10), half) == pytest.approx(0.225)


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    confidence, correct = np.array([0.0, 0.5, 0.5000001, 1.0]), np.array([0, 1, 1, 1], bool)
    low, high = metrics.reliability_bins(confidence, correct, bins=2)
    assert (low.lo, low.hi, low.n, low.confidence, low.accuracy) == (0.0, 0.5, 2, 0.25, 0.5)
    assert (high.lo, high.hi, high.n, high.accuracy) == (0.5, 1.0, 2, 1.0)


def test_reliability_bins_add_up_to_the_ece_and_leave_empty_bins_empty() -> None:
    random = np.random.default_rng(0)
    confidence, correct = random.uniform(0.25, 1, 300), random.random(300) < 0.5
    bins = metrics.reliability_bins(confidence, correct)
    assert len(bins) == 10 and sum(b.n for b in bins) == 300
    assert all(b.confidence is None and b.accuracy is None for b in bins[:2])
    total = sum(abs((b.accuracy or 0.0) - (b.confidence or 0.0)) * b.n for b in bins)
    assert total / 300 == pytest.approx(metrics.ece(confidence, correct), abs=1e-12)


def test_scores_equal_naive_loops() -> None:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(4), size=50)
    answer = random.integers(0, 4, 50).astype(np.int32)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == answer
    p_right = random.uniform(0, 1, 50)
    rows = range(50)

    brier = sum(
        (probabilities[i, c] - (c == answer[i])) ** 2 for i in rows for c in range(4)
    ) / len(rows)
    assert metrics.brier(probabilities, answer) == pytest.approx(brier, abs=1e-12)
    nll = -sum(math.log(probabilities[i, answer[i]]) for i in rows) / len(rows)
    assert metrics.nll(probabilities, answer).value == pytest.approx(nll, abs=1e-12)
    assert metrics.nll(probabilities, answer).floored == 0
    top = sum((confidence[i] - correct[i]) ** 2 for i in rows) / len(rows)
    assert metrics.brier_top(confidence, correct) == pytest.approx(top, abs=1e-12)
    assert metrics.accuracy(correct) == sum(map(bool, correct)) / len(rows)
    assert metrics.mean_confidence(confidence) == pytest.approx(sum(confidence) / len(rows))
    mae = sum(abs(confidence[i] - p_right[i]) for i in rows) / len(rows)
    assert metrics.confidence_mae(confidence, p_right) == pytest.approx(mae, abs=1e-12)
    ece_true = naive_ece(confidence, p_right, 10)
    assert metrics.ece(confidence, p_right) == pytest.approx(ece_true, abs=1e-12)
    trust = sum(correct) / len(rows) - naive_ece(confidence, correct, 10)
    assert metrics.trust(confidence, correct) == pytest.approx(trust, abs=1e-12)


def test_ece_true_has_no_label_noise() -> None:
    random = np.random.default_rng(2)
    p_right = random.uniform(0.3, 1, 300)
    assert metrics.ece(p_right, p_right) == 0.0
    assert metrics.ece(p_right, random.random(300) < p_right) > 0.01
    # the mean of the bin is calibrated, the single questions are not
    assert metrics.ece(np.array([0.52, 0.58]), np.array([0.58, 0.52])) == pytest.approx(0)
    assert metrics.confidence_mae(np.array([0.52, 0.58]), np.array([0.58, 0.52])) > 0.05


def test_nll_floors_and_counts() -> None:
    probabilities = np.array([[1.0, 0.0], [1.0 - 1e-13, 1e-13], [0.5, 0.5]])
    value, floored = metrics.nll(probabilities, np.array([1, 1, 1], np.int32))
    assert floored == 2
    assert value == pytest.approx((2 * -math.log(1e-12) + math.log(2)) / 3)


def test_one_question_and_one_bin() -> None:
    assert metrics.ece(np.array([0.8]), np.array([True])) == pytest.approx(0.2)
    assert metrics.trust(np.array([0.8]), np.array([True]), bins=1) == pytest.approx(0.8)
    confidence, correct = np.array([0.2, 0.9]), np.array([True, False])
    assert metrics.ece(confidence, correct, bins=1) == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [math.nan, -1e-9, 1.0000001, math.inf])
def test_invalid_probabilities_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="within"):
        metrics.ece(np.array([0.5, bad]), np.array([True, False]))


def test_empty_arrays_mismatched_shapes_and_zero_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        metrics.ece(np.array([]), np.array([], bool))
    with pytest.raises(ValueError, match="empty"):
        metrics.accuracy(np.array([], bool))
    with pytest.raises(ValueError, match="shape"):
        metrics.ece(np.array([0.5]), np.array([True, False]))
    with pytest.raises(ValueError, match="bins"):
        metrics.ece(np.array([0.5]), np.array([True]), bins=0)


def test_summary_of_known_numbers() -> None:
    records = EvalRecords.from_log_probs(
        ids=["a", "b"],
        answers=[0, 1],
        log_probs=[np.log([0.6, 0.2]), np.log([0.1, 0.05, 0.05])],
        truth=[[0.7, 0.3], [0.5, 0.3, 0.2]],
    )
    found = metrics.summarize(records, "candidates", 10)
    assert (found.n, found.accuracy, found.ties, found.nll_floored) == (2, 0.5, 0, 0)
    assert found.confidence == pytest.approx((0.75 + 0.5) / 2)
    assert found.ece == pytest.approx((0.25 + 0.5) / 2)
    assert found.trust == pytest.approx(0.5 - 0.375)
    assert found.bins_used == 2
    assert found.nll == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert found.brier == pytest.approx((2 * 0.25**2 + 0.5**2 + 0.75**2 + 0.25**2) / 2)
    assert found.brier_top == pytest.approx((0.25**2 + 0.5**2) / 2)
    assert found.candidate_mass == pytest.approx((0.8 + 0.2) / 2)
    assert found.ece_true == pytest.approx(0.025)  # |0.75 - 0.7| and |0.5 - 0.5|
    assert found.confidence_mae == pytest.approx(0.025)


def test_confidence_in_the_whole_vocabulary_does_not_change_nll() -> None:
    records = EvalRecords.from_log_probs(["a"], [0], [np.log([0.6, 0.2])])
    candidates = metrics.summarize(records, "candidates", 10)
    full = metrics.summarize(records, "full", 10)
    assert full.confidence == pytest.approx(0.6) and full.ece == pytest.approx(0.4)
    assert (full.nll, full.brier, full.accuracy) == (
        candidates.nll,
        candidates.brier,
        candidates.accuracy,
    )
    assert full.brier_top == pytest.approx(0.16)
    assert full.ece_true is None and full.confidence_mae is None


def test_summary_where_all_candidates_tie() -> None:
    records = EvalRecords.from_log_probs(
        [str(i) for i in range(4)], [0, 1, 2, 3], [[math.log(0.1)] * 4] * 4
    )
    found = metrics.summarize(records, "candidates", 10)
    assert (found.ties, found.accuracy, found.confidence) == (4, 0.25, 0.25)
    assert found.ece == 0.0


def some_records(*, answers: list[int] | None = None, scope: Scope = "vocabulary") -> EvalRecords:
    random = np.random.default_rng(8)
    rows = [np.log(random.dirichlet(np.ones(2 + i % 3)) * 0.8) for i in range(60)]
    found = answers or [int(random.integers(2)) for _ in rows]
    return EvalRecords.from_log_probs([f"q{i}" for i in range(60)], found, rows, scope=scope)


def test_the_table_of_metrics_has_the_fields_of_the_summary_in_order() -> None:
    assert list(metrics.METRICS) == [field.name for field in fields(metrics.EvalMetrics)]
    assert all(name == metric.name for name, metric in metrics.METRICS.items())
    for title in ("title", "short"):  # column headings and table rows are unambiguous
        assert len({getattr(metric, title) for metric in metrics.METRICS.values()}) == len(
            metrics.METRICS
        )


@pytest.mark.parametrize(
    ("name", "value", "signed", "text"),
    [
        ("ece", 0.1234, False, "12.3"),
        ("ece", -0.1234, False, "-12.3"),
        ("ece", 0.1234, True, "+12.3"),
        ("ece", -0.00001, True, "0.0"),  # neither -0.0 nor +0.0
        ("ece", 0.00001, True, "0.0"),
        ("ece", 0.0, False, "0.0"),
        ("ece", 0.00011, False, "<0.1"),  # a mass this small is not zero
        ("ece", None, True, "–"),
        ("nll", 0.6484, False, "0.648"),
        ("ece_p", 0.04, False, "0.040"),
        ("n", 1_234_567, False, "1234567"),
        ("n", 200.25, False, "200.25"),  # a mean over seeds
    ],
)
def test_a_metric_formats_its_values(
    name: str, value: float | None, signed: bool, text: str
) -> None:
    assert metrics.METRICS[name].text(value, signed=signed) == text


def test_a_heading_shows_the_better_direction() -> None:
    shown = [metrics.METRICS[name].heading for name in ("ece", "trust", "confidence")]
    assert shown == ["ECE ↓", "Trust ↑", "Conf."]


def test_the_summary_equals_the_single_functions() -> None:
    records = some_records()
    shown, correct = records.confidence, records.correct
    found = metrics.summarize(records, "candidates", 5)
    null = ece_null(shown, 5)
    assert found.ece == metrics.ece(shown, correct, 5)
    assert found.ece_null == pytest.approx(null.mean())
    assert found.ece_p == metrics.p_value(metrics.ece(shown, correct, 5), null)
    assert found.ece_debiased == pytest.approx(
        max(0.0, metrics.ece(shown, correct, 5) - null.mean())
    )
    assert found.ece_mass == metrics.ece_mass(shown, correct, 5)
    assert found.mce == metrics.mce(shown, correct, 5)
    assert found.ece_smooth == metrics.ece_smooth(shown, correct)
    assert (found.over_confidence, found.under_confidence) == metrics.ece_parts(shown, correct, 5)
    assert found.auroc == metrics.auroc(shown, correct)
    assert found.aurc == metrics.aurc(shown, correct)
    for coverage in (50, 80, 90):
        value = metrics.accuracy_at(coverage / 100, shown, correct)
        assert getattr(found, f"accuracy_at_{coverage}") == value
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert found.ece_classwise == metrics.ece_classwise(
        records.probabilities, records.answer, records.count, 5
    )
    parts = metrics.brier_parts(shown, correct)
    assert parts == (
        found.brier_miscalibration,
        found.brier_discrimination,
        found.brier_uncertainty,
    )


def test_summary_where_no_candidate_is_right() -> None:
    found = asdict(metrics.summarize(some_records(answers=[-1] * 60), "candidates", 10))
    known = {name for name, value in found.items() if value is not None}
    assert known == {"n", "confidence", "chance", "candidate_mass", "ties"}


def test_summary_where_the_whole_vocabulary_is_unknown() -> None:
    records = some_records(scope="candidates")
    full = asdict(metrics.summarize(records, "full", 10))
    known = {name for name, value in full.items() if value is not None}
    assert known == {
        "n", "accuracy", "nll", "nll_floored", "brier", "ece_classwise", "chance", "ties"
    }  # fmt: skip
    found = asdict(metrics.summarize(records, "candidates", 10))
    expected = asdict(metrics.summarize(some_records(), "candidates", 10))
    assert found.pop("candidate_mass") is None and expected.pop("candidate_mass") is not None
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=False)
