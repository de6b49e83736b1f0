"""`first init`: print a starter recipe, the list of starters, or the JSON Schema of recipes."""

from __future__ import annotations

import json

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
    width = max(len(each.name) for each in starters())
    lines = "\n".join(f"  {each.name:<{width}}  {each.description}" for each in starters())
    return f"Starters, for example `first init quickstart > recipe.yaml`:\n\n{lines}\n"
