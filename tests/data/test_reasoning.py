"""Explanations: rendering, reading answers, comparing them, and samples that hold them."""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.api import ExplanationForm, Sample, StepRule
from firstcli.api.explanations import canonical_answer
from firstcli.data.reasoning import (
    answer_sentences,
    final_answer,
    read_answer,
    render,
    same_answer,
    split_steps,
    step_spans,
    with_answer,
    with_steps,
)
from firstcli.data.samples import Samples, to_json
from firstcli.plugins.samples import sample_problem

FORM = ExplanationForm()
GSM8K = ExplanationForm(answer_format="#### {answer}", opening="\n")
LETTERS = ExplanationForm(answer_format="The answer is ({answer}).")
STEPS = ("Tom has 3 bags.", "3 times 4 is 12.")
WORDS = st.text(string.ascii_letters + string.digits + " ", min_size=1).map(str.strip)


def choice(steps: tuple[str, ...] = STEPS, answer: int | None = 1) -> Sample:
    candidates = tuple(render(steps, letter, LETTERS) for letter in "abc")
    return replace(Sample.question("Which?\nA:", candidates, answer, id="q"), steps=steps)


def test_a_response_is_its_steps_and_the_sentence_with_the_answer() -> None:
    assert render(STEPS, "12", FORM) == " Tom has 3 bags.\n3 times 4 is 12.\nThe answer is 12."
    assert render((), "12", FORM) == " The answer is 12."
    assert render(STEPS[:1], "12", GSM8K) == "\nTom has 3 bags.\n#### 12"
    assert render((), "{x} {answer}", FORM) == " The answer is {x} {answer}."


