"""`first plugins`: every registered plugin, the package that provides it, and its state.

`first plugins NAME` says what a plugin is and which options it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from json import loads as parsed
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from firstcli import plugins
from firstcli.errors import UserError, did_you_mean
from firstcli.runtime.console import Console

if TYPE_CHECKING:
    from firstcli.recipe.describe import KeyDescription

_BROKEN = "broken: "


def show(*, check: bool, json: bool) -> dict[str, Any]:
    """Print and return every plugin.

    `check` imports each one and runs the conformance checks of `firstcli.testing` on those of
    other packages; firstcli's own tests run them on the built-in plugins.
    """
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
    for each in plugins.misplaced():
        package, _, version = each.origin.partition(" ")
        state = f"{_BROKEN}{each}"
        row = {"kind": "?", "name": each.name, "package": package, "version": version}
        rows.append({**row, "state": state})
    headings = ("kind", "name", "package", "version", "state")
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*row.values())
    Console(json=json).show(table)
    return {"plugins": rows}


def describe(name: str, *, json: bool) -> dict[str, Any]:
    """Print and return what the plugins of a name are: one, or one of each kind.

    Raises:
        UserError: no plugin has the name, or one cannot be imported.
    """
    from firstcli.recipe.describe import plugin_named

    every = [plugin for kind in plugins.KINDS for plugin in plugins.registered(kind)]
    matching = {plugin.kind: plugin for plugin in every if plugin.name == name}
    if not matching:
        names = sorted({plugin.name for plugin in every})
        raise UserError(
            f"unknown plugin '{name}'{did_you_mean(name, names)}; available: {', '.join(names)}"
        )
    found = [plugin_named(plugin) for plugin in matching.values()]
    console = Console(json=json)
    for number, each in enumerate(found):
        console.say(
            f"{chr(10) if number else ''}{each.kind} `{each.name}`, from {each.package} "
            f"{each.version}\n\n{each.description}\n"
        )
        if each.options:
            table = Table(
                Column("option", no_wrap=True),
                Column("takes", ratio=2),
                Column("default", ratio=2, overflow="fold"),
                Column("meaning", ratio=5),
            )
            for key in each.options:
                default = "required" if key.default is None else key.default
                table.add_row(*map(Text, (key.name, key.takes, default, key.description)))
            console.show(table)
        else:
            console.say("It has no options.")
        console.say(f"\nIn a recipe:\n\n{indent(each.example, '  ')}")
    return {"plugins": [asdict(each) | {"options": _options(each.options)} for each in found]}


def _options(keys: Sequence[KeyDescription]) -> list[dict[str, Any]]:
    """Return options as JSON."""
    return [
        {
            "name": key.name,
            "type": key.takes,
            "required": key.default is None,
            "default": parsed(key.default) if key.default else None,
            "description": key.description,
        }
        for key in keys
    ]


def broken(result: dict[str, Any]) -> list[str]:
    """Return the distinct error messages in the result of `show`."""
    states = [row["state"] for row in result["plugins"]]
    return list(dict.fromkeys(s.removeprefix(_BROKEN) for s in states if s.startswith(_BROKEN)))


def _state(plugin: plugins.Plugin, check: bool) -> str:
    try:
        plugins.find(plugin.kind, plugin.name)
        if not check:
            return "registered"
        plugins.load(plugin.kind, plugin.name)
        return "works" if plugin.is_built_in else _conformance(plugin)
    except UserError as error:
        return f"{_BROKEN}{error}"


def _conformance(plugin: plugins.Plugin) -> str:
    """Run the conformance checks with the default options; return the state.

    Raises:
        UserError: the plugin breaks the contract.
    """
    from pydantic import ValidationError

    from firstcli.plugins import calls

    try:
        options = calls.validated(plugin, {})
    except ValidationError:
        return "imports (some options are required, so the conformance checks did not run)"
    try:
        with calls.explained(plugin, "the conformance checks", passing=AssertionError):
            return _checked(plugin, options)
    except AssertionError as error:
        raise UserError(f"{plugin.title} breaks the contract: {error}") from error


def _checked(plugin: plugins.Plugin, options: Any) -> str:
    from firstcli import testing

    cls = plugins.load(plugin.kind, plugin.name)
    if plugin.kind == "recalibrators":
        testing.check_recalibrator(cls, options)
    elif plugin.kind == "augmenters":
        testing.check_augmenter(cls, options)
    elif plugin.kind == "annotators":
        try:
            testing.check_annotator(cls, options)
        except UserError:
            return "imports (needs a task, so the conformance checks did not run)"
    elif plugin.kind == "objectives":
        testing.check_objective(cls, options)
    elif plugin.kind == "selectors":
        testing.check_selector(cls, options)
    elif plugin.kind == "families":
        if cls.needs_checkpoint:
            return "imports (needs a checkpoint, so the conformance checks did not run)"
        if cls.uses_teacher_tokenizer:
            return "imports (needs a teacher, so the conformance checks did not run)"
        testing.check_family(cls, options)
    else:
        try:
            with _offline():
                testing.check_task(cls(options))
        except (UserError, OSError) as error:
            reason = " ".join(str(error).split())
            return f"imports (its samples cannot be loaded here: {reason})"
    return "works"


@contextmanager
def _offline() -> Iterator[None]:
    """Let no data set be downloaded, as far as the libraries have not been imported yet."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
