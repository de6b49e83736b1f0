"""Load recipe files: `extends`, `--set` and validation, reporting every mistake at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from firstcli import plugins
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.files import read_recipe
from firstcli.recipe.from_run import StatedMentor, require_no_circle, stated_mentor
from firstcli.recipe.messages import sentences
from firstcli.recipe.references import PLUGIN_SECTIONS
from firstcli.recipe.schema import Recipe
from firstcli.recipe.yaml_nodes import Keys, Node, dotted, parse


def load_recipe(path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None) -> Recipe:
    """Read a recipe and those it extends, apply `key.path=value` overrides, and validate.

    Args:
        path: the recipe.
        overrides: what `--set` has given.
        run_dir: the run folder, if it is not `runs/NAME`.

    Raises:
        UserError: one message per mistake.
    """
    root = _overridden(read_recipe(path), overrides)
    require_no_circle(root, run_dir)
    try:
        return Recipe.model_validate(root.plain())
    except ValidationError as error:
        raise UserError(*sentences(error, root)) from error


def mentor_of(
    path: Path, overrides: Sequence[str] = (), run_dir: Path | None = None
) -> StatedMentor | None:
    """Return what a recipe states under `teacher.from_run`, without validating the rest.

    Args:
        path: the recipe.
        overrides: what `--set` has given.
        run_dir: the run folder, if it is not `runs/NAME`.

    Raises:
        UserError: a file cannot be read, an override cannot be applied, or a run would be its own
            teacher.
    """
    root = _overridden(read_recipe(path), overrides)
    require_no_circle(root, run_dir)
    return stated_mentor(root)


def arm_names(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return the names of a recipe's arms, and `teacher` if it has one, without validating it.

    Raises:
        UserError: the file cannot be read, or an override cannot be applied.
    """
    sections = _overridden(read_recipe(path), overrides).children
    return [*(["teacher"] if "teacher" in sections else []), *sections["arms"].children]


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
    objective = definitions["Arm"]["properties"]["objective"]
    names = definitions["ObjectiveRef"]["properties"]["name"]["anyOf"]
    objective["anyOf"] = [*names, *objective["anyOf"]]  # the name alone
    from_run = definitions["Teacher"]["properties"]["from_run"]
    from_run["anyOf"].insert(0, {"type": "string"})  # the run alone
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
