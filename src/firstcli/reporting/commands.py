"""The command lines that a report offers: try a student, and fold a temperature into one."""

from __future__ import annotations

from collections.abc import Sequence


def commands(location: str, ship: str, post_hoc: Sequence[str]) -> list[str]:
    """Return the commands that try the chosen student and export the students with `+ T`.

    Args:
        location: the run folder.
        ship: the row to ship.
        post_hoc: the students' rows with a post-hoc temperature.
    """
    run = _quoted(location)
    exported = sorted(post_hoc, key=lambda row: row != ship)  # the shipped row first
    return [
        f'first predict {run} --arm {_quoted(ship)} "..."',
        *(f"first export {run} --arm {_quoted(row)} DIR" for row in exported),
    ]


def _quoted(text: str) -> str:
    """Quote a word for the shells of Unix and Windows; names of arms need nothing but spaces."""
    return f'"{text}"' if " " in text else text
