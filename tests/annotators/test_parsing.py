"""What teachers write is read strictly: every text gives a sound annotation, or one reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstcli.annotators.answer import AnswerAnnotator, AnswerOptions
from firstcli.annotators.evolve import Evolve, EvolveOptions
from firstcli.annotators.explain import Explain, ExplainOptions
from firstcli.annotators.lines import LineForm, StepForms, one_line
from firstcli.annotators.revise import Revise, ReviseOptions
from firstcli.api import Annotator, Explained, Sample, ToAnnotate, Unparsable
from firstcli.plugins.annotators import annotation_problem

QUESTION = Sample("What is 2 + 3 + 4?", " 9", id="q")
CHOICES = ("(a) fox", "(b) crane", "(c) moth-eaten")
CHOICE = ToAnnotate(Sample.question("Which one flies?", CHOICES, None, id="c"), choices=CHOICES)
OWN = ("2 + 3 = 6.", "6 + 4 = 10.")
SAID = ToAnnotate(QUESTION, OWN, "10")

explain, revise = Explain(ExplainOptions()), Revise(ReviseOptions())
answer, evolve = AnswerAnnotator(AnswerOptions()), Evolve(EvolveOptions())
of_task = Explain(
    ExplainOptions(template="{question}", step="{step}", answer="The answer is {answer}.")
)

words = st.text(st.characters(codec="utf-8"), min_size=1).map(one_line).filter(bool)
texts = words.filter(lambda text: "answer" not in text.casefold() and "<" not in text)
"""What a step or an answer may say in any form."""
noise = st.one_of(
    st.text(),
    st.lists(
        st.one_of(
            st.sampled_from(
                [
                    "First wrong step: none",
                    "first wrong step:2",
                    "First wrong step: 1",
                    "Step 1: One.",
                    "Step 2: Two.",
                    "STEP 2:  2 + 3 = 6.",
                    "Step 3: Three.",
                    "Answer: 9",
                    "Answer: (b)",
                    "Answer:",
                    "The answer is 9.",
                    "",
                ]
            ),
            st.text(),
        )
    ).map("\n".join),
)
students = st.builds(
    lambda item, steps, said: replace(item, explanation=tuple(steps), answer=said),
    st.sampled_from([ToAnnotate(QUESTION), CHOICE]),
    st.lists(words, max_size=4),
    st.text(),
)


@given(students, noise)
@pytest.mark.parametrize("annotator", [explain, revise, answer, of_task, evolve])
def test_every_text_is_sound_or_unparsable(
    annotator: Annotator[Any], item: ToAnnotate, text: str
) -> None:
    try:
        found = annotator.parse(item, text)
    except Unparsable as reason:
        assert str(reason)
        assert len(str(reason).splitlines()) == 1
        return
    revises, writes = annotator.reads_explanation, annotator.writes_questions
    assert annotation_problem(found, item, revises=revises, writes_questions=writes) is None
    # Nothing is invented: all that is learned was written by the teacher or by the student.
    written = one_line(text).casefold()
    flaw = found.first_flaw
    kept = len(item.explanation) if flaw is None else flaw
    new = found.steps[kept:] if isinstance(annotator, Revise) else found.steps
    assert all(one_line(step).casefold() in written for step in new)


@given(st.lists(texts, min_size=1, max_size=6), texts)
@pytest.mark.parametrize("annotator", [explain, of_task])
def test_what_has_the_form_is_read_as_it_is(
    annotator: Explain, steps: list[str], said: str
) -> None:
    forms = StepForms(annotator.options.step, annotator.options.answer)
    item = ToAnnotate(QUESTION)
    found = annotator.parse(item, forms.written(steps, f"{said} x"))
    assert found == Explained(tuple(steps), f"{said} x")


@given(st.lists(texts, max_size=5), st.lists(texts, min_size=1, max_size=4), st.data())
def test_a_revision_keeps_what_is_right(
    own: list[str], new: list[str], data: st.DataObject
) -> None:
    flaw = data.draw(st.integers(0, len(own)))
    new[0] += " corrected"
    item = ToAnnotate(QUESTION, tuple(own), "10")
    forms = StepForms(revise.options.step, revise.options.answer)
    text = f"First wrong step: {flaw + 1}\n{forms.written(new, '9', flaw + 1)}"
    assert revise.parse(item, text) == Explained((*own[:flaw], *new), "9", flaw)


def test_all_steps_are_right() -> None:
    item = ToAnnotate(QUESTION, ("2 + 3 = 5.", "5 + 4 = 9."), "8")
    found = revise.parse(item, "First wrong step: none\nAnswer: 9")
    assert found == Explained(item.explanation, "9", None)


def test_steps_are_missing() -> None:
    item = ToAnnotate(QUESTION, ("2 + 3 = 5.",), "5")
    found = revise.parse(item, "First wrong step: 2\n\n  step 2:5 + 4 = 9.\nANSWER: 9.\n")
    assert found == Explained(("2 + 3 = 5.", "5 + 4 = 9."), "9", 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        ("Step 1: 2 + 3 = 5.", "it does not end with a line of the form 'Answer: {answer}'"),
        ("Answer: 9", "it has an answer, but no step"),
        ("Sure!\nStep 1: 2 + 3 = 5.\nAnswer: 9", "a line does not have the form"),
        ("Step 1: 5.\nStep 3: 9.\nAnswer: 9", "a line is not step 2: 'Step 3: 9.'"),
        ("Step 1: 5.\nAnswer: 8\nAnswer: 9", "more lines follow an answer: 'Answer: 8'"),
        ("Step 1: 5.\nAnswer: 9\nI am sure.", "it does not end with a line of the form"),
        ("Step 1: <the first step>\nAnswer: 9", "a line says nothing: 'Step 1: <the first step>'"),
        ("Step 1: 5.\nAnswer: <the answer alone>", "a line says nothing"),
        ("Step 1: 5.\nAnswer:", "a line says nothing: 'Answer:'"),
        (f"Step {'9' * 5000}: 5.\nAnswer: 9", "a line does not have the form"),
    ],
)
def test_why_an_explanation_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(Unparsable) as caught:
        explain.parse(SAID, text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the text is empty"),
        ("Step 1: 2 + 3 = 5.\nAnswer: 9", "the first line does not have the form"),
        ("First wrong step: 4\nStep 4: 9.\nAnswer: 9", "the first wrong step is 4 of 2 steps"),
        ("First wrong step: 0\nStep 0: 9.\nAnswer: 9", "the first wrong step is 0 of 2 steps"),
        ("First wrong step: 2\nStep 1: 5.\nAnswer: 9", "a line is not step 2: 'Step 1: 5.'"),
        ("First wrong step: 1\nAnswer: 9", "step 1 is wrong, but no step follows"),
        ("First wrong step: none\nStep 1: 5.\nAnswer: 9", "a line is not step 3"),
        ("First wrong step: none\nStep 3: 5.\nAnswer: 9", "no step is wrong, but steps follow"),
        (
            "First wrong step: 1\nStep 1: 2 + 3 =  6.\nAnswer: 9",
            "step 1 is wrong, but repeated without a change",
        ),
    ],
)
def test_why_a_revision_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(Unparsable) as caught:
        revise.parse(SAID, text)
    assert reason in str(caught.value)
    with pytest.raises(Unparsable, match="but the student wrote none"):
        revise.parse(ToAnnotate(QUESTION), "First wrong step: none\nAnswer: 9")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("(b) crane", "(b) crane"),
        ("(B)  Crane.", "(b) crane"),
        ("**(b) crane**", "(b) crane"),
        ("b) crane", "(b) crane"),
    ],
)
def test_an_answer_is_one_of_the_candidates(said: str, found: str) -> None:
    assert answer.parse(CHOICE, f"Answer: {said}").answer == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("1200", "1,200"),
        ("**1200.0**", "1,200"),
        ("-5", None),
        ("5.0", "5"),
        ("$5.", "5"),
        ("5%", None),
    ],
)
def test_numbers_are_compared_as_numbers(said: str, found: str | None) -> None:
    item = replace(CHOICE, choices=("5", "1,200"))
    try:
        assert answer.parse(item, f"Answer: {said}").answer == found
    except Unparsable:
        assert found is None


def test_an_answer_that_is_no_candidate() -> None:
    with pytest.raises(Unparsable, match="the answer 'a bat' is none of the 3 choices"):
        answer.parse(CHOICE, "Answer: a bat")
    similar = replace(CHOICE, choices=("yes.", "(yes)"))
    assert answer.parse(similar, "Answer: (yes)").answer == "(yes)"
    with pytest.raises(Unparsable, match="the answer 'Yes' fits 2 of the 2 choices"):
        answer.parse(similar, "Answer: Yes")


def test_only_the_answer_is_written() -> None:
    with pytest.raises(Unparsable, match="more than the answer is written"):
        answer.parse(SAID, "Let me see.\nAnswer: 9")
    assert answer.parse(SAID, "answer: 1,200.\n") == Explained((), "1,200")


@given(texts, st.lists(texts, min_size=1, max_size=3))
def test_a_new_question_is_read_as_it_is(question: str, steps: list[str]) -> None:
    forms = StepForms(evolve.options.step, evolve.options.answer)
    text = f"Question: {question} ?\n{forms.written(steps, '9')}"
    found = evolve.parse(SAID, text)
    assert found == Explained(tuple(steps), "9", question=f"{question} ?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Step 1: 5.\nAnswer: 9", "the first line does not have the form 'Question: {question}'"),
        ("Question:\nStep 1: 5.\nAnswer: 9", "the first line does not have the form"),
        ("Question: <the new question in one line>\nStep 1: 5.\nAnswer: 9", "a line says nothing"),
        ("Question: What is 1 + 8?\nAnswer: 9", "it has an answer, but no step"),
    ],
)
def test_why_a_new_question_cannot_be_read(text: str, reason: str) -> None:
    with pytest.raises(Unparsable) as caught:
        evolve.parse(SAID, text)
    assert reason in str(caught.value)


def test_a_form_writes_and_reads_a_line() -> None:
    form = LineForm("Step {number}: {step}")
    assert form.written(number="2", step="3 +\n4 = 7") == "Step 2: 3 + 4 = 7"
    assert form.read("  step  2:  3 + 4 = 7 ") == {"number": "2", "step": "3 + 4 = 7"}
    assert form.read("Step two: 7") is None
    assert LineForm("A.c {answer}").read("Abc 7") is None
