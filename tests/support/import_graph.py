"""The imports between the packages of firstcli, deferred ones included.

PYTHONPATH=tests python -m support.import_graph    # prints the graph
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from support.paths import SOURCE

LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("wizard",),
    ("active",),
    ("pipeline",),
    ("export",),
    ("student",),
    ("stages",),
    ("reporting",),
    ("training",),
    ("workspace",),
    ("recalibration",),
    ("recipe",),
    ("knowledge",),
    ("models",),
    ("metrics",),
    ("data",),
    ("runtime",),
    ("testing",),
    ("annotators", "augmenters", "selectors"),
    ("tasks", "families"),
    ("plugins",),
    ("api",),
    ("checkpoints",),
    ("errors",),
    ("firstcli",),
)
"""From top to bottom: a package imports only from packages below it."""

Graph = dict[str, set[str]]


def import_graph(source: Path = SOURCE, *, modules: bool = False) -> Graph:
    """Return which package, or which module, imports which."""
    graph: Graph = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "firstcli"
        # `firstcli` itself only names the Python interface, which is imported on access.
        imported = set() if path == source / "__init__.py" else set(_imports(path, source))
        if not modules:
            name = name.partition(".")[0]
            imported = {target.partition(".")[0] for target in imported}
        graph.setdefault(name, set()).update(imported - {name})
    return graph


def _imports(path: Path, source: Path) -> Iterator[str]:
    """Yield the modules of firstcli that a file imports, wherever the statement is."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "firstcli":
                yield _module(rest, source)


def _module(name: str, source: Path) -> str:
    """Return the module that a dotted name is or is defined in."""
    parts = name.split(".")
    while parts and parts[0]:
        path = source.joinpath(*parts)
        if path.is_dir() or path.with_suffix(".py").is_file():
            return ".".join(parts)
        parts.pop()
    return "firstcli"


def floors(graph: Graph) -> int:
    """Return the number of packages on the longest way from top to bottom; needs no circle."""
    heights: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        heights[name] = 1 + max((heights[other] for other in graph.get(name, ())), default=0)
    return max(heights.values())


def arrows_upward(graph: Graph) -> list[str]:
    """Return the imports of a package on the same layer or above."""
    layer = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if layer[other] <= layer[name]
    ]


def table(graph: Graph) -> str:
    """Return one line per package, from top to bottom, and the totals."""
    order = [name for names in LAYERS for name in names if name in graph]
    lines = [f"{name:14} -> {', '.join(o for o in order if o in graph[name])}" for name in order]
    arrows = sum(map(len, graph.values()))
    return "\n".join([*lines, f"{len(graph)} packages, {floors(graph)} floors, {arrows} arrows"])


if __name__ == "__main__":
    print(table(import_graph()))
