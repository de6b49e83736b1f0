"""Which copies of a sample ask for the same answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from firstcli.api import Sample
from firstcli.plugins.samples import copy_problem

TRUTH = (0.5, 0.3, 0.2)
WORDS = Sample.question("Does it?", (" yes", " no", " perhaps"), 0, id="q", truth=TRUTH)
LETTERS = Sample.question("Which? (", ("A).", "B).", "C)."), 0, id="q", truth=TRUTH)


def test_a_copy_with_another_prompt_is_sound() -> None:
    for sample in (WORDS, LETTERS):
        assert copy_problem(replace(sample, prompt="Now?"), sample) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": 1, "response": " no"}, "has changed `response`"),
        ({"truth": (0.3, 0.5, 0.2)}, "has changed `truth`"),
        ({"truth": None}, "has changed `truth`"),
        ({"answer": None, "response": "", "truth": None}, "has changed whether"),
    ],
)
def test_words_keep_their_answer_and_truth(changes: dict[str, object], problem: str) -> None:
    assert problem in str(copy_problem(replace(WORDS, **changes), WORDS))  # type: ignore[arg-type]


def test_letters_move_together_with_their_truth() -> None:
    moved = replace(LETTERS, answer=1, response="B).", truth=(0.3, 0.5, 0.2))
    assert copy_problem(moved, LETTERS, by_letter=True) is None
    assert copy_problem(moved, LETTERS) == "has changed `response`"
    apart = replace(LETTERS, answer=1, response="B).")
    problem = "has moved `truth` and `answer` to different letters"
    assert copy_problem(apart, LETTERS, by_letter=True) == problem
    other = replace(LETTERS, truth=(0.6, 0.2, 0.2))
    problem = "has changed `truth` other than in its order"
    assert copy_problem(other, LETTERS, by_letter=True) == problem
