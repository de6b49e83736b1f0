"""Mistakes in an arm with a preset name the keys that its writer wrote."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.recipe.schema import Recipe
from support.command_line import recipe


def mistakes(arm: dict[str, Any], **sections: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(recipe(arms={"a": arm}, **sections))
    return {".".join(map(str, each["loc"])): each["msg"] for each in caught.value.errors()}


def test_a_preset_of_knowledge_does_not_learn_labels() -> None:
    found = mistakes({"preset": "first-plus", "learn": "labels"})
    assert list(found) == ["arms.a.learn"]
    assert "'preset: first-plus' learns the teacher's probabilities" in found["arms.a.learn"]


def test_a_key_that_the_preset_sets_is_not_named_as_if_it_were_written() -> None:
    drawn = {"knowledge": {"draws": 20}}
    found = mistakes({"preset": "first-plus"}, **drawn)
    assert list(found) == ["arms.a.preset"]
    assert "'first-plus' sets `recalibrator`, which the arm may override" in found["arms.a.preset"]
    own = {"preset": "first-plus", "recalibrator": {"name": "temperature-scaling"}}
    assert list(mistakes(own, **drawn)) == ["arms.a.recalibrator"]
