"""Find, name and load plugins through entry points; the only place that does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import entrypoints

from firstcli.errors import UserError, did_you_mean

Kind = Literal["families", "tasks", "recalibrators"]
KINDS: tuple[Kind, ...] = ("families", "tasks", "recalibrators")
SINGULAR: dict[Kind, str] = {"families": "family", "tasks": "task", "recalibrators": "recalibrator"}


@dataclass(frozen=True, slots=True)
class Plugin:
    """One registered name; `target` is `module:object`."""

    kind: Kind
    name: str
    target: str
    package: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}".strip()


def registered(kind: Kind) -> list[Plugin]:
    """List every registration of a kind, clashes included, without importing any plugin."""
    found = {
        Plugin(
            kind=kind,
            name=entry.name,
            target=f"{entry.module_name}:{entry.object_name}",
            # entrypoints reads the folder's name, in which a hyphen became an underscore.
            package=entry.distro.name.replace("_", "-") if entry.distro else "unknown package",
            version=(entry.distro.version or "") if entry.distro else "",
        )
        for entry in entrypoints.get_group_all(f"firstcli.{kind}")
    }
    return sorted(found, key=lambda plugin: (plugin.name, plugin.package, plugin.target))


def find(kind: Kind, name: str) -> Plugin:
    """Return the one plugin of that name.

    Raises:
        UserError: no package registers the name, or two do.
    """
    plugins = registered(kind)
    matching = [plugin for plugin in plugins if plugin.name == name]
    if not matching:
        names = sorted({plugin.name for plugin in plugins})
        raise UserError(
            f"unknown {SINGULAR[kind]} '{name}'{did_you_mean(name, names)}; "
            f"available: {', '.join(names) or 'none'}"
        )
    if len(matching) > 1:
        culprits = " and ".join(f"{plugin.origin} ({plugin.target})" for plugin in matching)
        raise UserError(
            f"{SINGULAR[kind]} '{name}' is registered by {culprits}; uninstall all but one"
        )
    return matching[0]


def load(kind: Kind, name: str) -> Any:
    """Import the class that a name stands for.

    Raises:
        UserError: unknown or ambiguous name, or the plugin cannot be imported.
    """
    plugin = find(kind, name)
    module, _, attribute = plugin.target.partition(":")
    try:
        return entrypoints.EntryPoint(name, module, attribute).load()
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{SINGULAR[kind]} '{name}' from {plugin.origin} cannot be imported: {reason}"
        ) from error
