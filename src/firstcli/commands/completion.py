"""What the shell offers for `<TAB>`: starters, arms and plugins. It imports what it needs late.

A completion never fails: where something cannot be read, it offers nothing.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path


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


def arms(incomplete: str) -> list[str]:
    """Return the arms of the recipe on the command line that begin like this."""
    offered: list[str] = []
    with _without_errors():
        from firstcli.recipe.load import arm_names

        words = _command_line()
        recipe = next(path for path in map(Path, words[2:]) if path.is_file())
        offered = arm_names(recipe, _values_of("--set", words))
        offered = [arm for arm in offered if arm not in _values_of("--arm", words[:-1])]
    return [arm for arm in offered if arm.startswith(incomplete)]


def _command_line() -> list[str]:
    """Return the words that are typed so far, from the variables that typer's scripts set.

    typer's context is of no use here: an option without its value ends the parsing.
    """
    text = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return shlex.split(text)


def _values_of(option: str, words: Sequence[str]) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


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
