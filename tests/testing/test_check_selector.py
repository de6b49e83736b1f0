"""The conformance checks of selectors, and the checks at every use, name what is wrong."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest

from firstcli.api import AnswerSampling, FloatArray, PluginOptions, Pool, Selector, UserError
from firstcli.plugins.registry import Plugin
from firstcli.plugins.selectors import CheckedSelector
from firstcli.testing import check_selector, simulated_pool

PLUGIN = Plugin("selectors", "mine", "mine:Mine", "first-mine", "1.2")


class Longest(Selector[PluginOptions]):
    """A sound selector."""

    needs = frozenset({"thoughts"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.thoughts is not None
        return np.array([float(len(thought.text)) for thought in pool.thoughts])


class Spread(Longest):
    """A sound selector of the whole pool, with a rule of its own."""

    needs = frozenset({"embeddings"})
    whole_pool = True

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.embeddings is not None
        norms: FloatArray = np.linalg.norm(pool.embeddings, axis=1)
        distances: FloatArray = norms - norms.max()
        return distances

    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return sorted(range(len(pool)), key=lambda i: pool.ids[i])[:count]


class NotANumber(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.where(np.arange(len(pool)) % 2, np.nan, super().scores(pool, seed))


class WrongLength(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return super().scores(pool, seed)[1:]


class TwoColumns(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.ones((len(pool), 2))


class Unseeded(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.array([random.random() for _ in pool.ids])


class UnseededArray(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.random.rand(len(pool))


class InOrder(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        return np.arange(len(pool), dtype=np.float64)


class Ranked(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        scores = super().scores(pool, seed)
        above: FloatArray = scores - scores.mean()
        return above


class ReadsMore(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.losses is not None, "no losses"
        return np.ones(len(pool))


class Writes(Longest):
    needs = frozenset({"losses"})

    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.losses is not None
        pool.losses[0] = 0
        return np.ones(len(pool))


class UnknownNeed(Longest):
    needs = frozenset({"labels"})


class OneNeed(Longest):
    needs = "thoughts"  # type: ignore[assignment]


class NoSamples(Longest):
    sampling = AnswerSampling(count=0)


class TooFew(Longest):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return super().choose(scores, pool, count, seed)[1:]


class Twice(Longest):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return super().choose(scores, pool, 1, seed) * count


class Outside(Longest):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return [len(pool) - number for number in range(count)]


class Ids(Longest):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return pool.ids[:count]  # type: ignore[return-value]


class FirstOnes(Longest):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        return list(range(count))


class FirstOfAll(Spread):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        assert pool.embeddings is not None and pool.annotated is not None
        return list(range(count))


class NeedsCentres(Spread):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert pool.annotated is not None, "no centres"
        return super().scores(pool, seed)


class NeedsSomeCentres(Spread):
    def choose(self, scores: FloatArray, pool: Pool, count: int, seed: int) -> list[int]:
        assert pool.annotated is None or len(pool.annotated), "no centre"
        return super().choose(scores, pool, count, seed)


class NeedsTwo(Longest):
    def scores(self, pool: Pool, seed: int) -> FloatArray:
        assert len(pool) > 1 or pool.ids != ["q0"], "only one"
        return super().scores(pool, seed)


@pytest.mark.parametrize("cls", [Longest, Spread])
def test_a_sound_selector_passes(cls: type[Selector[Any]]) -> None:
    check_selector(cls)


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (NotANumber, "scores returned nan for question 'q1' and for 5 more, expected finite num"),
        (WrongLength, "WrongLength.scores returned an array of shape (11,) for 12 questions"),
        (TwoColumns, "TwoColumns.scores returned an array of shape (12, 2) for 12 questions"),
        (Unseeded, "Unseeded.scores gives different scores of the same pool"),
        (UnseededArray, "UnseededArray.scores gives different scores of the same pool"),
        (InOrder, "InOrder.scores depends on the order of the pool"),
        (Ranked, "Ranked.scores: a question's score depends on other questions; set `whole_pool`"),
        (ReadsMore, "ReadsMore.scores fails on a pool with thoughts, whose arrays are read-only"),
        (Writes, "Writes.scores fails on a pool with losses, whose arrays are read-only: ValueErr"),
        (UnknownNeed, "`needs` names labels, expected some of answers, thoughts, samples, losses"),
        (OneNeed, "OneNeed: `needs` is 'thoughts', expected a frozenset"),
        (NoSamples, "NoSamples.sampling has the count 0, expected a whole number above 0"),
        (TooFew, "TooFew.choose returned 0 questions, expected 1"),
        (Twice, "Twice.choose returned a question twice"),
        (Outside, "Outside.choose returned the index 12, expected 0 to 11"),
        (Ids, "Ids.choose returned 'q0', expected indices of questions"),
        (FirstOnes, "FirstOnes.choose depends on the order of the pool"),
        (FirstOfAll, "FirstOfAll.choose depends on the order of the pool"),
        (NeedsCentres, "read-only: AssertionError: no centres"),
        (NeedsSomeCentres, "choose fails on 0 of 12 questions: AssertionError: no centre"),
        (NeedsTwo, "AssertionError: only one"),
    ],
)
def test_what_is_wrong_is_named(cls: type[Selector[Any]], text: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(text)):
        check_selector(cls)


def test_what_is_no_selector_is_named() -> None:
    with pytest.raises(AssertionError, match=r"PluginOptions is not a firstcli.api.Selector"):
        check_selector(PluginOptions)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (NotANumber, "`scores` returned nan for question 'q1' and for 5 more, expected finite n"),
        (WrongLength, "`scores` returned an array of shape (11,) for 12 questions; correct the"),
        (Twice, "`choose` returned a question twice; correct the plugin"),
        (TooFew, "`choose` returned 1 questions, expected 2; correct the plugin"),
        (ReadsMore, "failed in `scores`: AssertionError: no losses"),
        (Writes, "failed in `scores`: ValueError: assignment destination is read-only"),
    ],
)
def test_a_run_refuses_a_wrong_result(cls: type[Selector[Any]], text: str) -> None:
    selector, pool = CheckedSelector(PLUGIN, cls(PluginOptions())), simulated_pool()
    with pytest.raises(UserError) as caught:
        selector.choose(selector.scores(pool, 0), pool, 2, 0)
    message = str(caught.value)
    assert message.startswith("selector 'mine' from first-mine 1.2")
    assert text in message and "\n" not in message


def test_a_run_refuses_a_wrong_declaration() -> None:
    with pytest.raises(UserError, match=r"selector 'mine' from first-mine 1.2: `needs` names"):
        CheckedSelector(PLUGIN, UnknownNeed(PluginOptions()))
    with pytest.raises(UserError, match="`sampling` has the count 0, expected a whole number"):
        _ = CheckedSelector(PLUGIN, NoSamples(PluginOptions())).sampling


def test_a_missing_field_is_a_mistake_of_firstcli() -> None:
    selector = CheckedSelector(PLUGIN, Longest(PluginOptions()))
    with pytest.raises(ValueError, match="the pool has no thoughts"):
        selector.scores(Pool(["a"]), 0)
