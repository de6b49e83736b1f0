"""Knowledge over candidates: from log-probabilities of candidates to the student's tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firstcli.data.encoding import EncodedSample, answer_only
from firstcli.knowledge import codec
from firstcli.knowledge.candidates import CandidateKnowledge, top_candidates
from firstcli.knowledge.top_k import TopK
from firstcli.recipe.sections import Arm
from firstcli.training import objectives, soft_targets
from firstcli.training.soft_targets import SoftTargetBuilder


@given(
    count=st.integers(2, 12),
    width=st.integers(1, 14),
    share=st.sampled_from([1e-9, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_top_candidates_against_probabilities(
    count: int, width: int, share: float, seed: int
) -> None:
    """`share` is the candidates' total probability."""
    p = share * np.random.default_rng(seed).dirichlet(np.ones(count))
    known = top_candidates(np.log(p).tolist(), width)
    ranked = np.argsort(-p, kind="stable")
    kept = min(count, width)
    assert known.token_ids[0, :kept].tolist() == ranked[:kept].tolist()
    assert known.token_ids[0, kept:].tolist() == list(range(count, width))
    np.testing.assert_allclose(np.exp(known.log_probs[0, :kept]), p[ranked[:kept]], rtol=1e-5)
    assert np.isneginf(known.log_probs[0, kept:]).all()
    tail = 1 - p[ranked[:kept]].sum()
    assert np.exp(known.log_tail[0]) == pytest.approx(tail, rel=1e-5, abs=1e-7)


def test_a_sum_above_1_is_rounding() -> None:
    known = top_candidates(np.log([0.7, 0.3 + 2e-6]).tolist(), 2)
    assert np.exp(known.log_probs, dtype=float).sum() == pytest.approx(1, abs=1e-7)
    assert np.isneginf(known.log_tail).all()


def test_improbable_candidates_keep_a_probability_above_0() -> None:
    """Free text is improbable as a whole: the first of a row must not be 0."""
    known = top_candidates([-900.0, -950.0], 2)
    grid = codec.grid_of("standard", 2)
    stored, _ = codec.decode(codec.encode(known.log_probs, known.log_tail, grid), grid)
    assert (np.exp(stored.astype(np.float64)) > 0).all()


def test_filled_rows_survive_storing() -> None:
    known = top_candidates(np.log([0.2, 0.7]).tolist(), 4)
    grid = codec.grid_of("standard", 4)
    log_probs, log_tail = codec.decode(codec.encode(known.log_probs, known.log_tail, grid), grid)
    np.testing.assert_allclose(np.exp(log_probs), [[0.7, 0.2, 0, 0]], atol=0.005)
    np.testing.assert_allclose(np.exp(log_tail), [0.1], atol=0.005)
    errors = codec.errors(known.log_probs, known.log_tail, log_probs, log_tail)
    assert all(np.isfinite(value) for value in errors.values())


class Stored:
    """Knowledge over candidates of samples `a` and `b`, which have 3 and 2 candidates."""

    top_k = 3

    def of(self, sample: EncodedSample) -> TopK:
        assert len(sample.targets) == 1
        p = {"a": [0.1, 0.6, 0.2], "b": [0.3, 0.5]}[sample.id]
        return top_candidates(np.log(p).tolist(), self.top_k)


CANDIDATES = {"a": (20, 21, 22), "b": (0, 2)}
VOCABULARY = 40


@pytest.fixture
def rows() -> list[EncodedSample]:
    """The student's tokens: one shared before the candidates of `a`, and an end of two for `b`."""
    return [
        EncodedSample("a", np.array([5, 6, 7, 21, 9], np.int32), start=2, answer_position=3),
        EncodedSample("b", np.array([5, 6, 0, 1, 9], np.int32), start=2, answer_position=2),
    ]


