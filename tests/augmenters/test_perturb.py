"""Perturbed copies: which words change, how often, and what of the prompt stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from firstcli.api import Sample, TrainingPrompt
from firstcli.augmenters.perturb import Perturb, WordBank
from firstcli.tasks.fields import training_prompt
from firstcli.testing import check_augmenter, simulated_prompts

KINDS = ("drop", "swap", "invent", "typo", "case")


def copies(prompt: str, count: int = 1, words: str = "", **options: Any) -> list[str]:
    """Return copies of a plain prompt; `words` is what other prompts contain."""
    augmenter = Perturb(Perturb.Options(**options))
    sample = Sample.question(prompt, [" yes", " no"], 0, id="a")
    others = [training_prompt(Sample(words, ""), None)] if words else []
    augmenter.read([training_prompt(sample, None), *others])
    made = (
        augmenter.copy(training_prompt(sample, None), 0, Random(number)) for number in range(count)
    )
    return [copy.prompt for copy in made if copy is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_it_conforms(kind: str) -> None:
    check_augmenter(Perturb, {"kinds": [kind], "levels": [0.2, 1.0]})


def test_the_defaults_conform_and_are_those_of_the_method() -> None:
    check_augmenter(Perturb)
    options = Perturb.Options()
    assert options.levels == [0.15, 0.15, 0.3, 0.3]
    assert options.kinds == ["drop", "swap", "invent"]


@pytest.mark.parametrize(
    "options", [{"levels": []}, {"levels": [0.0]}, {"levels": [1.5]}, {"kinds": ["drop", "drop"]}]
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Perturb.Options(**options)


@given(st.lists(st.sampled_from(["a", "bc", "def?", "\n"]), min_size=1, max_size=8), st.integers())
def test_the_last_word_and_what_is_outside_the_text_stay(words: list[str], seed: int) -> None:
    text = " ".join([*words, "end"]) + " \n"
    (copy,) = copies(text, kinds=["swap"], levels=[1.0])
    assert copy.endswith("end \n")
    for prompts in simulated_prompts().values():
        augmenter = Perturb(Perturb.Options(levels=[1.0]))
        augmenter.read(prompts)
        for prompt in prompts:
            copy_of = augmenter.copy(prompt, 0, Random(seed))
            assert copy_of is not None
            made = copy_of.prompt
            start = prompt.fields[0].start
            rest = prompt.sample.prompt[prompt.fields[-1].end :]
            assert made.startswith(prompt.sample.prompt[:start])
            assert made.endswith(rest)
            assert len(made) > start + len(rest)  # some word is left


def test_a_word_changes_with_the_probability_of_the_level() -> None:
    count, level = 3000, 0.3
    made = copies("zero one two three end", count, kinds=["swap"], levels=[level], words="X " * 900)
    changed = [sum(word == "X" for word in copy.split()[:-1]) for copy in made]
    # Four words, of 905 that may be drawn 900 are X.
    expected, deviation = level * 900 / 905, (level * (1 - level) / (4 * count)) ** 0.5
    assert sum(changed) / (4 * count) == pytest.approx(expected, abs=4 * deviation)
    assert not any(copy.endswith("X") for copy in made)


def test_kinds_are_equally_frequent() -> None:
    made = copies(
        "abcdefgh end", 4000, kinds=["drop", "swap", "case"], levels=[1.0], words="X " * 999
    )
    first = Counter(copy.split()[0] for copy in made)
    dropped, swapped = first["end"] + first["abcdefgh"], first["X"]
    cased = first["ABCDEFGH"] + first["Abcdefgh"]
    for count in (swapped, cased):
        assert count == pytest.approx(4000 / 3, abs=130)
    assert dropped == pytest.approx(4000 / 3, abs=130)


def test_words_are_drawn_as_often_as_they_occur() -> None:
    bank = WordBank(["a", "b", "b", "c", "c", "c"])
    drawn = Counter(bank.draw(random) for random in [Random(1)] for _ in range(6000))
    for word, share in (("a", 1), ("b", 2), ("c", 3)):
        assert drawn[word] == pytest.approx(1000 * share, abs=200)
    random, again = Random(2), Random(2)
    shuffled = WordBank(["c", "b", "a", "c", "b", "c"])
    assert [bank.draw(random) for _ in range(50)] == [shuffled.draw(again) for _ in range(50)]


def test_dropped_words_take_their_space_along_but_no_line_break() -> None:
    made = copies("one two\nthree  four\nend", 300, kinds=["drop"], levels=[0.5])
    assert "two\nthree  four\nend" in made
    assert "one\nthree  four\nend" in made
    assert "one two\nfour\nend" in made
    assert "one two\nthree\nend" in made
    assert all("\n" in copy or copy == "end" for copy in made)


def test_an_invented_word_has_the_letters_of_the_old_one_or_half_of_it() -> None:
    made = copies("fox end", 200, kinds=["invent"], levels=[1.0], words="marsh " * 500)
    first = {copy.split()[0] for copy in made}
    assert {"forsh", "ofx"} <= first
    assert all(sorted(word) == sorted("fox") or word in ("forsh", "foox", "fond") for word in first)


def test_a_typo_is_one_letter_doubled_left_out_or_exchanged() -> None:
    first = {copy.split()[0] for copy in copies("abc end", 300, kinds=["typo"], levels=[1.0])}
    assert first == {"aabc", "abbc", "abcc", "bc", "ac", "ab", "bac", "acb"}
    assert set(copies("a end", 50, kinds=["typo"], levels=[1.0])) == {"aa end"}
    equal = {copy.split()[0] for copy in copies("aaa end", 200, kinds=["typo"], levels=[1.0])}
    assert equal == {"aa", "aaaa"}


def test_case_gives_another_form() -> None:
    def first(word: str) -> set[str]:
        return {copy.split()[0] for copy in copies(f"{word} end", 60, kinds=["case"], levels=[1.0])}

    assert first("fox") == {"FOX", "Fox"}
    assert first("Fox") == {"fox", "FOX"}
    assert first("12") == {"12"}


def test_choices_and_templates_are_no_free_text() -> None:
    texts: dict[str, Sequence[str]] = {
        name: prompts[0].texts for name, prompts in simulated_prompts().items()
    }
    assert texts["lettered choices"] == ["Where does a fox live?"]
    assert texts["instructions"] == ["Describe a fox."]
    assert texts["single words"] == ["fox"]


def test_a_prompt_without_free_text_has_no_copy() -> None:
    prompt = TrainingPrompt(Sample.question("one two end", [" yes", " no"], 0, id="a"), ())
    assert Perturb(Perturb.Options()).copy(prompt, 0, Random(0)) is None
