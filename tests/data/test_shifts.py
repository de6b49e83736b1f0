"""Shifted samples: other prompts, and everything else as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from firstcli.api import ChoiceForm, InputField, Sample, TaskUsage
from firstcli.data.shifts import changed_share, shifted
from firstcli.errors import UserError
from firstcli.recipe.shift import Shift, Shifts

WORDS = ("Which", "seven", "rivers", "in", "northern", "Sweden", "reach", "the", "sea", "first")
TEMPLATE = "Q: {question}\nChoices:\n{choices}\nA: The answer is ("
USAGE = TaskUsage(
    kind="multiple-choice",
    prompt=TEMPLATE,
    inputs={"question": InputField(columns=("question",))},
    choices=ChoiceForm(columns=("choices",), line="({letter}) {text}", response="{answer})."),
)
CHOICES = "(A) Torne and Kalix\n(B) Ume"
EVERY = Shifts(
    typos=(0.2, 1.0), case=(0.5, 1.0), dropout=(0.2, 1.0), wording=("{choices}\n{question} (",)
)


def samples(count: int = 40) -> list[Sample]:
    made = []
    for number in range(count):
        random = Random(number)
        question = " ".join(random.choices(WORDS, k=1 + number % 12))
        prompt = TEMPLATE.format(question=question, choices=CHOICES)
        truth = (0.75, 0.25)
        made.append(
            Sample.question(prompt, ("A).", "B)."), number % 2, id=f"q{number}", truth=truth)
        )
    return made


def changed(some: Sequence[Sample], shift: Shift, seed: str = "7") -> list[Sample]:
    return list(shifted(some, USAGE, shift.augmenter.build(), seed))


def only(**kinds: Any) -> Shift:
    (shift,) = Shifts(**kinds).each()
    return shift


def question(sample: Sample) -> str:
    found = re.search(r"Q: (.*)\nChoices", sample.prompt, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("shift", EVERY.each(), ids=lambda shift: shift.label)
def test_only_the_prompt_changes(shift: Shift) -> None:
    whole = samples()
    found = changed(whole, shift)
    for sample, other in zip(whole, found, strict=True):
        assert replace(other, prompt=sample.prompt) == sample
        assert CHOICES in other.prompt and other.prompt.endswith("(") and other.prompt.strip()
    assert [sample.prompt for sample in found] != [sample.prompt for sample in whole]


@pytest.mark.parametrize("shift", EVERY.each(), ids=lambda shift: shift.label)
def test_a_sample_is_changed_alike_in_any_company(shift: Shift) -> None:
    whole = samples()
    alone = [prompt for one in whole for prompt in changed([one], shift)]
    assert changed(whole, shift) == alone
    assert changed(whole[::-1], shift) == alone[::-1]
    assert changed(whole[:7], shift) == alone[:7]


def test_the_seed_and_the_id_choose_the_words() -> None:
    shift, whole = only(typos=(0.5,)), samples()
    assert changed(whole, shift, "7") == changed(whole, shift, "7") != changed(whole, shift, "8")
    renamed = [replace(sample, id=f"other-{sample.id}") for sample in whole]
    assert [s.prompt for s in changed(renamed, shift)] != [s.prompt for s in changed(whole, shift)]


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.0])
def test_the_strength_is_the_share_of_words_that_change(strength: float) -> None:
    whole = samples(600)
    before = [question(sample).split() for sample in whole]
    count = sum(map(len, before))
    for kind in ("typos", "case"):
        after = [question(s).split() for s in changed(whole, only(**{kind: (strength,)}))]
        pairs = [
            p
            for ours, theirs in zip(before, after, strict=True)
            for p in zip(ours, theirs, strict=True)
        ]
        share = sum(ours != theirs for ours, theirs in pairs) / count
        assert share == pytest.approx(strength, abs=0.03)
    kept = sum(len(question(s).split()) for s in changed(whole, only(dropout=(strength,))))
    lost = 1 - kept / count
    assert lost <= strength + 0.03 and lost > 0.75 * strength  # one word stays in each


def test_case_changes_nothing_but_the_case() -> None:
    whole = samples()
    found = changed(whole, only(case=(1.0,)))
    assert [s.prompt.lower() for s in found] == [s.prompt.lower() for s in whole]


def test_another_wording_keeps_the_order_of_the_choices() -> None:
    (sample,) = changed(samples(1), only(wording=("{choices}\nNow: {question}\nLetter: (",)))
    words = question(samples(1)[0])
    assert sample.prompt == f"{CHOICES}\nNow: {words}\nLetter: ("


def test_a_whole_prompt_keeps_the_word_that_ends_it() -> None:
    sample = Sample.question("one two three Answer:", (" a", " b"), 0, id="q")
    (found,) = shifted([sample], None, only(dropout=(1.0,)).augmenter.build(), "1")
    assert found.prompt.endswith("Answer:")


JAPANESE = "日本で一番長い川はどれですか"


@pytest.mark.parametrize(
    "shift", [only(case=(1.0,)), only(dropout=(1.0,))], ids=lambda shift: shift.label
)
def test_a_shift_that_changes_nothing_is_refused(shift: Shift) -> None:
    prompt = TEMPLATE.format(question=JAPANESE, choices=CHOICES)
    some = [Sample.question(prompt, ("A).", "B)."), 0, id=f"q{i}") for i in range(9)]
    with pytest.raises(UserError, match="none of the 9 prompts changes \(words are what white"):
        changed_share(some, changed(some, shift))
    bare = [Sample.question(JAPANESE, ("A).", "B)."), 0, id="q")]
    for each in (shift, only(typos=(1.0,))):
        with pytest.raises(UserError, match="none of the 1 prompts changes"):
            changed_share(bare, shifted(bare, None, each.augmenter.build(), "7"))


def test_the_share_of_changed_prompts_is_counted() -> None:
    prompt = TEMPLATE.format(question=JAPANESE, choices=CHOICES)
    some = [Sample.question(prompt, ("A).", "B)."), 0, id=f"j{i}") for i in range(9)]
    mixed = [*some, *samples(1)]
    assert changed_share(mixed, changed(mixed, only(case=(1.0,)))) == pytest.approx(0.1)


def test_what_cannot_be_changed_is_refused() -> None:
    augmenter = only(case=(1.0,)).augmenter.build()
    foreign = Sample.question("nothing of the template", ("A).", "B)."), 0, id="q")
    with pytest.raises(UserError, match="none of the prompts contains the task's template"):
        list(shifted([foreign], USAGE, augmenter, "1"))
    assert next(shifted([foreign, *samples(1)], USAGE, augmenter, "1")) == foreign
