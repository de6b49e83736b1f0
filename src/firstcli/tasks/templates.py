"""Templates: texts that contain `{column}`, as options and filled from a row."""

from __future__ import annotations

import re
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


def misfit(template: str, own: str) -> str:
    """Say why another wording does not suit a task; empty if it does.

    The same responses follow both, so they must end alike: in the same brackets and quotation
    marks, and both or neither in white space. Punctuation may differ.

    Args:
        template: the other wording.
        own: the task's template; empty if it has none, and `{prompt}` stands for a whole prompt.
    """
    names = columns_of(template)
    known = [name for name in columns_of(own) if name] or ["prompt"]
    expected = ", ".join(f"{{{name}}}" for name in known)
    if unknown := [name for name in names if name not in known]:
        return f"unknown {{{unknown[0]}}}; the task's template has {expected}"
    if lost := [name for name in known if name not in names]:
        return f"it lacks {{{lost[0]}}}; the task's template has {expected}"
    if not own:
        return ""
    ending, expected = _ending(template), _ending(own)
    if ending != expected and not (ending + expected).strip():
        text = "white space" if ending else "no white space"
        return f"it ends with {text}, unlike the task's template {own!r}; let it end alike"
    if ending != expected:
        return (
            f"after its last word comes {ending!r}, and in the task's template {own!r}, "
            f"{expected!r}; let it end alike, because the same responses follow it"
        )
    return ""


def _ending(template: str) -> str:
    """Return what follows a template's last word or name, without punctuation, spaces as one."""
    *_, (literal, name, _, _) = Formatter().parse(template)
    text = literal if name is None else ""
    end = text[len(re.sub(r"\W*$", "", text)) :]
    return re.sub(r"\s+", " ", re.sub(r"[:.,;?!]", "", end))


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
