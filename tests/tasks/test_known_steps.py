"""Questions of several steps: their chains, and that checks and repairs of steps are right."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from firstcli.api import Sample
from firstcli.data.reasoning import final_answer, with_steps
from firstcli.plugins.samples import sample_problem
from firstcli.tasks.known_steps import FORM, KnownSteps, KnownStepsOptions, _programs
from firstcli.testing import check_task

SIZES = {"train": 60, "pool": 80, "test": 40, "shifted": 40}
TASK = KnownSteps(KnownStepsOptions(**SIZES))
SAMPLES = {split: list(TASK.load(split).samples) for split in TASK.splits}
EVERY = [sample for samples in SAMPLES.values() for sample in samples]
FACTS = sorted({step for sample in EVERY for step in sample.steps})


def task(**options: Any) -> KnownSteps:
    return KnownSteps(KnownStepsOptions(**SIZES, **options))


def test_the_task_keeps_its_contract() -> None:
    check_task(TASK)


def test_every_step_follows_from_the_step_before_it() -> None:
    for sample in EVERY:
        assert sample_problem(sample) is None
        starts = sample.prompt.split(".")[0].removeprefix("Start with ")
        values = [starts, *(step.removesuffix(".").rsplit(" is ", 1)[1] for step in sample.steps)]
        for step, (before, _) in zip(sample.steps, pairwise(values), strict=True):
            assert before in step.rsplit(" is ", 1)[0].split()
        assert final_answer(sample, FORM) == values[-1] == TASK.true_answer(sample)
        assert TASK.true_steps(sample) == sample.steps


def test_a_fact_has_one_value_in_all_splits() -> None:
    values: dict[str, str] = {}
    for fact in FACTS:
        subject, value = fact.rsplit(" is ", 1)
        assert values.setdefault(subject, value) == value
        words = subject.split()
        if words[1] in ("plus", "minus", "times"):
            left, right = int(words[0]), int(words[2])
            result = {"plus": left + right, "minus": left - right, "times": left * right}[words[1]]
            assert value == f"{result % 10}."


def test_splits_have_no_prompt_in_common_and_shifted_chains_are_longer() -> None:
    prompts = [sample.prompt for sample in EVERY]
    assert len(set(prompts)) == len(prompts)
    lengths = {split: {len(s.steps) for s in samples} for split, samples in SAMPLES.items()}
    assert lengths["train"] == lengths["test"] == lengths["pool"] == {2, 3, 4}
    assert lengths["shifted"] == {5, 6, 7, 8}


def test_a_larger_split_begins_with_a_smaller_one_and_changes_no_other() -> None:
    larger = KnownSteps(KnownStepsOptions(**{**SIZES, "pool": 100}))
    assert list(larger.load("pool").samples)[:80] == SAMPLES["pool"]
    assert list(larger.load("test").samples) == SAMPLES["test"]


def test_the_seed_changes_facts_and_skew_the_frequencies() -> None:
    other = list(task(seed=1).load("train").samples)
    assert other[0].steps != SAMPLES["train"][0].steps

    def most_frequent(skew: float) -> float:
        options = KnownStepsOptions(train=600, skew=skew)
        starts = Counter(s.prompt.split(".")[0] for s in KnownSteps(options).load("train").samples)
        return max(starts.values()) / 600

    assert most_frequent(0) < 0.08 < 0.12 < most_frequent(1.0)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"least_steps": 5, "most_steps": 4}, "expected the second to be at least the first"),
        ({"most_steps": 7, "shifted_steps": 7}, "the third to be larger"),
        ({"pool": 200_000}, "pool: found 200000, expected at most"),
        ({"train": 100_000}, "raise the largest number of steps"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, int], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        KnownStepsOptions(**options)


def test_the_number_of_programs_is_counted_right() -> None:
    even, random = task(skew=0.0), Random(0)
    for length, count in ((2, 4 + 14), (3, 16 + 4 * 14 + 14**2 + 1)):
        drawn = {tuple(even._program(length, random)) for _ in range(100 * count)}
        assert len(drawn) == _programs(length) == count


def test_a_prompt_of_another_task_is_refused() -> None:
    for prompt in ("What?", SAMPLES["test"][0].prompt.replace("Take its", "Find its")):
        with pytest.raises(ValueError, match="not a prompt of this world"):
            TASK.check_steps(Sample(prompt, "x"), ())


def test_only_the_prompt_is_read() -> None:
    sample = SAMPLES["test"][0]
    hidden = Sample(sample.prompt, "")
    assert all(TASK.check_steps(hidden, sample.steps))
    assert TASK.repair(hidden, ()) == sample.steps


def test_wording_that_has_no_meaning_is_kept() -> None:
    sample = SAMPLES["test"][0]
    mine = (f"  {sample.steps[0].upper()} ", *(step.removesuffix(".") for step in sample.steps[1:]))
    assert all(TASK.check_steps(sample, mine))
    assert TASK.repair(sample, mine) == mine


def test_a_true_fact_that_the_question_does_not_need_is_wrong() -> None:
    sample = SAMPLES["test"][0]
    other = next(fact for fact in FACTS if fact not in sample.steps)
    steps = (sample.steps[0], other, *sample.steps[1:])
    right = TASK.check_steps(sample, steps)
    assert right == (True, False, *[True] * (len(sample.steps) - 1))
    assert TASK.repair(sample, steps) == sample.steps


def test_a_missing_step_leaves_the_others_right_and_is_added() -> None:
    sample = SAMPLES["shifted"][0]
    steps = sample.steps[:2] + sample.steps[3:]
    assert all(TASK.check_steps(sample, steps))
    assert TASK.repair(sample, steps) == sample.steps


EXPLANATIONS = st.tuples(
    st.integers(0, len(EVERY) - 1),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*FACTS, "I do not know."])), max_size=4),
    st.lists(st.integers(0, 9), max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(EXPLANATIONS)
def test_repairs_are_correct_and_keep_as_many_steps_as_possible(
    drawn: tuple[int, Any, list[int]],
) -> None:
    number, replaced, removed = drawn
    sample = EVERY[number]
    steps = list(sample.steps)
    for place, text in replaced:
        steps[place % len(steps) : place % len(steps) + 1] = [text] * (1 + place % 2)
    for place in removed:
        if steps:
            del steps[place % len(steps)]
    given_steps = tuple(steps)
    right, repaired = TASK.check_steps(sample, given_steps), TASK.repair(sample, given_steps)
    assert len(right) == len(given_steps)
    assert repaired == sample.steps  # all wording is canonical here
    assert TASK.repair(sample, repaired) == repaired
    assert all(TASK.check_steps(sample, repaired))
    kept = [step for step, is_right in zip(given_steps, right, strict=True) if is_right]
    remaining = iter(sample.steps)
    assert all(step in remaining for step in kept)  # a subsequence of the chain
    assert len(kept) == _longest_common(given_steps, sample.steps)
    assert sample_problem(with_steps(sample, repaired, FORM)) is None


def _longest_common(mine: tuple[str, ...], true: tuple[str, ...]) -> int:
    """The length of a longest common subsequence, by trying every subset of the shorter chain."""
    best = 0
    for mask in range(2 ** len(true)):
        chosen = [step for i, step in enumerate(true) if mask >> i & 1]
        remaining = iter(mine)
        if len(chosen) > best and all(step in remaining for step in chosen):
            best = len(chosen)
    return best
