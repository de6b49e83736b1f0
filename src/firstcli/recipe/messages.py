"""Turn pydantic's validation errors into sentences that name place, key, found and expected."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from firstcli import plugins
from firstcli.errors import UserError, did_you_mean
from firstcli.recipe.references import PLUGIN_SECTIONS
from firstcli.recipe.schema import Recipe
from firstcli.recipe.yaml_nodes import Keys, Node, dotted

Schema = Mapping[str, Any]


def sentences(error: ValidationError, root: Node) -> list[str]:
    """Return one sentence per mistake, in the order of the recipe's sections."""
    messages: dict[Keys, str] = {}
    all_details = error.errors(include_url=False)
    # Pydantic does not count invalid entries, so it also calls a list of them too short.
    parents = {each["loc"][:depth] for each in all_details for depth in range(len(each["loc"]))}
    for details in all_details:
        if details["type"] == "too_short" and details["loc"] in parents:
            continue
        stated = details.get("ctx", {}).get("keys")  # by `mistake`
        keys, node, place, schema = _locate(stated or details["loc"], root)
        if details["type"] == "extra_forbidden":
            known = sorted(_locate(keys[:-1], root)[3].get("properties", {}))
            hint = did_you_mean(str(keys[-1]), known)
            complaint = f"unknown key{hint}; known: {', '.join(known) or 'none'}"
        else:
            complaint = _complaint(details, node, schema)
        # Each branch of a union has its own error; the first is enough.
        messages.setdefault(keys, f"{place}: {dotted(keys)}: {complaint}")
    return list(messages.values())


def _locate(loc: Keys, root: Node) -> tuple[Keys, Node | None, str, Schema]:
    """Follow pydantic's location as far as the recipe or its schema has it.

    The rest of a location names branches of unions, which users do not see.
    """
    node: Node | None = root
    place = root.place
    keys: Keys = ()
    schema, definitions = _schema_of(Recipe)
    for key in loc:
        child = node.child(key) if node else None
        if child is None and key not in schema.get("properties", {}):
            break
        section = PLUGIN_SECTIONS.get(schema.get("title", ""))
        name = node.child(section.key) if section and node else None
        schema = _inner(schema, key, definitions)
        if key == "options" and section and name:
            with suppress(UserError):  # reported as a mistake in the name
                plugin = plugins.load(section.kind, str(name.value))
                schema, definitions = _schema_of(plugin.Options)
        node, keys = child, (*keys, key)
        place = child.place if child else place
    return keys, node, place, schema


def _schema_of(model: Any) -> tuple[Schema, Schema]:
    try:
        schema = model.model_json_schema()
    except PydanticInvalidForJsonSchema:  # an option whose type JSON Schema cannot express
        return {}, {}
    return schema, schema.get("$defs", {})


def _inner(schema: Schema, key: str | int, definitions: Schema) -> Schema:
    """Return the schema of a key's value, resolving references and optional values."""
    inner = schema.get("items") if isinstance(key, int) else schema.get("properties", {}).get(key)
    inner = inner or schema.get("additionalProperties")
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
    not_in_schema = ("value_error", "assertion_error", "string_pattern_mismatch")
    if kind in not_in_schema or not expected:
        text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return f"{text} (found {_found(node)})" if node else text
    return f"found {_found(node)}, expected {expected}{_hint(node, schema)}"


def _found(node: Node | None) -> str:
    if node is None or node.value is None:
        return "nothing"
    value = node.value
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, bool):
        read_as = str(value).lower()
        hint = "" if node.written == read_as else f" (which YAML reads as {read_as})"
        return node.written + hint
    text = repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _hint(node: Node | None, schema: Schema) -> str:
    """Suggest quotes where YAML reads a word as a boolean or number, but text is expected."""
    if node is None or not isinstance(node.value, bool | int | float):
        return ""
    expects_text = any(
        branch.get("type") == "string" and node.written in branch.get("enum", [node.written])
        for branch in (schema, *schema.get("anyOf", ()))
    )
    return "; put it in quotes if it is meant as text" if expects_text else ""


def _expected(schema: Schema) -> str:
    """Describe in words the values that a JSON schema allows."""
    if "anyOf" in schema:
        branches = [_expected(branch) for branch in schema["anyOf"]]
        return " or ".join(dict.fromkeys(branch for branch in branches if branch))
    if "enum" in schema:
        return " or ".join(repr(value) for value in schema["enum"])
    if "const" in schema:
        return repr(schema["const"])
    noun = _NOUNS.get(schema.get("type", ""), "")
    if schema.get("type") == "object" and schema.get("examples"):
        example = yaml.safe_dump(schema["examples"][0], default_flow_style=True).strip()
        return f"{noun} such as {example}"
    if schema.get("type") == "object" and schema.get("required"):
        return f"{noun} with {' and '.join(repr(key) for key in schema['required'])}"
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    return f"{noun} {' and '.join(limits)}".strip()


_NOUNS = {
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
