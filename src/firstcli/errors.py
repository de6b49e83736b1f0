"""The one exception for what a user can mend; everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """One or more mistakes that the user can mend; each message is a sentence of its own.

    The command line prints every message as `error: ...` and exits with code 2.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages: tuple[str, ...] = messages


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = get_close_matches(str(found), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def shortened(names: Sequence[str], limit: int = 5, count: int | None = None) -> str:
    """Return the first few names, quoted, and how many more there are.

    `count` says how many there are in all, where `names` holds the first ones only.
    """
    count = len(names) if count is None else count
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if count <= limit else f"{shown} and {count - limit} more"
