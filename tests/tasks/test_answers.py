"""Which choice an answer names: every reading, and every case in which two readings fit."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstcli.errors import UserError
from firstcli.tasks.answers import Evidence, GoldAnswer, Reading, answer_of
from firstcli.tasks.choices import Choices

ABC = ["x", "y", "z"]


def answers(texts: Sequence[str], values: Sequence[object], *labels: str) -> list[GoldAnswer]:
    choices = Choices(texts, labels)
    return [answer_of(f"f:{line}", value, choices) for line, value in enumerate(values, 1)]


def resolve(texts: Sequence[str], values: Sequence[object], *labels: str) -> list[int]:
    """Return the correct choices, read as `auto` does."""
    evidence = Evidence()
    found = answers(texts, values, *labels)
    for answer in found:
        evidence.add(answer)
    readings = evidence.readings()
    return [answer.correct(readings) for answer in found]


def complaint(texts: Sequence[str], values: Sequence[object], *labels: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(texts, values, *labels)
    return str(caught.value)


@pytest.mark.parametrize(
    ("texts", "values", "expected"),
    [
        (ABC, [0, 2], [0, 2]),
        (ABC, ["0", " 2 "], [0, 2]),
        (ABC, [0.0, 2.0], [0, 2]),  # pandas turns integers into floats
        (ABC, ["0.0", "2.0"], [0, 2]),
        (ABC, [1, 3], [0, 2]),  # only an index from 1 can be 3
        (ABC, [["A"], ["C"]], [0, 2]),
        (ABC, ['["A"]', "['C']"], [0, 2]),
        (ABC, ["a", "C"], [0, 2]),
        (["one", "two"], ["two", "one"], [1, 0]),
        (["[1, 2]", "[2, 1]"], ["[2, 1]"], [1]),  # the text of a choice, not a list
        (["1", "2", "3"], ["3", "1"], [2, 0]),  # text and index from 1 agree; 0 to 2 does not fit
        (["1", "2", "3"], [0, 1, 2], [0, 1, 2]),  # 0 is not a text here, nor an index from 1
        (["10", "20", "30"], [20.0], [1]),  # a number names the choice that is this number
        (["1.5", "2.0"], ["2"], [1]),  # 2 is the second choice under both readings
        (["0", "1", "2"], [2, 0], [2, 0]),
        (["A", "B"], ["B", "A"], [1, 0]),  # letter and text agree
        (["no", "yes"], [True, False], [1, 0]),
        (["Yes", "No"], [True, False], [0, 1]),
        (["True", "False"], ["true", "FALSE"], [0, 1]),
        (["no", "yes"], [0, 1], [0, 1]),  # as index from 0 and as truth
    ],
)
def test_the_reading_that_fits_all_answers(
    texts: list[str], values: list[object], expected: list[int]
) -> None:
    assert resolve(texts, values) == expected


def test_labels_of_the_data() -> None:
    assert resolve(ABC, ["Q2", "Q3"], "Q1", "Q2", "Q3") == [1, 2]
    assert resolve(ABC, ["B"], "A", "B", "C") == [1]
    assert resolve(ABC, [3], "1", "2", "3") == [2]  # ARC; index from 1 agrees, from 0 does not fit


DECIDE = "; no other answer in the data decides, so set answer_as to "


@pytest.mark.parametrize(
    ("texts", "values", "labels", "expected"),
    [
        (
            ABC,
            [1, 2],
            (),
            "f:1: found 1, which as index-from-0 means 'y' but as index-from-1 means 'x'"
            f"{DECIDE}index-from-0 or index-from-1",
        ),
        (
            ["1", "2", "3", "4"],
            ["2"],
            (),
            "f:1: found \"2\", which as index-from-0 means '3' but as index-from-1 means '2' but "
            f"as text means '2'{DECIDE}index-from-0 or index-from-1 or text",
        ),
        (
            ["B", "A"],
            ["A"],
            (),
            "f:1: found \"A\", which as letter means 'B' but as text means 'A'"
            f"{DECIDE}letter or text",
        ),
        (
            ABC,
            ["B"],
            ("B", "A", "C"),
            "f:1: found \"B\", which as letter means 'y' but as label means 'x'"
            f"{DECIDE}letter or label",
        ),
        (
            ["yes", "no"],
            [1, 0],
            (),
            "f:1: found 1, which as index-from-0 means 'no' but as boolean means 'yes'"
            f"{DECIDE}index-from-0 or boolean",
        ),
        (
            ABC,
            [0, 1, "B"],
            (),
            'f:3: found "B", which can be read as letter, but f:1 has 0, which can be read as '
            "index-from-0; write all answers in the same way, or give each file its own `path` and "
            "`answer_as`",
        ),
        (
            ABC,
            [1, 0, 3],
            (),
            "f:3: found 3, which can be read as index-from-1, but f:2 has 0, which can be read as "
            "index-from-0; write all answers in the same way, or give each file its own `path` and "
            "`answer_as`",
        ),
        (
            ["bad", "good"],
            [True],
            (),
            "f:1: found true, but the choices 'bad', 'good' are not yes and no, or true and false; "
            "set answer_as to index-from-0 if false stands for 'bad' and true for 'good'",
        ),
    ],
)
def test_two_readings_are_shown_with_the_option_that_decides(
    texts: list[str], values: list[object], labels: Sequence[str], expected: str
) -> None:
    assert complaint(texts, values, *labels) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["A", "C"], "is a list of 2"),
        ([1, 0, 0], "is a list of 3"),
        ([], "is a list of 0"),
        ("A, C", "names 2"),
        ("x;z", "names 2"),
        ("AC", "names 2"),
        ("1|3", "names 2"),
        ("A and B", "names 2"),
    ],
)
def test_several_correct_answers_are_refused_by_name(value: object, expected: str) -> None:
    assert complaint(ABC, [value]).endswith(
        f"which {expected}, but a question must have exactly one correct answer; remove this row"
    )


@pytest.mark.parametrize("value", [None, "", " ", [None], "[]x", 1.5, float("nan"), {"a": 1}, -1])
def test_what_is_no_answer_is_refused(value: object) -> None:
    assert complaint(ABC, [value]).startswith("f:1")


@pytest.mark.parametrize(
    ("reading", "value", "expected"),
    [
        ("index-from-0", "2", 2),
        ("index-from-1", "2", 1),
        ("index-from-0", True, 1),
        ("index-from-0", "False", 0),
        ("text", 2, 0),
        ("label", "2", 1),
        ("letter", "c", 2),
    ],
)
def test_a_stated_reading_decides(reading: Reading, value: Any, expected: int) -> None:
    (answer,) = answers(["2", "3", "1"], [value], "1", "2", "3")
    assert answer.correct([reading]) == expected


def test_a_stated_reading_refuses_all_others() -> None:
    for reading, value in (
        ("index-from-0", "B"),
        ("index-from-1", 0),
        ("index-from-1", True),
        ("letter", 1),
        ("label", "A"),
        ("text", "B"),
        ("boolean", True),
    ):
        (answer,) = answers(["x", "y"], [value])
        with pytest.raises(UserError, match="expected"):
            answer.correct([reading])  # type: ignore[list-item]


CHOICES = st.lists(st.text(ascii_letters + "0123456789", min_size=1, max_size=2), min_size=2)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_answer_is_ever_misread(data: st.DataObject) -> None:
    texts = data.draw(CHOICES.map(lambda texts: list(dict.fromkeys(texts))[:26]))
    right = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
    ways: list[list[object]] = [
        list(right),
        [float(place + 1) for place in right],
        [ascii_letters[26 + place] for place in right],
        [texts[place] for place in right],
    ]
    for written in ways:
        try:
            assert resolve(texts, written) == right
        except UserError as error:
            assert "set answer_as" in str(error) or "more than once" in str(error)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.sampled_from([0, 1, 2, "A", "b", "x", "2"]), min_size=1, max_size=6))
def test_how_the_answers_are_split_changes_nothing(values: list[object]) -> None:
    def outcome(*parts: list[GoldAnswer]) -> object:
        total = Evidence()
        for part in parts:
            evidence = Evidence()
            for answer in part:
                evidence.add(answer)
            total = total.followed_by(evidence)
        try:
            return total.readings()
        except UserError as error:
            return str(error)

    found = answers(ABC, values)
    for cut in range(len(values)):
        assert outcome(found[:cut], found[cut:]) == outcome(found)
