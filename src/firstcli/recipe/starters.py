"""The recipes that ship with firstcli, each written out as one self-contained, commented file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from firstcli.errors import UserError, did_you_mean
from firstcli.recipe import load
from firstcli.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Starter:
    """A shipped recipe; its description is its first comment."""

    name: str
    description: str
    path: Path


def init(name: str | None, *, schema: bool) -> str:
    """Return what `first init` prints: the schema of recipes, a starter, or which there are."""
    if schema:
        return json.dumps(load.schema(), indent=2) + "\n"
    if name is not None:
        return render(name)
    width = max(len(each.name) for each in starters())
    listed = "\n".join(f"  {each.name:<{width}}  {each.description}" for each in starters())
    return f"Starters, for example `first init quickstart > recipe.yaml`:\n\n{listed}\n"


def starters() -> list[Starter]:
    """List the shipped recipes; files whose name starts with `_` are parts of others."""
    folder = _folder()
    return [
        Starter(path.relative_to(folder).with_suffix("").as_posix(), _description(path), path)
        for path in sorted(folder.rglob("*.yaml"))
        if not path.name.startswith("_")
    ]


def _folder() -> Path:
    packaged = (
        Path(__file__).parents[1] / "recipes"
    )  # in a wheel; in a checkout they lie at its top
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"


def starter(name: str) -> Starter:
    """Return a starter by its name, or by the last part of it where that is no other's.

    Raises:
        UserError: there is none of that name.
    """
    known = {starter.name: starter for starter in starters()}
    short = [each for full, each in known.items() if full.rpartition("/")[2] == name]
    if name in known:
        return known[name]
    if len(short) == 1:
        return short[0]
    raise UserError(
        f"unknown starter '{name}'{did_you_mean(name, known)}; available: {', '.join(known)}"
    )


def render(name: str) -> str:
    """Return a starter's text without `extends`: its parents' keys and comments are merged in.

    A comment belongs to the key below it or beside it; the child's replaces its parent's.
    """
    header, entries = _merged_file(starter(name).path)
    in_order = {key: entries[key] for key in Recipe.model_fields if key in entries}
    return "\n".join((*header, "", *_lines(in_order, 0), "")).lstrip("\n")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key with its comments; `written` is its value as the file has it."""

    key: str
    written: str
    children: dict[str, _Entry] | None
    is_block: bool
    above: tuple[str, ...] = ()
    beside: str = ""
    blank: bool = False


def _description(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _merged_file(path: Path) -> tuple[list[str], dict[str, _Entry]]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    entries = _entries(root, text, lines) if root else {}
    header = _header(lines)
    parent = entries.pop("extends", None)
    if parent is None:
        return header, entries
    inherited_header, inherited = _merged_file(path.parent / parent.written)
    return header or inherited_header, _merged(inherited, entries)


def _header(lines: list[str]) -> list[str]:
    """Return the comments that an empty line separates from the first key."""
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [] if lines[count : count + 1] != [""] else lines[:count]


def _entries(node: yaml.Node, text: str, lines: list[str]) -> dict[str, _Entry]:
    assert isinstance(node, yaml.MappingNode)
    return {key.value: _entry(key, value, text, lines, node) for key, value in node.value}


def _entry(
    key: yaml.Node, value: yaml.Node, text: str, lines: list[str], parent: yaml.MappingNode
) -> _Entry:
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    row, end = key.start_mark.line, _end(value)
    entry = _Entry(
        key=text[key.start_mark.index : key.end_mark.index],
        written="\n".join(lines[row + 1 : end.line + 1])
        if is_block
        else text[value.start_mark.index : end.index],
        children=_entries(value, text, lines) if isinstance(value, yaml.MappingNode) else None,
        is_block=is_block,
    )
    if parent.flow_style:  # within braces no comment belongs to a key
        return entry
    above = row
    while above > 0 and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    after = lines[row][key.end_mark.column + 1 :] if is_block else lines[end.line][end.column :]
    beside = re.fullmatch(r"\s*(#.*)", after)
    is_header = above == 0 and bool(_header(lines))
    return replace(
        entry,
        above=() if is_header else tuple(line.strip() for line in lines[above:row]),
        beside=beside[1] if beside else "",
        blank=above > 0 and not lines[above - 1].strip(),
    )


def _end(node: yaml.Node) -> yaml.Mark:
    """Return where a value ends; PyYAML ends a block only where the next key begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark


def _merged(inherited: dict[str, _Entry], own: dict[str, _Entry]) -> dict[str, _Entry]:
    """Merge as `extends` does, for which see `recipe_file.read_merged`; the own keys come first."""
    merged: dict[str, _Entry] = {}
    for name, entry in own.items():
        under = inherited.get(name)
        if under is None:
            merged[name] = entry
        elif entry.written not in ("", "~", "null"):
            merged[name] = _merged_entry(under, entry)
    return {**merged, **{name: entry for name, entry in inherited.items() if name not in own}}


def _merged_entry(under: _Entry, over: _Entry) -> _Entry:
    over = replace(
        over,
        above=over.above or under.above,
        beside=over.beside or under.beside,
        blank=over.blank or under.blank,
    )
    if under.children is None or over.children is None:
        return over
    return replace(over, children=_merged(under.children, over.children), is_block=True)


def _lines(entries: dict[str, _Entry], depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for entry in entries.values():
        if entry.blank and lines:
            lines.append("")
        lines += [f"{indent}{comment}" for comment in entry.above]
        beside = f"  {entry.beside}" if entry.beside else ""
        value = "" if entry.is_block else f" {entry.written}"
        lines.append(f"{indent}{entry.key}:{value}{beside}")
        if entry.is_block and entry.children is not None:
            lines += _lines(entry.children, depth + 1)
        elif entry.is_block:
            lines += entry.written.splitlines()
    return lines
