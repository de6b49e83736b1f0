"""Conversations in the columns of a table: messages with a role, or turns in ShareGPT's style.

{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from firstcli.api import ChatMessage, ChatRole, Sample
from firstcli.errors import did_you_mean
from firstcli.tasks.tables import TableRow, describe

COLUMNS = ("messages", "conversations")
"""Names of columns that hold conversations, as most data sets call them."""
Supervise = Literal["all", "last"]

_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message's author and text."""
_ROLES: dict[str, ChatRole] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def column_of(row: TableRow) -> str | None:
    """Return the column of a row that holds a conversation, or None."""
    return next((name for name in COLUMNS if is_conversation(row.values.get(name))), None)


def is_conversation(value: object) -> bool:
    """Return whether a value is a list of messages, correct or not."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) for turn in value)
        and any(author in value[0] for author, _ in _KEYS)
    )


def sample_of(row: TableRow, column: str, supervise: Supervise, id: str | None) -> Sample | str:
    """Return a row's conversation, or why it is left out.

    Turns of the assistant before the first of the user answer nothing, so they are only read. An
    empty system message is none.

    Args:
        row: the row.
        column: its column with the messages.
        supervise: whether all of the assistant's turns are learned, or the last.
        id: the row's id.

    Raises:
        UserError: the value is no list of messages, or a role is unknown.
    """
    messages = [one for one in _messages(row, column) if one.role != "system" or one.content]
    if any(not message.content for message in messages if message.role == "assistant"):
        return "empty turn of the assistant"
    if any(not message.content for message in messages):
        return "empty turn of the user"
    asked = next((i for i, one in enumerate(messages) if one.role == "user"), len(messages))
    turns = [i for i, one in enumerate(messages) if one.role == "assistant" and i > asked]
    if not turns:
        return "no turn of the assistant"
    return Sample.conversation(messages, turns if supervise == "all" else turns[-1:], id=id)


def _messages(row: TableRow, column: str) -> list[ChatMessage]:
    value = row.value(column)
    if not isinstance(value, list):
        raise row.mistake(
            f"column '{column}': found {describe(value)}, expected a list of messages with "
            "`role` and `content`"
        )
    return [_message(row, f"{column}[{number}]", turn) for number, turn in enumerate(value)]


def _message(row: TableRow, place: str, turn: object) -> ChatMessage:
    keys = next((k for k in _KEYS if isinstance(turn, dict) and {*k} <= turn.keys()), None)
    if keys is None or not isinstance(turn, dict):
        raise row.mistake(
            f"{place}: found {describe(turn)}, expected an object with `role` and `content`, or "
            "with `from` and `value`"
        )
    author, text = keys
    name = turn[author]
    role = _ROLES.get(name.strip().casefold()) if isinstance(name, str) else None
    if role is None:
        raise row.mistake(
            f"{place}.{author}: found {describe(name)}{did_you_mean(str(name), _ROLES)}, expected "
            f"{_listed([*_ROLES])}"
        )
    content = turn[text]
    if not isinstance(content, str):
        raise row.mistake(f"{place}.{text}: found {describe(content)}, expected text")
    content = row.as_text(content, f"{place}.{text}")
    return ChatMessage(role, content if content.strip() else "")


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
