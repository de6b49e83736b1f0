"""YAML as recipes may use it: text to nodes that remember where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import yaml

from firstcli.api import SourcedStr
from firstcli.errors import UserError

MAX_DEPTH = 50
MAX_VALUES = 10_000

Keys = tuple[str | int, ...]
Value = Union["dict[str, Node]", "list[Node]", SourcedStr, int, float, bool, None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was said: a file and a line, or the option `--set`."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value with its place; `written` is a scalar as the user wrote it."""

    value: Value
    place: Place
    written: str = ""

    def plain(self) -> Any:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    @property
    def children(self) -> dict[str, Node]:
        """What stands under its keys, if it is a mapping."""
        return self.value if isinstance(self.value, dict) else {}

    def moved_to(self, place: Place) -> Node:
        """Return the same value as if all of it had been said at `place`."""
        if isinstance(self.value, dict):
            moved = {key: child.moved_to(place) for key, child in self.value.items()}
            return Node(moved, place)
        if isinstance(self.value, list):
            return Node([child.moved_to(place) for child in self.value], place)
        return Node(self.value, place, self.written)

    def child(self, key: str | int) -> Node | None:
        """Return what stands under a key or an index, if anything does."""
        if isinstance(key, str):
            return self.children.get(key)
        if isinstance(self.value, list) and key < len(self.value):
            return self.value[key]
        return None


def dotted(keys: Keys) -> str:
    """Return a key path as recipes and `--set` spell it."""
    return ".".join(str(key) for key in keys)


class _Loader(yaml.SafeLoader):
    """Composes nodes; unlike YAML 1.1 it knows `2e-5` and neither dates nor base-60 numbers."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            written = tag.replace(_TAG, "!!")
            raise _refused(event.start_mark, f"found the tag '{written}'; a recipe has no tags")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(event.start_mark, f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_FLOAT = r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _name, _pattern, _first in (
    (
        "bool",
        "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "ynYNtTfFoO",
    ),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


def _refused(mark: yaml.Mark, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def parse(text: str, source: str, base: Path) -> Node:
    """Read one YAML document; relative paths in it will start from `base`.

    Raises:
        UserError: not YAML, or YAML of a kind that a recipe has no use for.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Node(None, Place(source))
        _check(node, {})
        return _build(loader, node, source, base)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UserError(f"{where}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{source}:{line}: YAML has no character #x{error.character:02x}"
        ) from error
    except (ValueError, OverflowError) as error:  # of a number or an escaped character
        raise UserError(f"{source}: not valid YAML: {error}") from error


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check(node: yaml.Node, sizes: dict[yaml.Node, int | None]) -> int:
    """Return how many values the node holds once its aliases are written out, without doing so."""
    if node in sizes:
        size = sizes[node]
        if size is None:
            raise _refused(node.start_mark, "an alias refers to the value that it stands in")
        return size
    sizes[node] = None
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    size = 1 + sum(_check(child, sizes) for child in _children(node))
    if size > MAX_VALUES:
        raise _refused(node.start_mark, f"holds more than {MAX_VALUES} values, aliases written out")
    sizes[node] = size
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key.start_mark, "found a list or a mapping as a key, expected text")
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            kind = {"bool": "yes or no", "null": "nothing"}.get(
                key.tag.removeprefix(_TAG), "a number"
            )
            raise _refused(
                key.start_mark, f"YAML reads the key '{key.value}' as {kind}; put it in quotes"
            )
        if key.value in seen:
            raise _refused(
                key.start_mark,
                f"the key '{key.value}' is given twice, first in line {seen[key.value]}",
            )
        seen[key.value] = key.start_mark.line + 1


def _build(loader: _Loader, node: yaml.Node, source: str, base: Path) -> Node:
    place = Place(source, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # writes out `<<`
        children: dict[str, Node] = {}
        for key, value in node.value:
            child = _build(loader, value, source, base)
            at = Place(source, key.start_mark.line + 1)
            children[str(_text(key, base))] = Node(child.value, at, child.written)
        return Node(children, place)
    if isinstance(node, yaml.SequenceNode):
        return Node([_build(loader, child, source, base) for child in node.value], place)
    assert isinstance(node, yaml.ScalarNode)
    return Node(_scalar(node, base), place, node.value)


def _text(node: yaml.ScalarNode, base: Path) -> SourcedStr:
    try:
        node.value.encode()
    except UnicodeEncodeError as error:
        raise _refused(node.start_mark, "found half of a surrogate pair, expected text") from error
    return SourcedStr(node.value, base)


def _scalar(node: yaml.ScalarNode, base: Path) -> Value:
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        return None
    if kind == "bool":
        return node.value.lower() in ("yes", "true", "on")
    if kind == "int":
        return int(node.value.replace("_", ""))
    if kind == "float":
        return float(re.sub(r"\.(?=[inIN])", "", node.value))
    return _text(node, base)
