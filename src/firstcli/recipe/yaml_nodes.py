"""YAML for recipes: parses text into nodes that remember their file and line."""

from __future__ import annotations

import re
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
class Node:
    """A value and its place, a file with a line or `--set`; `written` is a scalar's spelling."""

    value: Value
    place: str
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
        """The nodes of a mapping by key; empty for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    def child(self, key: str | int) -> Node | None:
        """Return the node under a key or an index, or None."""
        if isinstance(key, str):
            return self.children.get(key)
        if isinstance(self.value, list) and key < len(self.value):
            return self.value[key]
        return None


def dotted(keys: Keys) -> str:
    """Return a key path as recipes and `--set` spell it."""
    return ".".join(str(key) for key in keys)


class _Loader(yaml.BaseLoader):
    """Composes nodes without resolving types, which `_Builder` does; refuses tags."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            written = tag.replace("tag:yaml.org,2002:", "!!")
            raise _refused(event, f"found the tag '{written}'; recipes have no tags")
        return super().compose_node(parent, index)


# Unlike YAML 1.1, recipes have numbers such as `2e-5`, but no dates and no base-60 numbers.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORDS = {
    form: value
    for words, value in (("yes true on", True), ("no false off", False), ("null ~", None))
    for word in words.split()
    for form in (word, word.capitalize(), word.upper())
} | {"": None}


def _refused(marked: Any, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=marked.start_mark)


def parse(text: str, source: str, base: Path, place: str | None = None) -> Node:
    """Parse one YAML document.

    Args:
        text: the document.
        source: the file, or the option, that error messages name.
        base: the folder from which relative paths in the document start.
        place: the place of every node; by default, `source` and the node's line.

    Raises:
        UserError: the text is not YAML, or uses YAML that recipes do not allow.
    """
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            return Node(None, place or source)
        return _Builder(source, base, place).built(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise UserError(f"{where}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{source}:{line}: YAML has no character #x{error.character:02x}"
        ) from error
    except RecursionError:  # while composing; the builder stops earlier
        raise UserError(f"{source}: nested more than {MAX_DEPTH} levels deep") from None
    except (ValueError, OverflowError) as error:  # from a number or an escaped character
        raise UserError(f"{source}: not valid YAML: {error}") from error


@dataclass
class _Builder:
    """Converts composed YAML to nodes, within limits of depth and size that aliases can exceed."""

    source: str
    base: Path
    place: str | None
    count: int = 0

    def built(self, node: yaml.Node, depth: int = 1, key: yaml.Node | None = None) -> Node:
        self.count += 1
        if depth > MAX_DEPTH:
            raise _refused(node, f"nested more than {MAX_DEPTH} levels deep, aliases expanded")
        if self.count > MAX_VALUES:
            raise _refused(node, f"more than {MAX_VALUES} values, aliases expanded")
        place = self.place or f"{self.source}:{(key or node).start_mark.line + 1}"
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), place)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.built(child, depth + 1) for child in node.value], place)
        assert isinstance(node, yaml.ScalarNode)
        return Node(self._scalar(node), place, node.value)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = self._key(key)
            if name in lines:
                first = lines[name]
                raise _refused(key, f"the key '{name}' is given twice, first in line {first}")
            lines[name] = key.start_mark.line + 1
            child = self.built(value, depth + 1, key)
            if name == "<<" and key.style is None:
                inherited = _inherited(value, child)
            else:
                own[name] = child
        return {**inherited, **own}

    def _key(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, "found a list or a mapping as a key, expected text")
        value = self._scalar(key)
        if isinstance(value, str):
            return str(value)
        kind = {bool: "yes or no", type(None): "nothing"}.get(type(value), "a number")
        raise _refused(key, f"YAML reads the key '{key.value}' as {kind}; put it in quotes")

    def _scalar(self, node: yaml.ScalarNode) -> Value:
        text: str = node.value
        if node.style is None:  # neither quoted nor a block
            if text in _WORDS:
                return _WORDS[text]
            if _INTEGER.fullmatch(text):
                return int(text.replace("_", ""))
            if _FLOAT.fullmatch(text):
                return float(re.sub(r"\.(?=[inIN])", "", text))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _refused(node, "found half of a surrogate pair, expected text") from error
        return SourcedStr(text, self.base)


def _inherited(node: yaml.Node, merged: Node) -> dict[str, Node]:
    """Return the keys that `<<: merged` inherits; earlier mappings take precedence."""
    keys: dict[str, Node] = {}
    for source in reversed(merged.value if isinstance(merged.value, list) else [merged]):
        if not isinstance(source.value, dict):
            raise _refused(node, "'<<' expects a mapping or a list of mappings")
        keys |= source.value
    return keys
