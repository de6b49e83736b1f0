"""Whether a student is right for the right reasons, against explanations that are made wrong."""

from __future__ import annotations

from itertools import islice

from firstcli.active.reading import Said
from firstcli.active.reasons import corrected, right_for_wrong_reasons
from firstcli.api import Annotation
from firstcli.tasks.known_steps import KnownSteps, KnownStepsOptions
from firstcli.tasks.known_world import KnownWorld, KnownWorldOptions

TASK = KnownSteps(KnownStepsOptions(train=8, pool=8, test=8, shifted=8))
QUESTIONS = list(islice(TASK.load("pool").samples, 5))


def words(number: int, *, right: bool, steps: tuple[str, ...]) -> Said:
    question = QUESTIONS[number]
    answer = TASK.true_answer(question)
    return Said(str(question.id), "", steps, answer if right else str((int(answer) + 1) % 10))


def test_right_answers_after_a_wrong_step_are_counted() -> None:
    chains = [TASK.true_steps(question) for question in QUESTIONS]
    said = {
        each.id: each
        for each in (
            words(0, right=True, steps=(*chains[0][:-1], "1 plus 1 is 7.")),  # the only one
            words(1, right=True, steps=chains[1]),
            words(2, right=True, steps=chains[2][:-1]),  # incomplete, but nothing is wrong
            words(3, right=False, steps=("1 plus 1 is 7.",)),
        )
    }
    assert right_for_wrong_reasons(TASK, QUESTIONS, said) == 1
    assert right_for_wrong_reasons(TASK, QUESTIONS[1:], said) == 0


def test_nothing_is_known_without_words_or_without_a_task_that_checks_them() -> None:
    said = {str(QUESTIONS[0].id): words(0, right=True, steps=("no",))}
    assert right_for_wrong_reasons(TASK, QUESTIONS, {}) is None
    assert right_for_wrong_reasons(TASK, [], said) is None
    assert right_for_wrong_reasons(KnownWorld(KnownWorldOptions()), QUESTIONS, said) is None


def test_a_step_that_is_only_added_corrects_nothing() -> None:
    said = {id: Said(id, "", ("one", "two"), "5") for id in "abc"}
    flaws = {"a": None, "b": 1, "c": 2}
    annotations = [Annotation(id, ("one",), "5", first_flaw=flaw) for id, flaw in flaws.items()]
    assert corrected(annotations, said) == 1
