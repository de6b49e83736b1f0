"""What the checks of all three kinds of plugins share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firstcli.api import JSON, PluginBase, PluginOptions

GivenOptions = PluginOptions | Mapping[str, JSON] | None


def require(condition: object, sentence: str) -> None:
    """Raise AssertionError unless the condition holds; `python -O` would drop an `assert`."""
    if not condition:
        raise AssertionError(sentence)


def options_of(cls: type[PluginBase[Any]], options: GivenOptions) -> PluginOptions:
    """Return validated options, as from a recipe."""
    return cls.Options.model_validate(dict(options or {}))
