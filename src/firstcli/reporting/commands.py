"""The command lines that a report offers: try a student, and fold a temperature into one."""

from __future__ import annotations

from collections.abc import Sequence


def commands(location: str, ship: str, post_hoc: Sequence[str]) -> list[str]:
    """Return the commands that try the chosen student and export the students with `+ T`.

    Args:
        location: the run folder.
        ship: the model to ship, as `--arm` names it.
        post_hoc: the students with a post-hoc temperature.
    """
    run = _quoted(location)
    exported = sorted(post_hoc, key=lambda model: model != ship)  # the shipped one first
    return [
        f'first predict {run} --arm {_quoted(ship)} "..."',
        *(f"first export {run} --arm {_quoted(model)} DIR" for model in exported),
    ]


def _quoted(text: str) -> str:
    """Quote a word for the shells of Unix and Windows; names of arms need nothing but spaces."""
    return f'"{text}"' if " " in text else text
