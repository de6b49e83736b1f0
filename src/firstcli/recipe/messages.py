"""What pydantic found wrong with a recipe, as sentences that name place, key, found, expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from firstcli import plugins
from firstcli.errors import did_you_mean
from firstcli.recipe.schema import Recipe
from firstcli.recipe.yaml_nodes import Keys, Node, Place, dotted

Schema = Mapping[str, Any]

SECTIONS_WITH_OPTIONS: dict[str, tuple[plugins.Kind, str]] = {
    "TaskRef": ("tasks", "name"),
    "RecalibratorRef": ("recalibrators", "name"),
    "PosthocRef": ("recalibrators", "name"),
    "ModelSection": ("families", "family"),
}
_NOT_SAID_BY_A_SCHEMA = ("value_error", "assertion_error", "string_pattern_mismatch")


def sentences(error: ValidationError, root: Node) -> list[str]:
    """Return one sentence a mistake, in the order of the recipe's sections."""
    found: dict[Keys, str] = {}
    all_details = error.errors(include_url=False)
    # Entries that are wrong do not count for pydantic, so it also calls a list of them too short.
    locations = [details["loc"] for details in all_details]
    parents = {loc[:depth] for loc in locations for depth in range(len(loc))}
    for details in all_details:
        if details["type"] == "too_short" and details["loc"] in parents:
            continue
        keys, node, place, schema = _locate(details["loc"], root)
        if details["type"] == "extra_forbidden":
            complaint = _unknown(str(keys[-1]), _locate(keys[:-1], root)[3])
        else:
            complaint = _complaint(details, node, schema)
        # The branches of a union complain one by one; the first speaks for all.
        found.setdefault(keys, f"{place}: {dotted(keys)}: {complaint}")
    return list(found.values())


def _locate(loc: Keys, root: Node) -> tuple[Keys, Node | None, Place, Schema]:
    """Follow pydantic's location as far as recipe or schema know it, short of union branches."""
    node: Node | None = root
    place = root.place
    keys: Keys = ()
    schema, definitions = _schema_of(Recipe)
    for key in loc:
        child = node.child(key) if node else None
        if child is None and key not in schema.get("properties", {}):
            break
        if key == "options" and schema.get("title") in SECTIONS_WITH_OPTIONS:
            schema, definitions = _options_schema(node, schema["title"])
        else:
            schema = _inner(schema, key, definitions)
        node, keys = child, (*keys, key)
        place = child.place if child else place
    return keys, node, place, schema


def _schema_of(model: Any) -> tuple[Schema, Schema]:
    try:
        schema = model.model_json_schema()
    except PydanticInvalidForJsonSchema:  # an option of a type that JSON has no word for
        return {}, {}
    return schema, schema.get("$defs", {})


def _options_schema(section: Node | None, title: str) -> tuple[Schema, Schema]:
    kind, key = SECTIONS_WITH_OPTIONS[title]
    name = section.child(key) if section else None
    return _schema_of(plugins.load(kind, str(name.value)).Options) if name else ({}, {})


def _inner(schema: Schema, key: str | int, definitions: Schema) -> Schema:
    """Return the schema of what stands under a key, through references and `or nothing`."""
    inner = (
        schema.get("items", {})
        if isinstance(key, int)
        else schema.get("properties", {}).get(key) or schema.get("additionalProperties")
    )
    while isinstance(inner, Mapping):
        choices = [choice for choice in inner.get("anyOf", ()) if choice.get("type") != "null"]
        if "$ref" in inner:
            inner = definitions[inner["$ref"].rpartition("/")[2]]
        elif len(choices) == 1:
            inner = choices[0]
        else:
            return inner
    return {}


def _complaint(details: Any, node: Node | None, schema: Schema) -> str:
    kind, text = details["type"], str(details["msg"])
    expected = _expected(schema)
    if kind == "recipe":
        return text
    if kind == "missing" and node is None:
        return f"missing, expected {expected or 'a value'}"
    if kind in _NOT_SAID_BY_A_SCHEMA or not expected:
        text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"{text} (found {_found(node)})" if node else text
    return f"found {_found(node)}, expected {expected}{_hint(node, schema)}"


def _unknown(key: str, section: Schema) -> str:
    known = sorted(section.get("properties", {}))
    return f"unknown key{did_you_mean(key, known)}; known: {', '.join(known) or 'none'}"


def _found(node: Node | None) -> str:
    value = node.value if node else None
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        read_as = str(value).lower()
        written = node.written if node else read_as
        return written if written == read_as else f"{written} (which YAML reads as {read_as})"
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _hint(node: Node | None, schema: Schema) -> str:
    """A word that YAML took for a yes or a number, where text was expected, lacks its quotes."""
    if node is None or not isinstance(node.value, bool | int | float):
        return ""
    wants_text = any(
        branch.get("type") == "string" and node.written in branch.get("enum", [node.written])
        for branch in (schema, *schema.get("anyOf", ()))
    )
    return "; put it in quotes if it is meant as text" if wants_text else ""


def _expected(schema: Schema) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in schema:
        branches = [_expected(branch) for branch in schema["anyOf"]]
        return " or ".join(dict.fromkeys(branch for branch in branches if branch))
    if "enum" in schema:
        return " or ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    words = _WORDS.get(schema.get("type", ""), "")
    if schema.get("type") == "object" and schema.get("required"):
        return f"{words} with {' and '.join(repr(key) for key in schema['required'])}"
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    return " ".join((words, " and ".join(limits))).strip()


_WORDS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {
    "exclusiveMinimum": "greater than {}",
    "minimum": "of at least {}",
    "exclusiveMaximum": "less than {}",
    "maximum": "of at most {}",
    "minItems": "with at least {} entry",
    "minProperties": "with at least {} entry",
}
