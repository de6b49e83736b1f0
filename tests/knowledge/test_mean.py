"""The mean of several teachers' knowledge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.data.encoding import EncodedSample
from firstcli.knowledge.mean import MeanKnowledge, mean_of
from firstcli.knowledge.top_k import TopK

VOCABULARY = 12


def some_teachers(count: int, positions: int, top_k: int, seed: int) -> list[TopK]:
    generator = np.random.default_rng(seed)
    teachers = []
    for _ in range(count):
        p = generator.dirichlet(np.full(VOCABULARY, 0.3), positions) + 1e-12
        p /= p.sum(axis=1, keepdims=True)
        ids = np.argsort(-p, axis=1)[:, :top_k]
        kept = np.take_along_axis(p, ids, axis=1)
        others = np.take_along_axis(p, np.argsort(-p, axis=1)[:, top_k:], axis=1).sum(axis=1)
        logs = np.log(kept).astype(np.float32), np.log(others).astype(np.float32)
        teachers.append(TopK(ids.astype(np.int32), *logs))
    return teachers


def naive_mean(teachers: list[TopK], position: int, top_k: int) -> tuple[dict[int, float], float]:
    """Average one position, token by token; return the k largest and the tail."""
    sums: dict[int, float] = {}
    tail = 0.0
    for teacher in teachers:
        for token, log_p in zip(
            teacher.token_ids[position], teacher.log_probs[position].astype(float), strict=True
        ):
            sums[int(token)] = sums.get(int(token), 0.0) + float(np.exp(log_p)) / len(teachers)
        tail += float(np.exp(teacher.log_tail[position].astype(float))) / len(teachers)
    ranked = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:top_k]), tail + sum(p for _, p in ranked[top_k:])


@given(
    count=st.integers(1, 4),
    positions=st.integers(1, 5),
    top_k=st.integers(1, VOCABULARY - 1),
    seed=st.integers(0, 2**31),
)
def test_mean_against_a_naive_one_and_in_any_order(
    count: int, positions: int, top_k: int, seed: int
) -> None:
    teachers = some_teachers(count, positions, top_k, seed)
    mean = mean_of(teachers)
    assert mean.token_ids.shape == mean.log_probs.shape == (positions, top_k)
    assert (np.diff(mean.log_probs, axis=1) <= 0).all()
    for position in range(positions):
        expected, tail = naive_mean(teachers, position, top_k)
        found = dict(
            zip(mean.token_ids[position].tolist(), np.exp(mean.log_probs[position]), strict=True)
        )
        assert found.keys() == expected.keys()
        for token, p in expected.items():
            assert found[token] == pytest.approx(p, rel=1e-5)
        assert np.exp(mean.log_tail[position]) == pytest.approx(tail, rel=1e-5, abs=1e-12)
    total = np.exp(mean.log_probs, dtype=float).sum(axis=1) + np.exp(mean.log_tail, dtype=float)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    for other in (teachers[::-1], teachers[1:] + teachers[:1]):
        again = mean_of(other)
        np.testing.assert_array_equal(mean.token_ids, again.token_ids)
        np.testing.assert_array_equal(mean.log_probs, again.log_probs)
        np.testing.assert_array_equal(mean.log_tail, again.log_tail)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_the_mean_of_equals_is_exactly_each_of_them(times: int) -> None:
    (teacher,) = some_teachers(1, 50, 4, seed=1)
    teacher.log_probs[0, 1:], teacher.log_tail[0] = -np.inf, -np.inf  # certain
    teacher.log_probs[0, 0] = -1e-9
    teacher.token_ids[0] = [7, 1, 2, 3]
    mean = mean_of([teacher] * times)
    np.testing.assert_array_equal(mean.token_ids, teacher.token_ids)
    np.testing.assert_array_equal(mean.log_probs, teacher.log_probs)
    np.testing.assert_array_equal(mean.log_tail, teacher.log_tail)


def test_a_token_outside_a_teachers_top_k_counts_as_0_there() -> None:
    """Its probability there is in that teacher's tail, so the mean is a lower bound."""
    one = TopK(np.array([[3]], np.int32), np.log([[0.6]]).astype("f4"), np.log([0.4]).astype("f4"))
    other = TopK(
        np.array([[5]], np.int32), np.log([[0.9]]).astype("f4"), np.log([0.1]).astype("f4")
    )
    mean = mean_of([one, other])
    assert mean.token_ids.tolist() == [[5]]
    np.testing.assert_allclose(np.exp(mean.log_probs), [[0.45]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(mean.log_tail), [0.2 + 0.05 + 0.3], rtol=1e-6)


def test_knowledge_is_averaged_when_it_is_looked_up() -> None:
    class Part:
        def __init__(self, known: TopK) -> None:
            self._known, self.top_k = known, known.log_probs.shape[1]

        def of(self, sample: EncodedSample) -> TopK:
            return self._known

        def __contains__(self, sample: EncodedSample) -> bool:
            return sample.id == "a"

    teachers = some_teachers(2, 3, 4, seed=5)
    knowledge = MeanKnowledge([Part(each) for each in teachers])
    sample = EncodedSample("a", np.arange(4, dtype=np.int32), 1, None)
    assert knowledge.top_k == 4 and sample in knowledge
    np.testing.assert_array_equal(knowledge.of(sample).log_probs, mean_of(teachers).log_probs)
