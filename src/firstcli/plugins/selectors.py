"""Every use of a selector: it sees what it declares to need, and its results are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from firstcli import plugins
from firstcli.api import (
    POOL_FIELDS,
    AnswerSampling,
    FloatArray,
    PluginOptions,
    Pool,
    Selector,
    Thought,
    UserError,
)
from firstcli.plugins.calls import explained
from firstcli.plugins.registry import Plugin


class CheckedSelector:
    """A selector whose every result is checked."""

    def __init__(self, plugin: Plugin, selector: Selector[Any]) -> None:
        """Wrap a selector.

        Raises:
            UserError: what it declares is wrong.
        """
        self._plugin, self._selector = plugin, selector
        if problem := declaration_problem(type(selector)):
            raise self._mistake(problem)

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `Pool` that it reads."""
        return self._selector.needs

    @property
    def whole_pool(self) -> bool:
        """Whether it must see all questions at once."""
        return self._selector.whole_pool

    @property
    def sampling(self) -> AnswerSampling:
        """How explanations are sampled, if it needs samples."""
        with explained(self._plugin, "`sampling`"):
            sampling = self._selector.sampling
        if problem := sampling_problem(sampling):
            raise self._mistake(f"`sampling` {problem}")
        return sampling

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        """Return the score of each question, (N,).

        Raises:
            UserError: the selector has a mistake.
            ValueError: the pool lacks a field that the selector needs.
        """
        given = seen(pool, self.needs)
        with explained(self._plugin, "`scores`"):
            result = self._selector.scores(given, seed)
            values = np.asarray(result, np.float64)
        if problem := scores_problem(values, pool):
            raise self._mistake(f"`scores` {problem}")
        return values

    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        """Return the indices of `count` questions.

        Args:
            scores: of every question, (N,).
            pool: all questions.
            count: number of questions, at most N.
            seed: seeds what is random.

        Raises:
            UserError: the selector has a mistake.
        """
        given = seen(pool, self.needs if self.whole_pool else frozenset())
        with explained(self._plugin, "`choose`"):
            chosen = list(self._selector.choose(_frozen(scores), given, count, seed))
        if problem := choice_problem(chosen, pool, count):
            raise self._mistake(f"`choose` {problem}")
        return [int(index) for index in chosen]

    def _mistake(self, text: str) -> UserError:
        return UserError(f"{self._plugin.title}: {text}; correct the plugin")


def selector(name: str, options: PluginOptions) -> CheckedSelector:
    """Return a selector with its options.

    Raises:
        UserError: the name is unknown, or the plugin has a mistake.
    """
    plugin = plugins.find("selectors", name)
    with explained(plugin, "`__init__`"):
        built = plugins.load("selectors", name)(options)
    return CheckedSelector(plugin, built)


def seen(pool: Pool, needs: frozenset[str]) -> Pool:
    """Return a pool with some of its fields, whose arrays cannot be written.

    Raises:
        ValueError: the pool lacks one of them.
    """
    kept: dict[str, Any] = {}
    for name in POOL_FIELDS:
        value = getattr(pool, name) if name in needs else None
        if value is None and name in needs:
            raise ValueError(f"the pool has no {name}")
        kept[name] = value
    if kept["answers"] is not None:
        kept["answers"] = [_frozen(answers) for answers in kept["answers"]]
    if kept["thoughts"] is not None:
        kept["thoughts"] = [_frozen_thought(thought) for thought in kept["thoughts"]]
    for name in ("losses", "embeddings"):
        kept[name] = None if kept[name] is None else _frozen(kept[name])
    annotated = pool.annotated if kept["embeddings"] is not None else None
    return replace(pool, **kept, annotated=None if annotated is None else _frozen(annotated))


def _frozen_thought(thought: Thought) -> Thought:
    return replace(
        thought,
        log_probs=_frozen(thought.log_probs),
        answers_after=_frozen(thought.answers_after),
    )


def _frozen(array: FloatArray) -> FloatArray:
    view = array.view()
    view.flags.writeable = False
    return view


def declaration_problem(cls: type[Selector[Any]]) -> str | None:
    """Say what is wrong with what a selector declares; None if nothing is."""
    if not isinstance(cls.needs, frozenset):
        return f"`needs` is {cls.needs!r}, expected a frozenset"
    if unknown := sorted(map(str, cls.needs - {*POOL_FIELDS})):
        return f"`needs` names {', '.join(unknown)}, expected some of {', '.join(POOL_FIELDS)}"
    if not isinstance(cls.whole_pool, bool):
        return f"`whole_pool` is {cls.whole_pool!r}, expected True or False"
    return None


def sampling_problem(sampling: object) -> str | None:
    """Say what is wrong with a selector's `sampling`, in words that follow its name."""
    if not isinstance(sampling, AnswerSampling):
        return f"returned a {type(sampling).__name__}, expected an AnswerSampling"
    if type(sampling.count) is not int or sampling.count < 1:
        return f"has the count {sampling.count!r}, expected a whole number above 0"
    if not sampling.temperature > 0:
        return f"has the temperature {sampling.temperature!r}, expected a number above 0"
    if not 0 < sampling.top_p <= 1:
        return f"has the top_p {sampling.top_p!r}, expected a number above 0 and at most 1"
    return None


def scores_problem(values: FloatArray, pool: Pool) -> str | None:
    """Say what is wrong with scores, in words that follow the method's name; None if nothing."""
    if values.shape != (len(pool),):
        return f"returned an array of shape {values.shape} for {len(pool)} questions"
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        others = f" and for {len(wrong) - 1} more" if len(wrong) > 1 else ""
        first = int(wrong[0])
        return (
            f"returned {values[first]} for question '{pool.ids[first]}'{others}, expected finite "
            "numbers"
        )
    return None


def choice_problem(chosen: Sequence[object], pool: Pool, count: int) -> str | None:
    """Say what is wrong with chosen indices, in words that follow the method's name.

    Args:
        chosen: what `choose` returned.
        pool: all questions.
        count: number of questions that are to be chosen.
    """
    for index in chosen:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            return f"returned {index!r}, expected indices of questions"
        if not 0 <= int(index) < len(pool):
            return f"returned the index {index}, expected 0 to {len(pool) - 1}"
    if len(chosen) != count:
        return f"returned {len(chosen)} questions, expected {count}"
    if len({*chosen}) < count:
        return "returned a question twice"
    return None
