"""What keys of a recipe and options of plugins mean, read from their pydantic models."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from firstcli import plugins
from firstcli.plugins import Plugin

SHOWN_DEFAULTS = 3  # options in an example of a plugin that requires none


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """One key of a recipe, or one option of a plugin."""

    name: str
    takes: str
    """The allowed values in words."""
    default: str | None
    """The default in the notation of JSON; empty if there is none to state, None if required."""
    description: str
    sections: Sequence[type[BaseModel]] = ()
    """The sections that the value is, or that it contains."""


@dataclass(frozen=True, slots=True)
class PluginDescription:
    """What a user needs to know of a plugin."""

    kind: str
    name: str
    package: str
    version: str
    description: str
    options: Sequence[KeyDescription]
    example: str
    """A part of a recipe that uses the plugin."""


def keys_of(model: type[BaseModel]) -> list[KeyDescription]:
    """Describe the fields of a model in their order."""
    return [
        KeyDescription(
            field.alias or name,
            type_of(field),
            _default(field),
            " ".join((field.description or "").split()),
            tuple(_models(field.annotation)),
        )
        for name, field in model.model_fields.items()
    ]


def plugin_named(plugin: Plugin) -> PluginDescription:
    """Import a plugin and describe it.

    Raises:
        UserError: it cannot be imported, or several packages register it.
    """
    cls = plugins.load(plugin.kind, plugin.name)
    options = keys_of(cls.Options)
    return PluginDescription(
        kind=plugins.SINGULAR[plugin.kind],
        name=plugin.name,
        package=plugin.package,
        version=plugin.version,
        description=inspect.cleandoc(cls.__doc__ or ""),
        options=options,
        example=_example(plugin, cls, options),
    )


def type_of(field: FieldInfo) -> str:
    """Return the values that a field takes, in words."""
    annotated: Any = field.annotation
    for constraint in field.metadata:
        annotated = Annotated[annotated, constraint]
    try:
        schema = TypeAdapter(annotated).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError):  # JSON Schema cannot express it
        return getattr(field.annotation, "__name__", str(field.annotation))
    return _words(schema, schema.get("$defs", {}))


_NOUNS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def _words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        branches = [_words(each, definitions) for each in schema["anyOf"] if each != _NULL]
        return " or ".join(dict.fromkeys(branches))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("format") == "path":
        return "path"
    if schema.get("type") == "array":
        return f"list of {_words(schema.get('items', {}), definitions)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_words(schema['additionalProperties'], definitions)}"
    limits = [words.format(schema[key]) for key, words in _LIMITS.items() if key in schema]
    noun = _NOUNS.get(str(schema.get("type")), "any value")
    return f"{noun} {' and '.join(limits)}".strip()


_NULL = {"type": "null"}


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    default = field.default
    if default is None or default is PydanticUndefined or isinstance(default, BaseModel):
        return ""
    return json.dumps(default, ensure_ascii=False, default=str) if default != () else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _example(plugin: Plugin, cls: Any, options: Sequence[KeyDescription]) -> str:
    """Return a part of a recipe: with the required options, or else the first of the others."""
    fields = cls.Options.model_fields
    required = [key for key in options if key.default is None]
    chosen = {key.name: _placeholder(fields[key.name], key) for key in required}
    if not chosen:
        stated = [key for key in options if key.default not in ("", '"auto"', "false")]
        chosen = {key.name: json.loads(str(key.default)) for key in stated[:SHOWN_DEFAULTS]}
    reference: dict[str, Any] = {"name": plugin.name} | ({"options": chosen} if chosen else {})
    if plugin.kind == "tasks":
        content: Any = {"train": {"task": reference}}
    elif plugin.kind == "recalibrators":
        content = {"arms": {"my-arm": {"recalibrator": reference}}}
    elif plugin.kind == "augmenters":
        content = {"train": {"augment": {"augmenters": [reference]}}}
    elif plugin.kind == "annotators":
        content = {"active": {"annotator": reference}}
    elif plugin.kind == "objectives":
        content = {"arms": {"my-arm": {"objective": reference}}}
    elif plugin.kind == "selectors":
        content = {"active": {"selector": reference}}
    else:
        model = {"family": reference.pop("name")}
        if cls.needs_checkpoint:
            model["checkpoint"] = "owner/name"
        content = {"student": {"model": {**model, **reference}}}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _placeholder(field: FieldInfo, key: KeyDescription) -> Any:
    if field.examples:
        return field.examples[0]
    for word, value in (("path", "data.csv"), ("number", 1), ("true", True)):
        if word in key.takes.split():
            return value
    return "..."
