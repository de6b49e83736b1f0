"""Recipe files: read one, and merge it over the recipe that it extends."""

from __future__ import annotations

import json
import os
from pathlib import Path

from firstcli.errors import UserError
from firstcli.recipe.yaml_nodes import Node, parse

MAX_BYTES = 1_000_000
DEFAULT_ARMS = {"first": {"recalibrator": {"name": "temperature-scaling"}}}


def read_recipe(path: Path) -> Node:
    """Return the root node of a recipe and those that it extends, with its arms written out.

    Raises:
        UserError: a file cannot be read, or is no recipe.
    """
    root = read_merged(path)
    if "arms" in root.children:
        return root
    # Written out, so that `--set arms.first...` can change them.
    arms = parse(json.dumps(DEFAULT_ARMS), root.place, Path.cwd(), root.place)
    return Node({**root.children, "arms": arms}, root.place)


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


def read_merged(path: Path, extended_by: tuple[Path, ...] = ()) -> Node:
    """Return the root node of a recipe file, merged over the recipe that it extends.

    Mappings are merged key by key; lists and scalars replace the inherited value. An empty value
    (`key:` or `key: null`) removes the inherited key, which restores its default.

    Args:
        path: the file.
        extended_by: the recipes that extend it, first that which is read.

    Raises:
        UserError: a file cannot be read, or is no recipe.
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
    return _merged(read_merged(parent, chain), Node(own, str(path)))


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