@pytest.mark.parametrize(
    "rule, text, steps",
    [
        ("lines", "One.  Two.\n\n  Three ", ["One.  Two.", "Three"]),
        ("sentences", "One is 1.5. Two? Yes!\nThree", ["One is 1.5.", "Two?", "Yes!", "Three"]),
        ("sentences", "J. Smith paid $3. 4 are left.", ["J. Smith paid $3.", "4 are left."]),
        ("sentences", 'He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("sentences", "an approx. value e.g. this", ["an approx. value e.g. this"]),
        ("lines", " \n ", []),
    ],
)
def test_steps_of_a_text(rule: StepRule, text: str, steps: list[str]) -> None:
    assert split_steps(text, rule) == tuple(steps)


@given(st.lists(WORDS.filter(bool)))
def test_steps_that_are_joined_by_line_ends_are_found_again(steps: list[str]) -> None:
    assert split_steps("\n".join(steps), "lines") == tuple(steps)


@pytest.mark.parametrize(
    "form, text, explanation, answer",
    [
        (FORM, "3 times 4 is 12.\nThe answer is 12.", "3 times 4 is 12.", "12"),
        (FORM, "The answer is 3.14.", "", "3.14"),
        (FORM, "A.\nThe  answer is 3.5", "A.", "3.5"),
        (FORM, "The answer is U.S. Steel.\nQ: next\nThe answer is 4.", "", "U.S. Steel"),
        (FORM, "3 times 4 is 12.\nThe answer is", "3 times 4 is 12.\nThe answer is", None),
        (FORM, "", "", None),
        (GSM8K, "\n16 - 3 = 13\n#### 1,300\n", "16 - 3 = 13", "1,300"),
        (LETTERS, "So b.\nThe answer is (b).", "So b.", "b"),
        (ExplanationForm(pattern=r"=\s*(\d+)"), "so x = 7 and y = 8", "so x", "7"),
    ],
)
def test_generated_text_is_taken_apart(
    form: ExplanationForm, text: str, explanation: str, answer: str | None
) -> None:
    found = form.read(text)
    assert (found.explanation, found.answer) == (explanation, answer)
    assert read_answer(text, form.answer_pattern) == answer


@given(st.lists(WORDS.filter(bool), max_size=4), WORDS.filter(bool))
def test_a_rendered_answer_is_read_again(steps: list[str], answer: str) -> None:
    for form in (FORM, GSM8K, LETTERS):
        found = form.read(render(steps, answer, form))
        assert found.answer is not None and same_answer(found.answer, answer)
        assert split_steps(found.explanation, "lines") == tuple(steps)


@pytest.mark.parametrize(
    "first, second",
    [
        ("1,200", "1200.0"),
        ("$18", "18"),
        ("-$5", "-5.00"),
        ("\N{MINUS SIGN}5", "-5"),
        ("007", "7"),
        (".5", "0.50"),
        ("0", "-0.0"),
        ("18.", "18"),
        ("Yes", " yes."),
        ("New  York", "new york"),
    ],
)
def test_same_answers(first: str, second: str) -> None:
    assert same_answer(first, second) and same_answer(second, first)
    assert canonical_answer(canonical_answer(first)) == canonical_answer(first)


@pytest.mark.parametrize(
    "first, second",
    [("12", "13"), ("1,20", "120"), ("12", "12 apples"), ("yes", "no"), ("5", "-5"), ("5%", "5")],
)
def test_different_answers(first: str, second: str) -> None:
    assert not same_answer(first, second)


@given(st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_an_integer_is_the_same_in_every_notation(number: int, zeros: int) -> None:
    plain = str(number)
    assert same_answer(f"{number:,}", plain)
    assert same_answer(f"{plain}.{'0' * zeros}", plain)
    assert not same_answer(str(number + 1), plain)


def test_the_places_of_steps() -> None:
    response = render(("a", "ab", "a"), "x", FORM)
    spans = step_spans(response, ("a", "ab", "a"))
    assert [response[start:end] for start, end in spans] == ["a", "ab", "a"]
    assert [start for start, _ in spans] == [1, 3, 6]
    with pytest.raises(ValueError, match="step 2"):
        step_spans(response, ("ab", "ab"))


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"answer_format": "The answer."}, "contains"),
        ({"answer_format": "{answer} {answer}"}, "contains"),
        ({"pattern": "("}, "regular expression"),
        ({"pattern": "answer"}, "0 groups"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(options: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ExplanationForm(**options)  # type: ignore[arg-type]


def test_a_sample_with_other_steps_keeps_its_answer() -> None:
    sample, steps = choice(), ("Other.",)
    changed = with_steps(sample, steps, LETTERS)
    assert changed == choice(steps) and sample_problem(changed) is None
    assert with_steps(changed, STEPS, LETTERS) == sample
    assert answer_sentences(with_steps(sample, (), LETTERS), LETTERS)[2] == "The answer is (c)."
    unanswered = with_steps(choice(answer=None), steps, LETTERS)
    assert unanswered.response == "" and sample_problem(unanswered) is None
    free = Sample("Q", render(STEPS, "12", GSM8K), steps=STEPS)
    assert with_steps(free, steps, GSM8K).response == "\nOther.\n#### 12"
    assert with_steps(Sample("Q", ""), steps, GSM8K).response == ""


def test_a_sample_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="'q' is not made of its steps"):
        with_steps(choice(), (), GSM8K)


def test_a_sample_with_another_answer() -> None:
    bought = with_answer(choice((), None), STEPS, "B", LETTERS)
    assert bought == choice()
    assert with_answer(choice(), STEPS, "d", LETTERS) is None
    free = with_answer(Sample("Q", ""), STEPS, "1,200", GSM8K)
    assert free is not None and final_answer(free, GSM8K) == "1,200"


def test_the_right_answer_of_a_sample() -> None:
    assert final_answer(choice(), LETTERS) == "b"
    assert final_answer(choice(answer=None), LETTERS) is None
    assert final_answer(Sample("Q", ""), FORM) is None


def test_samples_with_steps_survive_their_store_and_others_keep_their_digest(
    tmp_path: Path,
) -> None:
    samples = [choice(), choice((), None), Sample("Q", "A"), Sample("Q", "A", group="g")]
    held = Samples(samples, tmp_path)
    assert list(held) == samples
    assert [held.content(i) for i in range(4)] == [*map(to_json, samples)]
    assert to_json(samples[2]) == b'[null, "Q", "A", [], null, null]'
    assert to_json(samples[3]) == b'[null, "Q", "A", [], null, null, "g"]'
    assert to_json(choice()) != to_json(replace(choice(), steps=STEPS[:1]))


@pytest.mark.parametrize(
    "sample, problem",
    [
        (replace(choice(), steps=cast(Any, ["a"])), "not a tuple"),
        (replace(choice(), steps=("Tom has 3 bags.", " ")), "a step is empty"),
        (replace(choice(), steps=STEPS[::-1]), "step 2 is not in"),
        (Sample("Q", "The answer is 1.", steps=("One.",)), "step 1 is not in"),
    ],
)
def test_malformed_steps_are_named(sample: Sample, problem: str) -> None:
    assert problem in (sample_problem(sample) or "")
