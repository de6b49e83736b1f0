"""Load recipe files: `extends`, `--set` and validation, reporting every mistake at once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from firstcli import plugins
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.messages import sentences
from firstcli.recipe.references import PLUGIN_SECTIONS
from firstcli.recipe.schema import DEFAULT_ARMS, Recipe
from firstcli.recipe.yaml_nodes import Keys, Node, dotted, parse

MAX_BYTES = 1_000_000


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and those it extends, apply `key.path=value` overrides, and validate.

    Raises:
        UserError: one message per mistake.
    """
    root = _with_overrides(path, overrides)
    try:
        return Recipe.model_validate(root.plain())
    except ValidationError as error:
        raise UserError(*sentences(error, root)) from error


def arm_names(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return the names of a recipe's arms, and `teacher` if it has one, without validating it.

    Raises:
        UserError: the file cannot be read, or an override cannot be applied.
    """
    sections = _with_overrides(path, overrides).children
    return [*(["teacher"] if "teacher" in sections else []), *sections["arms"].children]


def _with_overrides(path: Path, overrides: Sequence[str]) -> Node:
    root = _read_merged(path)
    if "arms" not in root.children:  # written out, so that `--set arms.first...` can change them
        arms = parse(json.dumps(DEFAULT_ARMS), root.place, Path.cwd(), root.place)
        root = Node({**root.children, "arms": arms}, root.place)
    return _overridden(root, overrides)


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `first init` lists recipes to start from") from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder, expected a recipe file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes; this is not a recipe")
    if b"\0" in data:
        raise UserError(f"{path}: this is a binary file, expected a recipe in YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the recipe as UTF-8") from error


def _read_merged(path: Path, extended_by: tuple[Path, ...] = ()) -> Node:
    """Return the root node of a recipe file, merged over the recipe that it extends.

    Mappings are merged key by key; lists and scalars replace the inherited value. An empty value
    (`key:` or `key: null`) removes the inherited key, which restores its default.
    """
    root = parse(_text_of(path), str(path), path.absolute().parent)
    if root.value is None:
        raise UserError(f"{path}: empty; `first init` lists recipes to start from")
    if not isinstance(root.value, dict):
        raise UserError(
            f"{path}: found {'a list' if isinstance(root.value, list) else 'bare text'}, "
            "expected keys such as 'name:' and 'train:'"
        )
    if "extends" not in root.value:
        return Node(root.value, str(path))
    extends = root.value["extends"]
    if not isinstance(extends.value, str):
        raise UserError(f"{extends.place}: extends: expected the path of another recipe")
    parent = Path(os.path.normpath(path.parent / Path(extends.value)))
    chain = (*extended_by, path)
    if parent.resolve() in [file.resolve() for file in chain]:
        circle = " -> ".join(str(file) for file in (*chain, parent))
        raise UserError(f"{extends.place}: extends: recipes extend each other: {circle}")
    if not parent.is_file():
        raise UserError(f"{extends.place}: extends: no such file: {parent}")
    own = {key: child for key, child in root.value.items() if key != "extends"}
    return _merged(_read_merged(parent, chain), Node(own, str(path)))


def _merged(inherited: Node | None, own: Node) -> Node:
    if inherited is None or not (isinstance(inherited.value, dict) and isinstance(own.value, dict)):
        return own
    children = dict(inherited.value)
    for key, child in own.value.items():
        if child.value is None and key in children:
            del children[key]
        else:
            children[key] = _merged(children.get(key), child)
    return Node(children, own.place)


def _overridden(root: Node, overrides: Sequence[str]) -> Node:
    mistakes: list[str] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            example = "expected key.path=value, as in --set student.training.epochs=1"
            mistakes.append(f"--set {override}: {example}")
            continue
        try:
            given = parse(text, f"--set {path}", Path.cwd(), "--set")
            root = _replaced(root, (), path.strip().split("."), given)
        except UserError as error:
            mistakes += error.messages
    if mistakes:
        raise UserError(*mistakes)
    return root


def _replaced(node: Node | None, keys: Keys, parts: list[str], given: Node) -> Node:
    """Return a copy of `node`, found at `keys`, with its descendant at `parts` replaced."""
    if not parts:
        return given
    if node is None or node.value is None:
        node = Node({}, given.place)
    if isinstance(node.value, list):
        if not parts[0].isdecimal() or int(parts[0]) >= len(node.value):
            raise UserError(
                f"--set {dotted((*keys, parts[0]))}: found '{parts[0]}', expected the index of one "
                f"of the {len(node.value)} entries of {dotted(keys)}, counted from 0"
            )
        index = int(parts[0])
        child = _replaced(node.value[index], (*keys, index), parts[1:], given)
        return Node([*node.value[:index], child, *node.value[index + 1 :]], node.place)
    if not isinstance(node.value, dict):
        raise UserError(f"--set {dotted((*keys, *parts))}: {dotted(keys)} has no keys")
    key, rest = _next_key(node.value, parts)
    if keys == ("arms",) and rest and key not in node.value:
        raise UserError(
            f"--set {dotted((*keys, *parts))}: the recipe has no arm '{key}'"
            f"{did_you_mean(key, node.value)}; its arms: {', '.join(node.value)}"
        )
    if not rest and given.value is None and key in node.value:
        return Node({name: child for name, child in node.value.items() if name != key}, node.place)
    child = _replaced(node.value.get(key), (*keys, key), rest, given)
    return Node({**node.value, key: child}, node.place)


def _next_key(children: dict[str, Node], parts: list[str]) -> tuple[str, list[str]]:
    """Split off the next key: the longest that exists, because arm names may contain dots."""
    for count in range(len(parts), 1, -1):
        key = ".".join(parts[:count])
        if key in children:
            return key, parts[count:]
    return parts[0], parts[1:]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of recipe files, for completion and checks in editors.

    No key is required, because `extends` may provide any, and null removes an inherited key.
    """
    recipe = Recipe.model_json_schema()
    definitions = recipe["$defs"]
    for title, section in PLUGIN_SECTIONS.items():
        names = sorted({plugin.name for plugin in plugins.registered(section.kind)})
        name = definitions[title]["properties"][section.key]
        # Offer the known names, but allow any: its plugin may be installed elsewhere.
        name["anyOf"] = [{"enum": names}, {"type": name.pop("type")}]
    arms = recipe["properties"]["arms"]
    arms["additionalProperties"] = {"anyOf": [arms["additionalProperties"], {"type": "null"}]}
    for section_schema in (recipe, *definitions.values()):
        section_schema.pop("required", None)
    extends = {
        "type": "string",
        "description": "A recipe to inherit from; a path relative to this file.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "properties": {"extends": extends, **recipe["properties"]},
    }
