"""The layout: imports run one way, class names are unique, and stages own themselves."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError
from pathlib import Path

import pytest

from firstcli.stages import STAGES
from support.import_graph import LAYERS, arrows_upward, floors, import_graph, table
from support.paths import DOCS, SOURCE


def test_every_package_has_its_layer() -> None:
    assert set(import_graph()) == {name for names in LAYERS for name in names}


def test_packages_import_only_from_packages_below() -> None:
    graph = import_graph()
    assert arrows_upward(graph) == [], table(graph)


@pytest.mark.parametrize("modules", [False, True])
def test_imports_have_no_circle(modules: bool) -> None:
    graph = import_graph(modules=modules)
    try:
        floors(graph)
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


def test_an_upward_import_and_a_circle_are_found(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text("def late():\n    from firstcli.data import splits\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "splits.py").write_text("from firstcli.errors import UserError\n")
    graph = import_graph(tmp_path)
    assert arrows_upward(graph) == ["errors -> data"]
    with pytest.raises(CycleError):
        floors(graph)


def test_the_picture_shows_every_package_and_stage() -> None:
    picture = (DOCS / "figures" / "architecture.svg").read_text("utf-8")
    names = set(import_graph()) - {"firstcli", "__main__"} | {stage.name for stage in STAGES}
    assert [name for name in sorted(names) if f">{name}<" not in picture] == []


def test_a_class_name_has_one_meaning() -> None:
    names = Counter(
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_public_functions_with_four_parameters_document_them() -> None:
    missing = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and not _is_private_or_a_command(node):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
                text = ast.get_docstring(node)
                if count >= 4 and text is not None and "Args:" not in text:
                    missing.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}")
    assert missing == []


def _is_private_or_a_command(node: ast.FunctionDef) -> bool:
    """Commands are exempt: their docstring is the text of `--help`."""
    decorators = " ".join(map(ast.unparse, node.decorator_list))
    return node.name.startswith("_") or "app.c" in decorators


def test_no_stage_is_named_by_a_string_outside_its_module() -> None:
    """Only the module that declares a stage may spell its name."""
    names = {stage.name: type(stage).__module__ for stage in STAGES}
    spelt = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(("firstcli", *path.relative_to(SOURCE).with_suffix("").parts))
        if module.split(".")[1] not in ("cli", "commands", "pipeline", "stages", "workspace"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and names.get(str(node.value), module) != module:
                spelt.append(f"{path.relative_to(SOURCE)}:{node.lineno} {node.value!r}")
    assert spelt == []
