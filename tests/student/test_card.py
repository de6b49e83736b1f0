"""The model card says what `firstcli.json` says, in words, and shows code that fits it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from firstcli.api.usage import ChoiceForm, InputField, Label
from firstcli.student.card import CardParts, card, read_parts
from firstcli.student.usage import (
    EvaluationNumbers,
    FoldedTemperature,
    StoredEstimate,
    StoredRecalibrator,
    Usage,
)

PARTS = CardParts("library_name: transformers\n", "How it was trained.")
TEXT = {"text": InputField(columns=("text",))}
LABELS = (Label(name="spam", response=" spam"), Label(name="no | spam", response=" ham"))
TEMPERATURE = StoredRecalibrator(name="logit-temperature", options={}, state={}, temperature=1.5)
OTHER = StoredRecalibrator(name="isotonic", options={}, state={})


def usage(**fields: Any) -> Usage:
    given = {"kind": "classification", "prompt": "{text}\nLabel:", "inputs": TEXT, "labels": LABELS}
    return Usage(
        **given | {"firstcli": "1.0", "run": "mails", "arm": "first", "task": "t"} | fields
    )


def python_blocks(text: str) -> list[str]:
    found = re.findall(r"~~~python\n(.*?)\n~~~", text, re.DOTALL)
    for code in found:
        ast.parse(code)
    return found


def test_a_card_states_answers_prompt_and_numbers() -> None:
    estimate = StoredEstimate(value=0.123, low=0.1, high=0.15)
    numbers = {"test": EvaluationNumbers(questions=40, accuracy=estimate)}
    text = card(usage(numbers=numbers), PARTS, figure=True)
    assert text.startswith("---\nlibrary_name: transformers\n---\n\n# mails: first\n")
    assert "one of 2 answers" in text and "{text}\nLabel:" in text
    assert "| `no \\| spam` | ` ham` |" in text  # a bar would end the cell
    assert "| test | 40 | 12.3 [10.0, 15.0] | – | – |" in text
    assert "](reliability.png)" in text
    assert text.endswith("## Training\n\nHow it was trained.\n")
    assert "reliability.png" not in card(usage(numbers=numbers), PARTS, figure=False)
    assert "not been evaluated" in card(usage(), PARTS, figure=False)


@pytest.mark.parametrize(
    ("fields", "said", "divided"),
    [
        ({}, "without a temperature", False),
        ({"folded": FoldedTemperature(temperature=1.5)}, "folded", False),
        ({"posthoc": TEMPERATURE}, "**not** part", True),
        ({"posthoc": OTHER}, "recalibrated by `isotonic`", False),
    ],
)
def test_the_code_divides_by_a_temperature_that_is_outside_the_weights(
    fields: dict[str, Any], said: str, divided: bool
) -> None:
    text = card(usage(**fields), PARTS, figure=False)
    assert said in text
    blocks = python_blocks(text)
    assert len(blocks) == 2
    assert all(("/ 1.5" in code) == divided for code in blocks)
    assert ("without its recalibrator" in text) == (fields.get("posthoc") == OTHER)


def test_a_prompt_cannot_leave_its_block() -> None:
    text = card(usage(prompt="{text}\n~~~\n# Heading\n~~~~\n"), PARTS, figure=False)
    assert "~~~~~text\n{text}\n~~~\n# Heading\n~~~~\n~~~~~\n" in text


def test_other_kinds() -> None:
    form = ChoiceForm(columns=("a", "b"), separate=True, respond_with="text")
    inputs = {"question": InputField(columns=("question",))}
    fields: dict[str, Any] = {"kind": "multiple-choice", "labels": (), "choices": form}
    choice = usage(inputs=inputs, prompt="{question}\n{choices}", **fields)
    text = card(choice, PARTS, figure=False)
    assert "answers = [' the first answer', ' the second answer']" in text
    assert "first predict . --file" in text
    text = card(usage(kind="instruction", labels=()), PARTS, figure=False)
    assert "instructions" in text and python_blocks(text) == []


def test_secrets_are_left_out() -> None:
    secret = "hf_" + "aB3" * 11
    assert secret not in card(usage(prompt=f"{secret} {{text}}"), PARTS, figure=False)


def test_the_parts_of_a_card_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card(usage(), PARTS, figure=False))
    found = read_parts(tmp_path)
    assert card(usage(), found, figure=False) == card(usage(), PARTS, figure=False)
    (tmp_path / "README.md").write_text("Somebody's own text.")
    assert "library_name" in read_parts(tmp_path).front_matter
    (tmp_path / "README.md").unlink()
    assert read_parts(tmp_path).training == "Unknown."
