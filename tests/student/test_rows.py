"""How standard input is read."""

from __future__ import annotations

import pytest

from firstcli.api import InputField, Label, TaskUsage
from firstcli.errors import UserError
from firstcli.student.rows import rows_of_lines

USAGE = TaskUsage(
    kind="classification",
    prompt="{message}\nLabel:",
    inputs={"message": InputField(columns=("message",))},
    labels=(Label(name="a", response=" a"), Label(name="b", response=" b")),
)


def test_the_first_line_decides() -> None:
    assert [row.values for row in rows_of_lines(USAGE, ["hello\n", "{}\n"])] == [
        {"message": "hello"},
        {"message": "{}"},
    ]
    assert [row.values for row in rows_of_lines(USAGE, ['{"message": "x", "id": 1}\n'])] == [
        {"message": "x", "id": 1}
    ]
    assert [row.values for row in rows_of_lines(USAGE, ["id,message\n", "1,x\n"])] == [
        {"id": "1", "message": "x"}
    ]


def test_a_json_object_without_the_column_is_not_guessed_to_be_a_text() -> None:
    line = '{"text": "hello"}\n'
    with pytest.raises(UserError, match=r"line 1: a JSON object without 'message'.*--format text"):
        list(rows_of_lines(USAGE, [line]))
    (row,) = rows_of_lines(USAGE, [line], "text")
    assert row.values == {"message": '{"text": "hello"}'}
