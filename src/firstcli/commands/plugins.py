"""`first plugins`: every registered name, where it comes from and what is wrong with it."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from firstcli import plugins
from firstcli.errors import UserError
from firstcli.runtime.console import Console

_BROKEN = "broken: "


def show(*, check: bool, json: bool) -> dict[str, Any]:
    """Print and return every plugin; with `check`, import each one and report its error."""
    console = Console(json=json)
    found = [_row(plugin, check) for kind in plugins.KINDS for plugin in plugins.registered(kind)]
    table = Table()
    for heading in ("kind", "name", "package", "version", "state"):
        table.add_column(heading, overflow="fold")
    for row in found:
        table.add_row(*row.values())
    console.show(table)
    return {"plugins": found}


def broken(result: dict[str, Any]) -> list[str]:
    """Return what is wrong with the plugins that `show` found broken, a sentence each."""
    states = [row["state"] for row in result["plugins"]]
    return list(dict.fromkeys(s.removeprefix(_BROKEN) for s in states if s.startswith(_BROKEN)))


def _row(plugin: plugins.Plugin, check: bool) -> dict[str, str]:
    return {
        "kind": plugins.SINGULAR[plugin.kind],
        "name": plugin.name,
        "package": plugin.package,
        "version": plugin.version,
        "state": _state(plugin, check),
    }


def _state(plugin: plugins.Plugin, check: bool) -> str:
    try:
        plugins.find(plugin.kind, plugin.name)
        if check:
            plugins.load(plugin.kind, plugin.name)
    except UserError as error:
        return f"{_BROKEN}{error}"
    return "works" if check else "registered"
