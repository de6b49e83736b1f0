"""What the shell offers for `<TAB>`: starters, arms and plugins. It imports what it needs late.

A completion never fails: where something cannot be read, it offers nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def _without_errors() -> Iterator[None]:
    """Ignore every error, because a traceback would end up in the user's command line."""
    try:
        yield
    except Exception:
        return


def starters(incomplete: str) -> list[tuple[str, str]]:
    """Return the starters that begin like this, with their descriptions."""
    offered: list[tuple[str, str]] = []
    with _without_errors():
        from firstcli.recipe.starters import starters

        offered = [(each.name, each.description) for each in starters()]
    return [(name, about) for name, about in offered if name.startswith(incomplete)]


def arms(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the arms of the recipe on the command line that begin like this."""
    offered: list[str] = []
    with _without_errors():
        from firstcli.recipe.load import arm_names

        recipe, overrides = ctx.params.get("recipe"), ctx.params.get("overrides")
        given = set(ctx.params.get("arms") or ())
        if recipe:
            offered = [arm for arm in arm_names(Path(recipe), overrides or ()) if arm not in given]
    return [arm for arm in offered if arm.startswith(incomplete)]


def plugins(incomplete: str) -> list[tuple[str, str]]:
    """Return the plugins of every kind that begin like this, with kind and package."""
    offered: list[tuple[str, str]] = []
    with _without_errors():
        from firstcli.plugins import KINDS, SINGULAR, registered

        offered = [
            (plugin.name, f"{SINGULAR[kind]} of {plugin.package}")
            for kind in KINDS
            for plugin in registered(kind)
        ]
    return [(name, about) for name, about in offered if name.startswith(incomplete)]
