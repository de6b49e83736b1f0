"""`first init`: print a starter recipe, the list of starters, or the JSON Schema of recipes."""

from __future__ import annotations

import json
from itertools import groupby

from firstcli.recipe.starters import starter, starters


def text(name: str | None, *, schema: bool) -> str:
    """Return what `first init` prints: the starter `name`, or the list of all starters.

    Raises:
        UserError: no starter has that name.
    """
    if schema:
        from firstcli.recipe import load  # here, because the starters need no pydantic

        return json.dumps(load.schema(), indent=2) + "\n"
    if name is not None:
        return starter(name).text
    return f"Starters, for example `first init classification > recipe.yaml`:\n{_listed()}"


def _listed() -> str:
    """Return the starters with their descriptions, under headings."""
    width = max(len(each.name) for each in starters())
    lines: list[str] = []
    for heading, group in groupby(starters(), lambda each: each.heading):
        lines += ["", f"{heading}:"]
        lines += [f"  {each.name:<{width}}  {each.description}" for each in group]
    return "\n".join(lines) + "\n"
