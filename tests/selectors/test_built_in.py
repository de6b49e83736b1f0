"""Every score equals that of a naive loop in float64, and is right where the answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from firstcli import plugins
from firstcli.api import FloatArray, Pool, Thought
from firstcli.plugins import selectors
from firstcli.plugins.selectors import CheckedSelector
from firstcli.testing import check_selector, simulated_pool

BUILT_IN = [plugin.name for plugin in plugins.registered("selectors") if plugin.is_built_in]
POOL = simulated_pool()
assert POOL.answers and POOL.thoughts and POOL.samples
assert POOL.losses is not None and POOL.embeddings is not None and POOL.annotated is not None


def built(name: str, **options: Any) -> CheckedSelector:
    return selectors.selector(name, plugins.load("selectors", name).Options(**options))


def of_answers(*answers: list[float]) -> Pool:
    ids = [f"q{number}" for number in range(len(answers))]
    return Pool(ids, answers=[np.array(probabilities) for probabilities in answers])


def of_samples(*samples: list[str]) -> Pool:
    return Pool([f"q{number}" for number in range(len(samples))], samples=samples)


def of_thought(
    log_probs: list[float], steps: list[tuple[int, int]], answers_after: list[list[float]]
) -> Pool:
    thought = Thought("text", np.array(log_probs), tuple(steps), np.array(answers_after))
    return Pool(["q"], thoughts=[thought])


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_conforms(name: str) -> None:
    check_selector(plugins.load("selectors", name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_only_what_it_needs_is_read(name: str) -> None:
    selector = built(name)
    empty = Pool(POOL.ids)
    needed = {field: getattr(POOL, field) for field in selector.needs}
    assert np.array_equal(
        selector.scores(POOL, 1),
        selector.scores(replace(empty, **needed, annotated=POOL.annotated), 1),
    )


# Answers.


def test_least_confidence() -> None:
    naive = [1 - max(answers) for answers in POOL.answers or ()]
    assert built("least-confidence").scores(POOL, 0).tolist() == naive
    pool = of_answers([1.0], [0.5, 0.5], [0.25] * 4)
    assert built("least-confidence").scores(pool, 0).tolist() == [0, 0.5, 0.75]


def test_entropy() -> None:
    naive = [-sum(p * math.log(p) for p in answers if p) for answers in POOL.answers or ()]
    assert built("entropy").scores(POOL, 0) == pytest.approx(naive, abs=1e-12)
    pool = of_answers([1.0], [1.0, 0.0], [0.25] * 4)
    scores = built("entropy").scores(pool, 0)
    assert scores == pytest.approx([0, 0, math.log(4)], abs=1e-15)
    assert not np.signbit(scores).any()


def test_margin() -> None:
    naive = []
    for answers in POOL.answers or ():
        ordered = sorted(answers)
        naive.append(1 - (ordered[-1] - (ordered[-2] if len(ordered) > 1 else 0)))
    assert built("margin").scores(POOL, 0) == pytest.approx(naive, abs=1e-15)
    pool = of_answers([1.0], [0.5, 0.5], [0.25] * 4, [0.2, 0.7, 0.1])
    assert built("margin").scores(pool, 0) == pytest.approx([0, 1, 1, 0.5])


def test_random_depends_on_seed_and_id_alone() -> None:
    selector = built("random")
    pool = Pool([f"q{number}" for number in range(20_000)])
    scores = selector.scores(pool, 3)
    assert not np.array_equal(scores, selector.scores(pool, 4))
    assert scores.min() >= 0 and scores.max() < 1
    counts, _ = np.histogram(scores, 10, (0, 1))
    assert abs(counts - 2000).max() < 200  # over four standard deviations
    assert scores[7] == selector.scores(Pool(["q7"]), 3)[0]
    assert scores[0] == 0.44011812715960374  # the same on every machine


# Explanations.


def naive_uncertainty(thought: Thought, inside: float, between: float, end: float) -> float:
    def kl(first: FloatArray, second: FloatArray) -> float:
        pairs: list[tuple[float, float]] = list(zip(first.tolist(), second.tolist(), strict=True))
        return sum(p * math.log2(p / q) for p, q in pairs if p)

    total = 0.0
    for number, (start, stop) in enumerate(thought.steps):
        surprise = -sum(thought.log_probs[start:stop].tolist()) / max(stop - start, 1)
        before, after = thought.answers_after[number], thought.answers_after[number + 1]
        middle = (before + after) / 2
        distance = math.sqrt(max(0, kl(before, middle) / 2 + kl(after, middle) / 2))
        total += inside * surprise + between * distance
    last: list[float] = thought.answers_after[-1].tolist()
    entropy = -sum(p * math.log(p) for p in last if p)
    return total / max(len(thought.steps), 1) + end * entropy


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 2.5, 0.7)])
def test_explanation_uncertainty(weights: tuple[float, float, float]) -> None:
    names = ("in_step", "between_steps", "at_the_end")
    options = dict(zip(names, map(float, weights), strict=True))
    naive = [naive_uncertainty(thought, *weights) for thought in POOL.thoughts or ()]
    scores = built("explanation-uncertainty", **options).scores(POOL, 0)
    assert scores == pytest.approx(naive, abs=1e-12)


def test_an_explanation_with_known_uncertainty() -> None:
    selector = built("explanation-uncertainty")
    # Without steps, only the answer counts; one candidate is certain.
    assert selector.scores(of_thought([-9.0], [], [[1.0]]), 0).tolist() == [0]
    assert selector.scores(of_thought([-9.0], [], [[0.5, 0.5]]), 0) == pytest.approx([math.log(2)])
    # One step: its mean surprise, and the largest distance, from one sure answer to another.
    pool = of_thought([-1.0, -3.0, -9.0], [(0, 2)], [[1.0, 0.0], [0.0, 1.0]])
    assert selector.scores(pool, 0) == pytest.approx([2 + 1 + 0])
    # A step that changes nothing adds its surprise only; one without tokens has none.
    pool = of_thought([-1.0, -3.0], [(0, 2), (2, 2)], [[0.5, 0.5]] * 3)
    assert selector.scores(pool, 0) == pytest.approx([2 / 2 + math.log(2)])
    # Tokens outside the steps, such as those of the answer, do not count.
    pool = of_thought([-1.0, -3.0, -7.0], [(0, 1)], [[1.0], [1.0]])
    assert selector.scores(pool, 0) == pytest.approx([1])


def test_a_sure_answer_at_an_unsure_explanation_is_chosen_first() -> None:
    sure = Thought("", np.log([0.9, 0.9]), ((0, 2),), np.array([[0.97, 0.03]] * 2))
    unsure = replace(sure, answers_after=np.array([[0.1, 0.9], [0.97, 0.03]]))
    pool = Pool(["sure", "unsure"], answers=[sure.answers_after[-1]] * 2, thoughts=[sure, unsure])
    selector = built("explanation-uncertainty")
    assert selector.choose(selector.scores(pool, 0), pool, 1, 0) == [1]
    entropy = built("entropy").scores(pool, 0)
    assert entropy[0] == entropy[1]


def test_some_weight_is_above_0() -> None:
    with pytest.raises(ValidationError, match="all weights are 0; let at least one be above 0"):
        built("explanation-uncertainty", in_step=0.0, between_steps=0.0, at_the_end=0.0)


# Samples.


def test_self_consistency() -> None:
    naive = []
    for answers in POOL.samples or ():
        votes = [sum(a == b for b in answers) if a else 1 for a in answers]
        naive.append(1 - max(votes) / len(answers))
    assert built("self-consistency").scores(POOL, 0) == pytest.approx(naive, abs=1e-15)
    pool = of_samples(["a"] * 5, ["a", "b", "c", "d", "e"], ["a", "a", "b", "b", ""], [""] * 5)
    assert built("self-consistency").scores(pool, 0) == pytest.approx([0, 0.8, 0.6, 0.8])


def test_knowledge_detection() -> None:
    contradictions = []
    for answers in POOL.samples or ():
        pairs = list(combinations(answers, 2))
        contradictions.append(sum(a != b or not a for a, b in pairs) / len(pairs))
    for known in (0.0, 0.5, 0.7):
        naive = [c - 1 if c <= known else c for c in contradictions]
        scores = built("knowledge-detection", known=known).scores(POOL, 0)
        assert scores == pytest.approx(naive, abs=1e-15)


def test_what_the_student_knows_is_chosen_last() -> None:
    pool = of_samples(["a"] * 4, ["a", "a", "a", "b"], ["a", "b", "c", "c"], [""] * 4)
    selector = built("knowledge-detection")
    scores = selector.scores(pool, 0)
    assert scores == pytest.approx([-1, -0.5, 5 / 6, 1])
    assert selector.choose(scores, pool, 4, 0) == [3, 2, 1, 0]


def test_how_explanations_are_sampled_is_an_option() -> None:
    sampling = built("self-consistency", samples=9, temperature=0.4, top_p=0.8).sampling
    assert (sampling.count, sampling.temperature, sampling.top_p) == (9, 0.4, 0.8)


# Losses.


def test_instruction_following_difficulty() -> None:
    naive = []
    assert POOL.losses is not None
    for given, alone in POOL.losses.tolist():
        ratio = given / alone if alone else 1.0
        naive.append(ratio if ratio < 1 else 1 - ratio)
    selector = built("instruction-following-difficulty")
    assert selector.scores(POOL, 0) == pytest.approx(naive, abs=1e-15)
    losses = np.array([[0.0, 2.0], [1.9, 2.0], [2.0, 2.0], [4.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    pool = Pool(list("abcdef"), losses=losses)
    scores = selector.scores(pool, 0)
    assert scores == pytest.approx([0, 0.95, 0, -1, 0, 0])
    assert selector.choose(scores, pool, 1, 0) == [1]


# Cover.


def naive_core_set(pool: Pool, count: int) -> list[int]:
    """Choose from a pool whose distances all differ."""
    assert pool.embeddings is not None and pool.annotated is not None
    centres = [list(row) for row in pool.annotated]
    points = [list(row) for row in pool.embeddings]
    chosen: list[int] = []
    for _ in range(count):
        distances = [
            -1.0 if i in chosen else min(math.dist(point, centre) for centre in centres)
            for i, point in enumerate(points)
        ]
        chosen.append(distances.index(max(distances)))
        centres.append(points[chosen[-1]])
    return chosen


def test_core_set() -> None:
    pool = POOL.rows(range(len(POOL) - 1))  # the last question equals the first
    assert pool.embeddings is not None and pool.annotated is not None
    selector = built("core-set")
    scores = selector.scores(pool, 0)
    nearest = [
        min(math.dist(point, centre) for centre in pool.annotated) for point in pool.embeddings
    ]
    assert scores == pytest.approx(nearest, abs=1e-12)
    for count in (1, 4, len(pool)):
        assert selector.choose(scores, pool, count, 0) == naive_core_set(pool, count)


def test_the_first_centre_without_annotated_questions() -> None:
    points = np.array([[0.0], [1.0], [2.0], [9.0]])
    pool = Pool(list("abcd"), embeddings=points)
    selector = built("core-set")
    scores = selector.scores(pool, 0)
    assert scores.tolist() == [3, 2, 1, 6]
    # 9 is farthest from the mean; then 0 from 9, and 2 from both.
    assert selector.choose(scores, pool, 3, 0) == [3, 0, 2]
    nothing = replace(pool, annotated=np.zeros((0, 1)))
    assert selector.scores(nothing, 0).tolist() == scores.tolist()


def test_every_cluster_is_covered_before_one_is_chosen_from_twice() -> None:
    draw = np.random.default_rng(0)
    centres = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    points = np.concatenate([centre + draw.normal(size=(50, 2)) for centre in centres])
    pool = Pool([f"q{i}" for i in range(200)], embeddings=points)
    selector = built("core-set")
    chosen = selector.choose(selector.scores(pool, 0), pool, 4, 0)
    assert {index // 50 for index in chosen} == {0, 1, 2, 3}


def test_equal_questions_are_chosen_after_all_others() -> None:
    pool = Pool(list("abc"), embeddings=np.array([[1.0], [1.0], [3.0]]))
    selector = built("core-set")
    first = {selector.choose(selector.scores(pool, seed), pool, 2, seed)[1] for seed in range(20)}
    assert first == {0, 1}  # the tie is broken by the seed
    assert len({*selector.choose(selector.scores(pool, 0), pool, 3, 0)}) == 3


def test_many_questions_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    selector = built("core-set")
    whole = selector.scores(POOL, 0)
    monkeypatch.setattr("firstcli.selectors.core_set._ROWS", 5)
    assert np.array_equal(selector.scores(POOL, 0), whole)


# The default rule.


def test_the_highest_scores_are_chosen_and_ties_broken_by_the_seed() -> None:
    pool = Pool(list("abcd"))
    selector = built("random")
    assert selector.choose(np.array([0.1, 0.4, 0.3, 0.2]), pool, 3, 0) == [1, 2, 3]
    ties = np.zeros(4)
    orders = {tuple(selector.choose(ties, pool, 4, seed)) for seed in range(40)}
    assert len(orders) > 15
    assert selector.choose(ties, pool, 0, 0) == []
