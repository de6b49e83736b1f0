"""The choices of a question in every form in which data sets store them."""

from __future__ import annotations

from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.tasks.choices import Choices, in_cell, in_columns
from firstcli.tasks.tables import TableRow

AB = Choices(["x", "y"], ["A", "B"])


def parsed(value: object, separator: str | None = None) -> Choices:
    return in_cell(TableRow("f:1", {"c": value}), "c", separator)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["x", "y"], Choices(["x", "y"], [])),
        ([14, 16], Choices(["14", "16"], [])),
        ({"text": ["x", "y"], "label": ["A", "B"]}, AB),  # CommonsenseQA, ARC on the hub
        ({"label": ["A", "B"], "text": ["x", "y"], "note": ["", ""]}, AB),
        ({"text": ["x", "y"]}, Choices(["x", "y"], [])),
        ([{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], AB),  # their official files
        ([{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], AB),
        ([{"text": "x"}, {"text": "y"}], Choices(["x", "y"], [])),
        ({"A": "x", "B": "y"}, AB),  # MedQA
        ({"A": "x", "B": "y", "C": None}, AB),  # the same in Parquet, where some rows have a C
        ('["x", "y"]', Choices(["x", "y"], [])),
        ("['x', 'y']", Choices(["x", "y"], [])),  # pandas
        (' {"text": ["x", "y"], "label": ["A", "B"]}', AB),
        ("{'A': 'x', 'B': 'y'}", AB),
        ('["[a]", "{b}"]', Choices(["[a]", "{b}"], [])),
    ],
)
def test_every_form_of_choices(value: object, expected: Choices) -> None:
    assert parsed(value) == expected


def test_text_is_split_only_at_a_stated_separator() -> None:
    assert parsed("[a]|b", "|").texts == ["[a]", "b"]
    assert in_columns(
        TableRow("f:1", {"opa": "x", "opb": "y", "opc": " "}), ["opa", "opb", "opc"]
    ) == (Choices(["x", "y"], ["opa", "opb"]))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x, y", 'found "x, y", expected a list of choices'),
        ("[x, y]", 'found "[x, y]", expected a list of choices'),
        ("['x' 'y']", "found 1 choices, expected 2 to 26"),  # an array as numpy prints it
        ("{'text': array(['x', 'y'], dtype=object)}", "expected a list of choices"),
        ("[" * 100_000, "expected a list of choices"),
        (None, "found null, expected a list of choices"),
        ({"text": "x", "label": "A"}, "expected a list of choices"),
        ([{"label": "A"}, {"label": "B"}], "expected a list of choices"),
        ([{"text": "x"}, "y"], "expected a list of choices"),
        ({"text": ["x", "y"], "label": ["A"]}, "found 2 choices, but 1 labels"),
        (
            {"text": ["x", "y"], "label": ["A", "A"]},
            "found the labels 'A', 'A', expected different",
        ),
        ({"A": None, "B": "y"}, "found null, expected text"),
        ({"A": "x", "B": " "}, "choice 2 of 2 is empty"),
        ([0.5, 1.5], "found 0.5, expected text or a whole number"),
        ([["x"], ["y"]], 'found the list ["x"], expected text'),
    ],
)
def test_other_forms_are_refused(value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(value)
    assert str(caught.value).startswith("f:1: column 'c': ")
    assert expected in str(caught.value)
