"""Copies in other wordings: the label moves with its choice."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from firstcli.api import Sample, TrainingPrompt, UserError
from firstcli.augmenters.template import Reworded
from firstcli.plugins import calls
from firstcli.plugins.samples import copy_problem
from firstcli.tasks.fields import training_prompt
from firstcli.testing import check_augmenter_on, simulated_prompts
from firstcli.testing.augmenters import LETTERED_USAGE

LETTERED = "Say: {question}\n{choices}\nThe letter is ("


def made(
    prompts: list[TrainingPrompt], template: str, seed: int = 0, **options: Any
) -> list[Sample]:
    augmenter = calls.augmenter("template", Reworded.Options(templates=[template], **options))
    augmenter.read(prompts)
    copies = [augmenter.copy(prompt, 0, Random(f"{seed} {prompt.sample.id}")) for prompt in prompts]
    return [copy for copy in copies if copy is not None]


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("questions", "Now: {prompt}"),
        ("lettered choices", LETTERED),
        ("instructions", "Please do this.\n{instruction}\n"),
        ("single words", "What is a {prompt}?"),
    ],
)
def test_it_conforms(kind: str, template: str) -> None:
    options = {"templates": [template, f"And: {template}"]}
    check_augmenter_on(Reworded, options, simulated_prompts()[kind])


def texts_by_letter(prompt: str) -> dict[str, str]:
    lines = [line for line in prompt.split("\n") if line.startswith("(")]
    return {line[1]: line[4:] for line in lines}


def test_the_label_moves_with_its_choice() -> None:
    prompts = simulated_prompts()["lettered choices"]
    orders = set()
    for seed in range(20):
        for prompt, copy in zip(prompts, made(prompts, LETTERED, seed), strict=True):
            before, after = texts_by_letter(prompt.sample.prompt), texts_by_letter(copy.prompt)
            assert sorted(before.values()) == sorted(after.values())
            assert after[copy.response[0]] == before[prompt.sample.response[0]]
            assert copy.prompt.startswith(f"Say: {prompt.texts[0]}\n(A) ")
            assert copy.prompt.endswith("\nThe letter is (")
            orders.add(tuple(after.values()))
    assert len(orders) == 6


def test_the_truth_moves_with_its_choice() -> None:
    (prompt, *_) = simulated_prompts()["lettered choices"]
    sample = Sample.question(
        prompt.sample.prompt, prompt.sample.candidates, 1, id="a", truth=(0.2, 0.5, 0.3)
    )
    known = TrainingPrompt(sample, prompt.fields, prompt.choices, prompt.listing, prompt.by_letter)
    place = dict(zip(texts_by_letter(sample.prompt).values(), (0.2, 0.5, 0.3), strict=True))
    for seed in range(10):
        (copy,) = made([known], LETTERED, seed)
        assert copy.truth == tuple(place[text] for text in texts_by_letter(copy.prompt).values())
        assert copy_problem(copy, sample, by_letter=True) is None


def test_choices_keep_their_order_where_it_has_a_meaning() -> None:
    prompts = simulated_prompts()["lettered choices"]
    for prompt, copy in zip(prompts, made(prompts, LETTERED, shuffle=False), strict=True):
        assert copy.response == prompt.sample.response
        assert texts_by_letter(copy.prompt) == texts_by_letter(prompt.sample.prompt)
    (prompt, *_) = prompts
    changed = prompt.sample.prompt.replace("the cave", "none of the above")
    assert "none of the above" in changed
    referring = training_prompt(replace(prompt.sample, prompt=changed), LETTERED_USAGE)
    for seed in range(10):
        (copy,) = made([referring], LETTERED, seed)
        assert texts_by_letter(copy.prompt) == texts_by_letter(changed)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"unknown \{questoin\}.*have \{choices\}, \{question\}"):
        made(simulated_prompts()["lettered choices"], "{questoin} (")
    for templates in ([], ["no name"], ["{a}", "{a}"]):
        with pytest.raises(ValidationError):
            Reworded.Options(templates=templates)
