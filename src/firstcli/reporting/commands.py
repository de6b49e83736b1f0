"""The command lines that a report offers: try the chosen student, and export students."""

from __future__ import annotations

from collections.abc import Sequence


def commands(location: str, ship: str, post_hoc: Sequence[str]) -> list[str]:
    """Return the commands that try and export the chosen student, and export those with `+ T`.

    Args:
        location: the run folder.
        ship: the model to ship, as `--arm` names it.
        post_hoc: the students with a post-hoc temperature.
    """
    run = _quoted(location)
    exported = [ship, *(model for model in post_hoc if model != ship)]
    return [
        f'first predict {run} --arm {_quoted(ship)} "..."',
        *(f"first export {run} --arm {_quoted(model)} DIR" for model in exported),
    ]


def _quoted(text: str) -> str:
    """Quote a word for the shells of Unix and Windows; names of arms need nothing but spaces."""
    return f'"{text}"' if " " in text else text
