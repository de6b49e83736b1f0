"""Texts with `{column}` in them, as an option and filled from a row."""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator


def columns_of(template: str) -> list[str]:
    """Return the names in braces, in order.

    Raises:
        ValueError: a single brace, or braces that hold more than a name.
    """
    names = []
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.strip() or spec or conversion:
            raise ValueError("expected just a name within { and }; write a plain brace twice")
        names.append(name)
    return names


def fill(template: str, text_of: Callable[[str], str]) -> str:
    """Replace every `{name}` by `text_of(name)`; braces in that text mean nothing."""
    return "".join(
        literal + ("" if name is None else text_of(name))
        for literal, name, _, _ in Formatter().parse(template)
    )


def _checked(template: str) -> str:
    if not columns_of(template):
        raise ValueError("expected at least one {name} in it, or every row gives the same text")
    return template


def of_names(*known: str) -> AfterValidator:
    """Return a validator: a template in which no other names than these occur."""

    def check(template: str) -> str:
        for name in columns_of(template):
            if name not in known:
                raise ValueError(f"unknown {{{name}}}, expected {' or '.join(map(_braced, known))}")
        return template

    return AfterValidator(check)


def _braced(name: str) -> str:
    return f"{{{name}}}"


Template = Annotated[str, AfterValidator(_checked)]
"""An option that holds a template with at least one name."""
