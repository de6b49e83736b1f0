"""Recipe files: `extends`, `--set` and validation, with every mistake named at once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from firstcli import plugins
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.messages import SECTIONS_WITH_OPTIONS, sentences
from firstcli.recipe.schema import DEFAULT_ARMS, Recipe
from firstcli.recipe.yaml_nodes import Keys, Node, Place, dotted, parse

MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe and where it came from."""

    recipe: Recipe
    resolved: dict[str, Any]
    """The whole recipe as plain YAML values, defaults written out, local paths absolute."""
    path: Path
    text: str
    """The file as the user wrote it."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe with what it extends, apply `key.path=value` overrides and check the result.

    Raises:
        UserError: one sentence for each mistake.
    """
    root = _overridden(_with_default_arms(read_merged(path)), overrides)
    try:
        recipe = Recipe.model_validate(root.plain())
    except ValidationError as error:
        raise UserError(*sentences(error, root)) from error
    resolved = recipe.model_dump(mode="json", exclude_none=True)
    return LoadedRecipe(recipe, resolved, path, read_text(path))


def read_text(path: Path) -> str:
    """Return the text of a recipe file.

    Raises:
        UserError: there is none, or it is no text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; `first init` lists recipes to start from"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path}: this is a folder, expected a recipe file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: longer than {MAX_BYTES} bytes; this is no recipe")
    if b"\0" in data:
        raise UserError(f"{path}: this is a binary file, expected a recipe in YAML")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the recipe as UTF-8") from error


def read_merged(path: Path, below: tuple[Path, ...] = ()) -> Node:
    """Return a recipe file's root node, merged over the recipe that it extends.

    Mappings merge key by key; lists and scalars replace what they stand over; nothing (`key:` or
    `key: null`) removes an inherited key, so that its default holds.
    """
    root = parse(read_text(path), str(path), path.absolute().parent)
    if root.value is None:
        raise UserError(f"{path}: empty; `first init` lists recipes to start from")
    if not isinstance(root.value, dict):
        raise UserError(
            f"{path}: found {'a list' if isinstance(root.value, list) else 'bare text'}, "
            "expected keys such as 'name:' and 'train:'"
        )
    if "extends" not in root.value:
        return Node(root.value, Place(str(path)))
    parent = root.value["extends"]
    if not isinstance(parent.value, str):
        raise UserError(f"{parent.place}: extends: expected the path of another recipe")
    other = Path(os.path.normpath(path.parent / Path(parent.value)))
    chain = (*below, path)
    if other.resolve() in [file.resolve() for file in chain]:
        circle = " -> ".join(str(file) for file in (*chain, other))
        raise UserError(f"{parent.place}: extends: recipes extend each other: {circle}")
    if not other.is_file():
        raise UserError(f"{parent.place}: extends: there is no file {other}")
    own = {key: child for key, child in root.value.items() if key != "extends"}
    return _merged(read_merged(other, chain), Node(own, Place(str(path))))


def _merged(under: Node | None, over: Node) -> Node:
    if under is None or not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    children = dict(under.value)
    for key, child in over.value.items():
        if child.value is None and key in children:
            del children[key]
        else:
            children[key] = _merged(children.get(key), child)
    return Node(children, over.place)


def _with_default_arms(root: Node) -> Node:
    """Write the default arms out, so that `--set arms.first...` has something to change."""
    if "arms" in root.children:
        return root
    place = Place(root.place.source)
    arms = parse(json.dumps(DEFAULT_ARMS), place.source, Path.cwd()).moved_to(place)
    return Node({**root.children, "arms": arms}, root.place)


def _overridden(root: Node, overrides: Sequence[str]) -> Node:
    wrong: list[str] = []
    for override in overrides:
        try:
            root = _with_override(root, override)
        except UserError as error:
            wrong += error.messages
    if wrong:
        raise UserError(*wrong)
    return root


def _with_override(root: Node, override: str) -> Node:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise UserError(
            f"--set {override}: expected key.path=value, as in --set student.training.epochs=1"
        )
    given = parse(text, f"--set {path}", Path.cwd()).moved_to(Place("--set"))
    return _replaced(root, (), path.strip().split("."), given)


def _replaced(node: Node | None, at: Keys, parts: list[str], given: Node) -> Node:
    """Return `node`, which stands at key path `at`, with the value at `parts` below replaced."""
    if not parts:
        return given
    if node is None or node.value is None:
        node = Node({}, given.place)
    if isinstance(node.value, list):
        index = _index(node.value, at, parts[0])
        child = _replaced(node.value[index], (*at, index), parts[1:], given)
        return Node([*node.value[:index], child, *node.value[index + 1 :]], node.place)
    if not isinstance(node.value, dict):
        raise UserError(f"--set {dotted((*at, *parts))}: {dotted(at)} holds no keys")
    key, rest = _next_key(node.value, parts)
    if at == ("arms",) and rest and key not in node.value:
        raise UserError(
            f"--set {dotted((*at, *parts))}: the recipe has no arm '{key}'"
            f"{did_you_mean(key, node.value)}; its arms: {', '.join(node.value)}"
        )
    if not rest and given.value is None and key in node.value:
        return Node({name: child for name, child in node.value.items() if name != key}, node.place)
    child = _replaced(node.value.get(key), (*at, key), rest, given)
    return Node({**node.value, key: child}, node.place)


def _index(entries: list[Node], at: Keys, part: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise UserError(
            f"--set {dotted((*at, part))}: found '{part}', expected the number of one of the "
            f"{len(entries)} entries of {dotted(at)}, counted from 0"
        )
    return int(part)


def _next_key(children: dict[str, Node], parts: list[str]) -> tuple[str, list[str]]:
    """Split off the next key: the longest that exists, for names of arms may hold dots."""
    for count in range(len(parts), 1, -1):
        key = ".".join(parts[:count])
        if key in children:
            return key, parts[count:]
    return parts[0], parts[1:]


def schema() -> dict[str, Any]:
    """Return a JSON Schema of recipe files, with which editors complete and check them.

    No key is required, for `extends` may bring any, and nothing (null) removes an inherited key.
    """
    whole = Recipe.model_json_schema()
    definitions = whole["$defs"]
    for section, (kind, key) in SECTIONS_WITH_OPTIONS.items():
        names = sorted({plugin.name for plugin in plugins.registered(kind)})
        name = definitions[section]["properties"][key]
        # Known names are offered; any other may be a plugin that is installed elsewhere.
        if "const" not in name:
            name["anyOf"] = [{"enum": names}, {"type": name.pop("type")}]
    arms = whole["properties"]["arms"]
    arms["additionalProperties"] = {"anyOf": [arms["additionalProperties"], {"type": "null"}]}
    for section in (whole, *definitions.values()):
        section.pop("required", None)
    extends = {"type": "string", "description": "Another recipe, relative to this one."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "properties": {"extends": extends, **whole["properties"]},
    }
