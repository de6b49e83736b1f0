"""Metrics by group: against naive loops, and their relation to the metrics of all questions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from firstcli.errors import UserError
from firstcli.metrics import calibration, summarize
from firstcli.metrics.groups import GroupScores, group_scores
from firstcli.metrics.records import EvalRecords


def records(seed: int = 0, n: int = 80, groups: int = 5, *, constant: bool = False) -> EvalRecords:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(n, 3))
    return EvalRecords.from_log_probs(
        [f"q{i}" for i in range(n)],
        random.integers(3, size=n).tolist(),
        scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)) - 0.1,
        groups=["only" if constant else f"g{random.integers(groups)}" for _ in range(n)],
    )


def of(stored: EvalRecords, bins: int = 10) -> GroupScores:
    scores = group_scores(stored, "candidates", bins)
    assert scores is not None
    return scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bins", [1, 10])
def test_each_group_has_the_metrics_of_its_questions_alone(seed: int, bins: int) -> None:
    stored = records(seed)
    assert stored.groups is not None
    scores = of(stored, bins)
    accuracies, eces, nulls = [], [], []
    for name, size, accuracy in zip(scores.names, scores.sizes, scores.accuracy, strict=True):
        part = stored.only({i for i, g in zip(stored.ids, stored.groups, strict=True) if g == name})
        metrics = summarize(part, "candidates", bins)
        assert (size, accuracy) == (metrics.n, pytest.approx(metrics.accuracy, abs=1e-15))
        assert part.groups == (name,) * size
        accuracies.append(np.mean(part.correct))
        edges, gap = np.linspace(0, 1, bins + 1), 0.0
        for low, high in pairwise(edges):  # naive, bin by bin
            chosen = (part.confidence > low) & (part.confidence <= high)
            if chosen.any():
                distance = part.confidence[chosen].mean() - part.correct[chosen].mean()
                gap += chosen.mean() * abs(distance)
        eces.append(gap)
        nulls.append(calibration.ece_null(part.confidence, bins).mean())
    assert scores.ece == pytest.approx(np.array(eces), abs=1e-12)
    assert scores.macro.accuracy == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert scores.macro.ece == pytest.approx(np.mean(eces), abs=1e-12)
    assert scores.macro.trust == pytest.approx(np.mean(accuracies) - np.mean(eces), abs=1e-12)
    assert scores.null == pytest.approx(np.mean(nulls), abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_the_mean_weighted_by_size_is_that_of_all_questions(seed: int) -> None:
    stored = records(seed)
    scores, metrics = of(stored), summarize(stored, "candidates", 10)
    assert scores.ece is not None and metrics.ece is not None
    shares = np.array(scores.sizes) / len(stored)
    assert shares @ scores.accuracy == pytest.approx(metrics.accuracy, abs=1e-12)
    assert shares @ scores.ece >= metrics.ece - 1e-12  # gaps of groups can cancel


def test_groups_do_not_change_the_metrics_of_all_questions() -> None:
    stored = records()
    plain = EvalRecords.from_log_probs(stored.ids, stored.answer.tolist(), list(stored.log_probs))
    assert summarize(stored, "candidates", 10) == summarize(plain, "candidates", 10)
    assert plain.groups is None and group_scores(plain, "candidates", 10) is None


def test_a_single_group_is_all_questions() -> None:
    stored = records(constant=True)
    scores, metrics = of(stored), summarize(stored, "candidates", 10)
    assert scores.macro == pytest.approx((metrics.accuracy, metrics.ece, metrics.trust), abs=1e-12)
    assert scores.null == pytest.approx(metrics.ece_null, abs=1e-15)


def test_records_keep_groups_and_have_no_column_without(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    stored = records(n=6)
    stored.save(tmp_path / "with.parquet", {})
    assert EvalRecords.load(tmp_path / "with.parquet").groups == stored.groups
    plain = EvalRecords.from_log_probs(["a"], [0], [[-0.5, -1.5]], groups=[None])
    plain.save(tmp_path / "without.parquet", {})
    assert plain.groups is None
    assert "group" not in pq.read_schema(tmp_path / "without.parquet").names
    assert EvalRecords.load(tmp_path / "without.parquet").groups is None


def test_groups_of_some_questions_only_are_refused() -> None:
    with pytest.raises(UserError, match="no group, although other questions have one, in 1 of 2"):
        EvalRecords.from_log_probs(["a", "b"], [0, 0], [[-0.5, -1.5]] * 2, groups=["x", None])
