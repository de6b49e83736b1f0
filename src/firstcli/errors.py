"""The one exception for mistakes that users can fix; anything else is a bug with a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """One or more mistakes that the user can fix; each message is a complete sentence.

    The command line prints every message as `error: ...` and exits with code 2.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages: tuple[str, ...] = messages


class Message(str):
    """A message about one place, whose cause may show in other places too."""

    cause: str
    where: str

    def __new__(cls, text: str, cause: str, where: str) -> Message:
        self = super().__new__(cls, text)
        self.cause, self.where = cause, where
        return self


def one_per_cause(messages: Iterable[str]) -> list[str]:
    """Return every message once; the first one of a cause names the other places."""
    places: dict[str, list[str]] = {}
    kept: list[str] = []
    for message in dict.fromkeys(messages):
        if isinstance(message, Message):
            known = places.setdefault(message.cause, [])
            known.append(message.where)
            if len(known) > 1:
                continue
        kept.append(message)

    def with_places(message: str) -> str:
        others = places[message.cause][1:] if isinstance(message, Message) else []
        return f"{message}; the same in {', '.join(others)}" if others else message

    return list(map(with_places, kept))


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = get_close_matches(str(given), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def check_choice(option: str, value: str | None, allowed: Sequence[str]) -> None:
    """Raise UserError if an option is given and has none of the allowed values."""
    if value is not None and value not in allowed:
        hint = did_you_mean(value, allowed)
        raise UserError(f"--{option} must be {' or '.join(allowed)}, not '{value}'{hint}")


def shortened(names: Sequence[str], limit: int = 5, count: int | None = None) -> str:
    """Return the first names in quotes, and how many more there are.

    `count` is the total number, in case `names` holds only the first of them.
    """
    count = len(names) if count is None else count
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if count <= limit else f"{shown} and {count - limit} more"
