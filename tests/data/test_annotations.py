"""The questions that annotators get hide the label; a label that was bought is read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from firstcli.api import ExplanationForm, Sample, ToAnnotate, render
from firstcli.data.annotations import choices_of, question_of, to_annotate, with_label

FORM = ExplanationForm()
STEPS = ("A fox has no feathers.", "A crane has.")
FREE = Sample("What is 2 + 3?", render(("2 + 3 = 5.",), "5", FORM), id="f", steps=("2 + 3 = 5.",))
CHOICE = replace(
    Sample.question(
        "Which one flies?",
        [render(STEPS, word, FORM) for word in ("a fox", "a crane")],
        1,
        id="c",
        truth=(0.25, 0.75),
        group="animals",
    ),
    steps=STEPS,
)
PLAIN = Sample.question("Which one flies?", [" (a).", " (b)."], 1, id="p")


@pytest.mark.parametrize(("sample", "form"), [(FREE, FORM), (CHOICE, FORM), (PLAIN, None)])
def test_nothing_of_the_label_is_left(sample: Sample, form: ExplanationForm | None) -> None:
    question = question_of(sample, form)
    assert (question.response, question.answer, question.truth) == ("", None, None)
    assert question.steps == ()
    for step in sample.steps:
        assert step not in repr(question)
    assert (question.id, question.prompt, question.group) == (
        sample.id,
        sample.prompt,
        sample.group,
    )
    other = replace(PLAIN, answer=0, response=" (a).")
    assert question_of(other, None) == question_of(PLAIN, None)


def test_choices_are_the_answers_of_the_candidates() -> None:
    assert choices_of(CHOICE, FORM) == ("a fox", "a crane")
    assert choices_of(question_of(CHOICE, FORM), FORM) == ("a fox", "a crane")
    assert choices_of(PLAIN, None) == ("(a).", "(b).")
    assert choices_of(FREE, FORM) == ()


def test_what_the_student_says_is_put_into_lines() -> None:
    item = to_annotate(CHOICE, FORM, ("It\nflies.", " "), "a fox")
    expected = question_of(CHOICE, FORM)
    assert item == ToAnnotate(expected, ("It flies.",), "a fox", ("a fox", "a crane"), None)


def test_a_bought_label_is_read() -> None:
    for sample, form, right in (
        (FREE, FORM, "5"),
        (CHOICE, FORM, "a crane"),
        (PLAIN, None, "(b)."),
    ):
        item = to_annotate(sample, form, (), "")
        bought = with_label(item, sample, form)
        assert (bought.right_answer, bought.sample) == (right, sample)
        assert bought.choices == item.choices
    unlabelled = question_of(PLAIN, None)
    assert with_label(to_annotate(PLAIN, None), unlabelled, None).right_answer is None
