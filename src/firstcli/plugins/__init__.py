"""Plugins: `registry` finds and identifies them, `calls` uses them and checks what they return."""

from firstcli.plugins.registry import (
    KINDS,
    SINGULAR,
    Kind,
    Plugin,
    find,
    identity,
    load,
    misplaced,
    registered,
    source,
)

__all__ = [
    "KINDS",
    "SINGULAR",
    "Kind",
    "Plugin",
    "find",
    "identity",
    "load",
    "misplaced",
    "registered",
    "source",
]
