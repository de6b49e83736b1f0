"""Check the contract of a selector on a simulated pool."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from firstcli.api import (
    JSON,
    FloatArray,
    PluginOptions,
    Pool,
    Selector,
    Thought,
)
from firstcli.plugins.selectors import (
    choice_problem,
    declaration_problem,
    sampling_problem,
    scores_problem,
    seen,
)
from firstcli.testing.requirements import require

_SEED = 7
_TOLERANCE = 1e-9  # of what may depend on the order in which numbers are added


def check_selector(
    cls: type[Selector[Any]], options: PluginOptions | Mapping[str, JSON] | None = None
) -> None:
    """Check the contract of a selector.

    Args:
        cls: the plugin's class.
        options: its options, as in a recipe; default: the plugin's defaults.

    Raises:
        AssertionError: the class breaks the contract.
    """
    name = cls.__name__
    require(issubclass(cls, Selector), f"{name} is not a firstcli.api.Selector")
    problem = declaration_problem(cls)
    require(problem is None, f"{name}: {problem}")
    settings = cls.Options.model_validate(dict(options or {}))
    problem = sampling_problem(cls(settings).sampling)
    require(problem is None, f"{name}.sampling {problem}")
    state = random.getstate(), np.random.get_state()
    try:
        _check_scores(cls, settings)
        _check_choice(cls, settings)
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def simulated_pool(count: int = 12) -> Pool:
    """Return a pool with all fields.

    Among its questions are some with a single answer, a uniform distribution, no step, and one
    step. The first and the last differ in nothing but their ids.

    Args:
        count: number of questions.
    """
    draw = Random("pool")
    thoughts = [_thought(number) for number in range(count)]
    texts = [["12", "12.5", "no", "yes", ""][: 1 + number % 5] for number in range(count)]
    pool = Pool(
        ids=[f"q{number}" for number in range(count)],
        answers=[thought.answers_after[-1] for thought in thoughts],
        thoughts=thoughts,
        samples=[[draw.choice(answers) for _ in range(5)] for answers in texts],
        losses=np.array([[draw.uniform(0, 3), draw.uniform(0, 3)] for _ in range(count)]),
        embeddings=np.array([[draw.gauss(0, 1) for _ in range(4)] for _ in range(count)]),
        annotated=np.array([[draw.gauss(0, 1) for _ in range(4)] for _ in range(2)]),
    )
    return replace(pool.rows([*range(count - 1), 0]), ids=pool.ids)


def _pools() -> Iterator[Pool]:
    """Yield large and small pools, with some, no, and unknown annotated questions."""
    for pool in (simulated_pool(), simulated_pool(1)):
        yield pool
        yield replace(pool, annotated=None)
        yield replace(pool, annotated=np.zeros((0, 4)))


def _thought(number: int) -> Thought:
    draw = np.random.default_rng(number)
    candidates, steps = 1 + number % 4, number % 3
    lengths = draw.integers(1, 5, steps).tolist()
    ends = np.cumsum([0, *lengths]).tolist()
    answers = draw.dirichlet(np.ones(candidates), steps + 1)
    if number % 5 == 0:
        answers[-1] = 1 / candidates
    return Thought(
        text=f"response {number}",
        log_probs=-draw.exponential(1.0, ends[-1] + 3),
        steps=tuple(pairwise(ends)),
        answers_after=answers,
    )


def _check_scores(cls: type[Selector[Any]], settings: PluginOptions) -> None:
    name = cls.__name__
    for pool in _pools():
        random.seed(0)
        np.random.seed(0)
        scores = _scores(cls, settings, pool)
        random.seed(1)
        np.random.seed(1)
        again = _scores(cls, settings, pool)
        require(
            np.array_equal(scores, again), f"{name}.scores gives different scores of the same pool"
        )
        backwards = _scores(cls, settings, pool.rows(range(len(pool))[::-1]))[::-1]
        require(
            np.allclose(scores, backwards, rtol=_TOLERANCE, atol=_TOLERANCE),
            f"{name}.scores depends on the order of the pool",
        )
        if not cls.whole_pool:
            alone = [_scores(cls, settings, pool.rows([i]))[0] for i in range(len(pool))]
            require(
                np.allclose(scores, alone, rtol=_TOLERANCE, atol=_TOLERANCE),
                f"{name}.scores: a question's score depends on other questions; set `whole_pool`",
            )


def _scores(cls: type[Selector[Any]], settings: PluginOptions, pool: Pool) -> FloatArray:
    """Return the scores of a new selector."""
    try:
        values = np.asarray(cls(settings).scores(seen(pool, cls.needs), _SEED), np.float64)
    except Exception as error:
        needs = ", ".join(sorted(cls.needs)) or "no field but the ids"
        raise AssertionError(
            f"{cls.__name__}.scores fails on a pool with {needs}, whose arrays are read-only: "
            f"{type(error).__name__}: {error}"
        ) from error
    problem = scores_problem(values, pool)
    require(problem is None, f"{cls.__name__}.scores {problem}")
    return values


def _check_choice(cls: type[Selector[Any]], settings: PluginOptions) -> None:
    name = cls.__name__
    asked = [(each, count) for each in _pools() for count in (0, 1, 5, len(each))]
    for pool, count in asked:
        if count > len(pool):
            continue
        scores = _scores(cls, settings, pool)
        backwards = pool.rows(range(len(pool))[::-1])
        chosen = _chosen(cls, settings, pool, scores, count)
        require(
            chosen == _chosen(cls, settings, pool, scores, count),
            f"{name}.choose gives different questions for the same pool",
        )
        other = _chosen(cls, settings, backwards, scores[::-1], count)
        require(chosen == other, f"{name}.choose depends on the order of the pool")


def _chosen(
    cls: type[Selector[Any]],
    settings: PluginOptions,
    pool: Pool,
    scores: FloatArray,
    count: int,
) -> list[str]:
    """Return the ids that a new selector chooses.

    Args:
        cls: the plugin's class.
        settings: its options.
        pool: the pool.
        scores: of every question.
        count: number of questions.
    """
    given = seen(pool, cls.needs if cls.whole_pool else frozenset())
    try:
        chosen = list(cls(settings).choose(scores, given, count, _SEED))
    except Exception as error:
        raise AssertionError(
            f"{cls.__name__}.choose fails on {count} of {len(pool)} questions: "
            f"{type(error).__name__}: {error}"
        ) from error
    problem = choice_problem(chosen, pool, count)
    require(problem is None, f"{cls.__name__}.choose {problem}")
    return [pool.ids[index] for index in chosen]
