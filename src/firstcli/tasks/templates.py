"""Templates: texts that contain `{column}`, as options and filled from a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated

from pydantic import AfterValidator


def columns_of(template: str) -> list[str]:
    """Return the names in braces, in order.

    Raises:
        ValueError: a single brace, or more than a name in braces.
    """
    names = []
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name.strip() or spec or conversion:
            raise ValueError("expected just a name within { and }; write a literal brace twice")
        names.append(name)
    return names


def fill(template: str, text_of: Callable[[str], str]) -> str:
    """Replace every `{name}` by `text_of(name)`; braces in that text have no meaning."""
    return "".join(
        literal + ("" if name is None else text_of(name))
        for literal, name, _, _ in Formatter().parse(template)
    )


def with_filled(template: str, texts: Mapping[str, str]) -> str:
    """Return the template in which some names are replaced by text for good."""

    def escaped(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    return "".join(
        escaped(literal)
        + ("" if name is None else escaped(texts[name]) if name in texts else f"{{{name}}}")
        for literal, name, _, _ in Formatter().parse(template)
    )


def _checked(template: str) -> str:
    if not columns_of(template):
        raise ValueError("expected at least one {name} in it, or all rows have the same text")
    return template


def of_names(*known: str) -> AfterValidator:
    """Return a validator of templates that may contain only these names."""

    def check(template: str) -> str:
        for name in columns_of(template):
            if name not in known:
                expected = " or ".join(f"{{{allowed}}}" for allowed in known)
                raise ValueError(f"unknown {{{name}}}, expected {expected}")
        return template

    return AfterValidator(check)


Template = Annotated[str, AfterValidator(_checked)]
"""An option that holds a template with at least one name."""
