"""Choosing a round's questions part by part is the same as choosing them at once."""

from __future__ import annotations

import numpy as np
import pytest

from firstcli import plugins
from firstcli.active.choosing import ChoiceOrder
from firstcli.api import Pool
from firstcli.plugins.selectors import selector


def pool(annotated: int) -> Pool:
    draw = np.random.default_rng(0)
    points = draw.normal(size=(60, 3))
    centres = draw.normal(size=(annotated, 3))
    return Pool([f"q{i}" for i in range(60)], embeddings=points, annotated=centres)


@pytest.mark.parametrize("annotated", [0, 4])
@pytest.mark.parametrize("name", ["core-set", "random"])
def test_parts_continue_one_choice(name: str, annotated: int) -> None:
    chooser = selector(name, plugins.load("selectors", name).Options())
    questions = pool(annotated)
    scores = chooser.scores(questions, 3)
    order = ChoiceOrder(chooser, questions, scores, 3)
    bought: list[str] = []
    for count in (5, 1, 7, 4, 30, 13):
        part = order.after(bought, count)
        assert len(part) == count
        bought += part
    at_once = chooser.choose(scores, questions, 60, 3)
    assert bought == [questions.ids[place] for place in at_once]
    alone = chooser.choose(scores, questions, 5, 3)
    assert ChoiceOrder(chooser, questions, scores, 3).after([], 5) == [
        questions.ids[place] for place in alone
    ]
