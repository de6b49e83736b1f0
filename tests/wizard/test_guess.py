"""Names and values of columns decide on their roles; what stays unclear is asked, not guessed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from firstcli.errors import UserError
from firstcli.wizard.guess import guess
from firstcli.wizard.look import look
from firstcli.wizard.roles import (
    ChoiceQuestions,
    Conversations,
    Guess,
    LabelledTexts,
    Overrides,
    Prompts,
    Responses,
)
from firstcli.wizard.source import source_at

TEXTS = [f"Ticket number {n}: the parcel from {n % 7} has not arrived" for n in range(40)]
CLASSES = ["billing", "shipping", "bug", "login"]
Row = dict[str, Any]


class Asked(Exception):
    """A question to the user."""


def ask(question: str, candidates: Sequence[str], option: str) -> str:
    raise Asked(option, *candidates)


@pytest.fixture
def guessed(tmp_path: Path) -> Callable[..., Guess]:
    def of(rows: Sequence[Row], choose: Any = ask, **overrides: Any) -> Guess:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        source = source_at(path)
        return guess(source, look(source.rows()), Overrides(**overrides), choose)

    return of


def tickets(**columns: Callable[[int], object]) -> list[Row]:
    return [{name: value(n) for name, value in columns.items()} for n in range(40)]


def text(n: int) -> str:
    return TEXTS[n]


def label(n: int) -> str:
    return CLASSES[n * 7 % 4]


@pytest.mark.parametrize(
    ("columns", "texts", "expected"),
    [
        ({"id": str, "text": text, "label": label}, ("text",), "label"),
        ({"Body": text, "Category": label}, ("Body",), "Category"),
        ({"a": text, "b": label}, ("a",), "b"),  # by cardinality alone
        ({"zzz": label, "what": text}, ("what",), "zzz"),
        ({"text": text, "label": lambda n: n % 2}, ("text",), "label"),
        ({"text": text, "label": lambda n: n % 2 == 0}, ("text",), "label"),
        ({"text": text, "label": lambda n: float(n % 2)}, ("text",), "label"),
        ({"premise": text, "hypothesis": text, "y": label}, ("premise", "hypothesis"), "y"),
        ({"subject": text, "body": text, "queue": label}, ("subject", "body"), "queue"),
        ({"text": text, "date": lambda n: f"2024-01-0{n % 3}", "x": label}, ("text",), "x"),
        ({"text": text, "user_id": lambda n: n % 5, "x": label}, ("text",), "x"),
        ({"": str, "text": text, "label": label}, ("text",), "label"),  # an index from pandas
    ],
)
def test_texts_with_labels(
    guessed: Callable[..., Guess],
    columns: dict[str, Callable[[int], object]],
    texts: tuple[str, ...],
    expected: str,
) -> None:
    assert guessed(tickets(**columns)) == LabelledTexts(texts, expected)


def test_label_columns_with_the_same_classes_prefer_words(guessed: Callable[..., Guess]) -> None:
    rows = tickets(text=text, label=lambda n: n * 7 % 4, label_text=label)
    assert guessed(rows) == LabelledTexts(("text",), "label_text")


def test_two_possible_labels_are_asked(guessed: Callable[..., Guess]) -> None:
    rows = tickets(text=text, priority=lambda n: "high" if n % 3 else "low", team=label)
    with pytest.raises(Asked) as asked:
        guessed(rows)
    assert asked.value.args == ("--label", "priority", "team")
    answered = guessed(rows, choose=lambda question, candidates, option: candidates[1])
    assert answered == LabelledTexts(("text",), "team")
    assert guessed(rows, label="priority") == LabelledTexts(("text",), "priority")


def test_two_possible_texts_are_asked(guessed: Callable[..., Guess]) -> None:
    rows = tickets(first=text, second=lambda n: text(n)[::-1], label=label)
    with pytest.raises(Asked) as asked:
        guessed(rows)
    assert asked.value.args == ("--text", "first", "second")
    assert guessed(rows, text=("second", "first")) == LabelledTexts(("second", "first"), "label")


@pytest.mark.parametrize(
    ("columns", "overrides", "message"),
    [
        ({"text": text}, {}, "no column looks like a label"),
        ({"text": text, "label": str}, {}, "no column looks like a label"),
        ({"text": text, "label": str}, {"label": "label"}, "a different value in each of 40 rows"),
        ({"text": text, "label": lambda n: "x"}, {"label": "label"}, "the same value in all rows"),
        ({"text": text, "label": lambda n: ""}, {"label": "label"}, "is empty"),
        ({"text": text, "label": lambda n: [n]}, {"label": "label"}, "contains lists"),
        ({"label": label}, {}, "no column besides 'label' contains text (it is alone)"),
        ({"label": label, "n": lambda n: n / 7}, {}, "its other columns: 'n' (decimal numbers"),
        ({"text": text, "label": label}, {"label": "lable"}, "(did you mean 'label'?)"),
        ({"text": text, "label": label}, {"text": ("txt",)}, "--text txt: "),
        ({"text": text, "label": label}, {"task": "clasification"}, "'classification'?"),
        ({"text": text, "label": label}, {"label": "text", "text": ("text",)}, "also given by"),
        ({"t": lambda n: n / 3, "label": label}, {"text": ("t",)}, "contains decimal numbers"),
        ({"text": text, "label": label}, {"task": "multiple-choice"}, "no column contains the cho"),
        ({"label": label}, {"task": "instruction"}, "a column of prompts and a column of resp"),
    ],
)
def test_refusals(
    guessed: Callable[..., Guess],
    columns: dict[str, Callable[[int], object]],
    overrides: Row,
    message: str,
) -> None:
    with pytest.raises(UserError) as error:
        guessed(tickets(**columns), **overrides)
    assert message in str(error.value)


def test_a_label_with_long_texts_leads_to_instruction(guessed: Callable[..., Guess]) -> None:
    rows = tickets(a=text, b=lambda n: "x" * 300 + str(n))
    with pytest.raises(UserError, match="state --task instruction"):
        guessed(rows, label="b")
    found = guessed(rows, label="b", text=("a",), task="instruction")
    assert found == Responses(("a",), "b")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("instruction", "input", "output"), Responses(("instruction", "input"), "output")),
        (("instruction", "context", "response"), Responses(("instruction", "context"), "response")),
        (("prompt", "completion"), Responses(("prompt",), "completion")),
        (("question", "answer"), Responses(("question",), "answer")),
    ],
)
def test_prompts_and_responses(
    guessed: Callable[..., Guess], columns: tuple[str, ...], expected: Responses
) -> None:
    assert guessed(tickets(**dict.fromkeys(columns, text))) == expected


def test_a_category_beside_instructions_is_no_label(guessed: Callable[..., Guess]) -> None:
    rows = tickets(
        instruction=text, context=lambda n: "x" if n == 3 else "", response=text, category=label
    )
    assert guessed(rows) == Responses(("instruction", "context"), "response")


def test_a_response_that_is_a_label(guessed: Callable[..., Guess]) -> None:
    found = guessed(tickets(instruction=text, output=label))
    assert found == LabelledTexts(("instruction",), "output")


def questions(choices: object = None, answer: object = "B", **further: object) -> list[Row]:
    own = ["red", "blue", "green"] if choices is None else choices
    return [
        {"question": f"Which colour has number {n}?", "choices": own, "answer": answer, **further}
        for n in range(40)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (questions(), ("question", "choices", "answer")),
        (questions(answer="blue"), ("question", "choices", "answer")),
        (questions({"A": "red", "B": "blue"}), ("question", "choices", "answer")),
        (questions({"text": ["x", "y"], "label": ["A", "B"]}), ("question", "choices", "answer")),
        (questions("['red', 'blue']"), ("question", "choices", "answer")),
        (
            [
                {"question": {"stem": f"Q {n}?", "choices": ["x", "y"]}, "answerKey": "A"}
                for n in range(9)
            ],
            ("question.stem", "question.choices", "answerKey"),
        ),
    ],
)
def test_questions_with_choices(
    guessed: Callable[..., Guess], rows: list[Row], expected: tuple[str, str, str]
) -> None:
    assert guessed(rows) == ChoiceQuestions(*expected)


@pytest.mark.parametrize(
    "columns",
    [
        ("A", "B", "C"),
        ("option_a", "option_b", "option_c"),
        ("ending0", "ending1"),
        ("sol1", "sol2"),
    ],
)
def test_one_column_per_choice(guessed: Callable[..., Guess], columns: tuple[str, ...]) -> None:
    rows = [
        {"question": f"Which {n}?", **{c: f"{c} {n}" for c in columns}, "label": columns[n % 2]}
        for n in range(9)
    ]
    assert guessed(rows) == ChoiceQuestions("question", columns, "label")


def test_context_and_group_of_questions(guessed: Callable[..., Guess]) -> None:
    rows = [
        {**row, "passage": f"A passage about {n}", "subject": CLASSES[n % 2]}
        for n, row in enumerate(questions())
    ]
    assert guessed(rows) == ChoiceQuestions(
        "question", "choices", "answer", context="passage", group="subject"
    )


def test_answers_that_can_be_read_in_two_ways_are_asked(guessed: Callable[..., Guess]) -> None:
    rows = questions(answer=1)
    with pytest.raises(Asked) as asked:
        guessed(rows)
    assert asked.value.args == ("--answer-as", "index-from-0", "index-from-1")
    stated = guessed(rows, answer_as="index-from-0")
    assert stated == ChoiceQuestions("question", "choices", "answer", "index-from-0")
    with pytest.raises(UserError, match="did you mean 'index-from-"):
        guessed(rows, answer_as="index-from-2")
    found = guessed(rows, choose=lambda question, candidates, option: "index-from-1")
    assert found == ChoiceQuestions("question", "choices", "answer", "index-from-1")


def test_truth_values_are_read_as_indices_of_other_choices(guessed: Callable[..., Guess]) -> None:
    found = guessed(questions(["left", "right"], answer=True))
    assert found == ChoiceQuestions("question", "choices", "answer", "index-from-0")


def test_choices_without_an_answer_are_refused(guessed: Callable[..., Guess]) -> None:
    with pytest.raises(UserError, match="no column names one of the choices in 'choices'"):
        guessed(questions(answer="purple"))
    with pytest.raises(UserError, match="column 'question' does not name"):
        guessed(questions(), task="multiple-choice", label="question")


def test_tags_are_no_choices(guessed: Callable[..., Guess]) -> None:
    rows = tickets(text=text, tags=lambda n: ["a", "b"], label=label)
    assert guessed(rows) == LabelledTexts(("text",), "label")


def test_two_sentences_are_no_choices(guessed: Callable[..., Guess]) -> None:
    rows = tickets(sentence1=text, sentence2=text, label=lambda n: n % 2)
    assert guessed(rows) == LabelledTexts(("sentence1", "sentence2"), "label")


@pytest.mark.parametrize(
    "message", [{"role": "user", "content": "Hi"}, {"from": "human", "value": "Hi"}]
)
def test_conversations_are_instructions(guessed: Callable[..., Guess], message: Row) -> None:
    rows = [{"id": n, "source": "web", "messages": [message, message]} for n in range(5)]
    found = Conversations(("messages",), "messages")
    assert guessed(rows) == guessed(rows, task="instruction") == found
    rows = [row | {"prompt": text(n), "response": text(n + 1)} for n, row in enumerate(rows)]
    assert guessed(rows) == found
    stated = guessed(rows, task="instruction", text=("prompt",), label="response")
    assert stated == Responses(("prompt",), "response")


def test_a_missing_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((text(n), label(n)) for n in range(40))
    source = source_at(path)
    table = look(source.rows())
    with pytest.raises(UserError, match="the first line should name the columns, but 'billing'"):
        guess(source, table, Overrides(), ask)
    stated = Overrides((text(0),), label(0))
    assert guess(source, table, stated, ask) == LabelledTexts((text(0),), label(0))


@pytest.mark.parametrize(
    ("columns", "overrides", "expected"),
    [
        (("prompt",), {}, Prompts(("prompt",), "")),
        (("words",), {"task": "instruction"}, Prompts(("words",), "")),
        (("id", "question"), {}, Prompts(("question",), "")),
        (("prompt", "response"), {}, Prompts(("prompt",), "response")),  # an empty column
    ],
)
def test_prompts_without_responses_are_left_to_the_teacher(
    guessed: Callable[..., Guess], columns: tuple[str, ...], overrides: Row, expected: Prompts
) -> None:
    def cell(name: str, n: int) -> object:
        return {"id": n, "response": ""}.get(name, f"Write about the thing number {n}")

    rows = [{name: cell(name, n) for name in columns} for n in range(40)]
    assert guessed(rows, **overrides) == expected
