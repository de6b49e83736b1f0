"""The plugin registry: find plugins through entry points, load them by name, identify them.

Installed distributions are scanned once per process and search path.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import entrypoints

from firstcli.errors import UserError, did_you_mean

Kind = Literal["families", "tasks", "recalibrators"]
KINDS: tuple[Kind, ...] = get_args(Kind)
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
    return [plugin for plugin in _scan(tuple(sys.path)) if plugin.kind == kind]


@cache
def _scan(search_path: tuple[str, ...]) -> list[Plugin]:
    plugins = []
    for config, distribution in entrypoints.iter_files_distros(search_path):
        # The name comes from the metadata folder, in which hyphens have become underscores.
        package, version = distribution.name.replace("_", "-"), distribution.version or ""
        for kind in KINDS:
            group = f"firstcli.{kind}"
            for name, text in config[group].items() if group in config else ():
                with entrypoints.BadEntryPoint.err_to_warnings():
                    entry = entrypoints.EntryPoint.from_string(text, name)
                    target = f"{entry.module_name}:{entry.object_name}"
                    plugins.append(Plugin(kind, name, target, package, version))
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package, plugin.target))


def find(kind: Kind, name: str) -> Plugin:
    """Return the one plugin of that name.

    Raises:
        UserError: no package registers the name, or several do.
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
        UserError: the name is unknown or ambiguous, or the plugin cannot be imported.
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


def identity(kind: Kind, name: str) -> str:
    """Return what identifies a plugin's behaviour in a fingerprint: distribution and `format`.

    The version counts for third-party plugins only: firstcli raises `format` when the results of
    a built-in plugin change, so that a new release does not retrain everything.

    Raises:
        UserError: as `load`.
    """
    plugin = find(kind, name)
    distribution = "firstcli" if plugin.package == "firstcli" else plugin.origin
    return f"{distribution}, format {getattr(load(kind, name), 'format', 1)}"
