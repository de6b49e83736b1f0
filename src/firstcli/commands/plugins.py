"""`first plugins`: every registered plugin, the package that provides it, and its state."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from firstcli import plugins
from firstcli.errors import UserError
from firstcli.runtime.console import Console

_BROKEN = "broken: "


def show(*, check: bool, json: bool) -> dict[str, Any]:
    """Print and return every plugin; `check` imports each one and reports errors."""
    rows = [
        {
            "kind": plugins.SINGULAR[kind],
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "state": _state(plugin, check),
        }
        for kind in plugins.KINDS
        for plugin in plugins.registered(kind)
    ]
    headings = ("kind", "name", "package", "version", "state")
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*row.values())
    Console(json=json).show(table)
    return {"plugins": rows}


def broken(result: dict[str, Any]) -> list[str]:
    """Return the distinct error messages in the result of `show`."""
    states = [row["state"] for row in result["plugins"]]
    return list(dict.fromkeys(s.removeprefix(_BROKEN) for s in states if s.startswith(_BROKEN)))


def _state(plugin: plugins.Plugin, check: bool) -> str:
    try:
        plugins.find(plugin.kind, plugin.name)
        if check:
            plugins.load(plugin.kind, plugin.name)
    except UserError as error:
        return f"{_BROKEN}{error}"
    return "works" if check else "registered"
