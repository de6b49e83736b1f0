"""The plugin registry: find plugins through entry points, load them by name, identify them.

Installed distributions are scanned once per process and search path.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, get_args

import entrypoints

from firstcli import api
from firstcli.errors import UserError, did_you_mean
from firstcli.plugins.source_code import digest_of, files_of

Kind = Literal[
    "families", "tasks", "recalibrators", "augmenters", "selectors", "annotators", "objectives"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
SINGULAR: dict[Kind, str] = {
    "families": "family",
    "tasks": "task",
    "recalibrators": "recalibrator",
    "augmenters": "augmenter",
    "annotators": "annotator",
    "objectives": "objective",
    "selectors": "selector",
}
GROUPS = tuple(f"firstcli.{kind}" for kind in KINDS)
BASES: dict[Kind, type] = {
    "families": api.ModelFamily,
    "tasks": api.Task,
    "recalibrators": api.Recalibrator,
    "augmenters": api.Augmenter,
    "annotators": api.Annotator,
    "objectives": api.Objective,
    "selectors": api.Selector,
}


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

    @property
    def title(self) -> str:
        """Kind, name and origin, with which messages begin."""
        return f"{SINGULAR[self.kind]} '{self.name}' from {self.origin}"

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def is_built_in(self) -> bool:
        return self.package == "firstcli"


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A name in an entry-point group that firstcli does not read, probably for a typing error."""

    group: str
    name: str
    origin: str
    """Distribution and version."""

    def __str__(self) -> str:
        meant = did_you_mean(self.group.lower(), GROUPS)
        return (
            f"{self.origin} registers '{self.name}' in the entry-point group '{self.group}', which "
            f"firstcli does not read{meant}; the groups are {', '.join(GROUPS)}: correct the "
            "package's metadata and install it again"
        )


def registered(kind: Kind) -> list[Plugin]:
    """List every registration of a kind, clashes included, without importing any plugin."""
    return [plugin for plugin in _scan(tuple(sys.path))[0] if plugin.kind == kind]


def misplaced() -> list[Misplaced]:
    """List the names in groups that look like one of firstcli's but are none."""
    return _scan(tuple(sys.path))[1]


@cache
def _scan(search_path: tuple[str, ...]) -> tuple[list[Plugin], list[Misplaced]]:
    plugins, misplaced = [], []
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
        origin = f"{package} {version}".strip()
        for group in filter(_looks_like_ours, config.sections()):
            misplaced += [Misplaced(group, name, origin) for name in config[group]]
    plugins.sort(key=lambda plugin: (plugin.name, plugin.package, plugin.target))
    return plugins, sorted(misplaced, key=lambda each: (each.name, each.origin))


def _looks_like_ours(group: str) -> bool:
    folded = group.lower().replace("-", ".").replace("_", ".")
    near = folded.startswith("firstcli.") or bool(get_close_matches(folded, GROUPS, cutoff=0.85))
    return near and group not in GROUPS


def find(kind: Kind, name: str) -> Plugin:
    """Return the one plugin of that name.

    Raises:
        UserError: no package registers the name, or several do.
    """
    plugins = registered(kind)
    matching = [plugin for plugin in plugins if plugin.name == name]
    if not matching:
        elsewhere = [str(each) for each in misplaced() if each.name == name]
        names = sorted({plugin.name for plugin in plugins})
        raise UserError(
            f"unknown {SINGULAR[kind]} '{name}'{did_you_mean(name, names)}; "
            f"available: {', '.join(names) or 'none'}" + "".join(f"; {text}" for text in elsewhere)
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
        UserError: the name is unknown or ambiguous, or the plugin cannot be imported or is no
            class of its kind.
    """
    plugin = find(kind, name)
    module, _, attribute = plugin.target.partition(":")
    try:
        target = entrypoints.EntryPoint(name, module, attribute).load()
    except (Exception, SystemExit) as error:
        raise UserError(f"{plugin.title} cannot be imported: {reason(plugin, error)}") from error
    base = BASES[kind]
    if not (isinstance(target, type) and issubclass(target, base)):
        found = f"the class {target.__name__}" if isinstance(target, type) else _article(target)
        raise UserError(
            f"{plugin.title}: {plugin.target} is {found}, expected a subclass of "
            f"firstcli.api.{base.__name__}"
        )
    return target


def _article(target: object) -> str:
    name = type(target).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def reason(plugin: Plugin, error: BaseException) -> str:
    """Describe an exception in one line, with the innermost line of the plugin's own code."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    own = {path.resolve() for path in files_of(plugin.package, plugin.module).values()}
    every = extract_tb(error.__traceback__)
    frames = [frame for frame in every if Path(frame.filename).resolve() in own]
    if not frames:
        return text
    innermost = frames[-1]
    return f"{text} ({Path(innermost.filename).name}:{innermost.lineno}: `{innermost.line}`)"


def identity(kind: Kind, name: str) -> str:
    """Return what identifies a plugin's behaviour in a fingerprint: distribution and `format`.

    The version counts for third-party plugins only: firstcli raises `format` when the results of
    a built-in plugin change, so that a new release does not retrain everything.

    Raises:
        UserError: as `load`.
    """
    plugin = find(kind, name)
    distribution = "firstcli" if plugin.is_built_in else plugin.origin
    return f"{distribution}, format {getattr(load(kind, name), 'format', 1)}"


def source(kind: Kind, name: str) -> str:
    """Return a digest of a third-party plugin's code; empty for built-in plugins.

    Raises:
        UserError: as `find`.
    """
    plugin = find(kind, name)
    return "" if plugin.is_built_in else digest_of(plugin.package, plugin.module)