def test_indices_become_the_students_tokens(rows: list[EncodedSample]) -> None:
    knowledge = CandidateKnowledge(Stored(), CANDIDATES)
    a, b = (knowledge.of(row) for row in rows)
    assert a.token_ids[1].tolist() == [21, 22, 20]
    np.testing.assert_allclose(np.exp(a.log_probs[1]), [0.6, 0.2, 0.1], rtol=1e-6)
    np.testing.assert_allclose(np.exp(a.log_tail), [0, 0.1, 0], rtol=1e-5)
    assert b.token_ids[0].tolist() == [2, 0, 1]  # 1 fills the row up
    np.testing.assert_allclose(np.exp(b.log_probs[0]), [0.5, 0.3, 0.0], rtol=1e-6)
    for row, known in zip(rows, (a, b), strict=True):
        certain = np.arange(3) != row.answer_position - row.start  # type: ignore[operator]
        assert known.token_ids[certain, 0].tolist() == row.targets[certain].tolist()
        assert (known.log_probs[certain, 0] == 0).all()
        assert np.isneginf(known.log_probs[certain, 1:]).all()
        assert all(len(set(ids)) == 3 for ids in known.token_ids.tolist())


def test_without_a_label_only_the_answer_position_is_supervised() -> None:
    row = EncodedSample("a", np.array([5, 6, 7, 20], np.int32), start=3, answer_position=3)
    known = CandidateKnowledge(Stored(), CANDIDATES).of(row)
    assert known.token_ids.tolist() == [[21, 22, 20]]


def test_rows_of_the_teacher_end_at_the_answer_position(rows: list[EncodedSample]) -> None:
    cut = answer_only(rows[0])
    assert cut.input_ids.tolist() == [5, 6, 7, 21]
    assert (cut.start, cut.answer_position, cut.targets.tolist()) == (3, 3, [21])


def builder(rows: list[EncodedSample], **fields: Any) -> SoftTargetBuilder:
    of = Arm.model_validate(fields)
    assert of.recalibrator
    knowledge = CandidateKnowledge(Stored(), CANDIDATES)
    return SoftTargetBuilder(
        of, of.recalibrator.build(), knowledge, rows, candidates=CANDIDATES, over_candidates=True
    )


FIXED = {"name": "temperature-scaling", "options": {"temperature": 0.5}}


def test_candidates_that_do_not_exist_get_no_probability(rows: list[EncodedSample]) -> None:
    """Eq. 4 would give a probability of 0 a share: it is applied to the existing candidates."""
    targets = builder(rows, recalibrator=FIXED)(rows)
    for position, p in ((1, [0.6, 0.2, 0.1]), (3, [0.5, 0.3])):
        weights = np.exp(np.array(p) / 0.5)
        expected = sum(p) * weights / weights.sum()
        found = targets.probabilities[position]
        np.testing.assert_allclose(found[: len(p)], expected, rtol=1e-5)
        assert (found[len(p) :] == 0).all()
        assert targets.tail[position] == pytest.approx(1 - sum(p), rel=1e-5)


@pytest.mark.parametrize("mass", ["teacher", "one"])
def test_other_positions_learn_their_label_exactly_as_from_hard_labels(
    rows: list[EncodedSample], mass: str
) -> None:
    targets = builder(rows, mass=mass, recalibrator=FIXED)(rows)
    labels = np.concatenate([row.targets for row in rows])
    logits = torch.randn(6, VOCABULARY, dtype=torch.float64, requires_grad=True)
    view = objectives.student_view(logits, torch.from_numpy(targets.token_ids).long())
    losses = objectives.topk_tail(
        view, torch.from_numpy(targets.probabilities), torch.from_numpy(targets.tail)
    )
    hard = objectives.labels(logits, torch.from_numpy(labels).long())
    certain = torch.tensor([True, False, True, False, True, True])
    torch.testing.assert_close(losses[certain], hard[certain])
    (soft_gradient,) = torch.autograd.grad(losses[certain].sum(), logits, retain_graph=True)
    (hard_gradient,) = torch.autograd.grad(hard[certain].sum(), logits)
    torch.testing.assert_close(soft_gradient, hard_gradient)
    assert (losses[~certain] != hard[~certain]).all()


def test_recalibrators_get_candidates_instead_of_tokens(rows: list[EncodedSample]) -> None:
    of = Arm()
    positions = soft_targets.positions_of(rows, CandidateKnowledge(Stored(), CANDIDATES))
    answers = positions.where(positions.is_answer)
    assert answers.widths.tolist() == [3, 2]
    given = soft_targets.rows_of(of, answers, "task", CANDIDATES, over_candidates=True)
    assert given.token_ids is None
    assert given.candidate.tolist() == [[1, 2, 0], [1, 0, -1]]
    narrow = answers.of_width(2)
    assert narrow.topk.shape == (1, 2) and narrow.sample_ids.tolist() == ["b"]
    assert narrow.is_label.tolist() == [[False, True]]
