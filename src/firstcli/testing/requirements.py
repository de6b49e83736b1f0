"""What the checks of all three kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from firstcli.api import JSON, PluginOptions

GivenOptions = PluginOptions | Mapping[str, JSON] | None


class PluginClass(Protocol):
    """Any of the three plugin classes."""

    Options: type[PluginOptions]


def require(condition: object, sentence: str) -> None:
    """Raise AssertionError unless the condition holds; `assert` would vanish under `python -O`."""
    if not condition:
        raise AssertionError(sentence)


def options_of(cls: PluginClass, options: GivenOptions) -> PluginOptions:
    """Return validated options, as they come from a recipe."""
    if isinstance(options, PluginOptions):
        return options
    return cls.Options.model_validate(dict(options or {}))
