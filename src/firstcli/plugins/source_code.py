"""The source files of a plugin: what its results depend on besides its version."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

SUFFIXES = (".py", ".so", ".pyd")
DIGITS = 16  # of a digest; 64 bits tell all versions of one plugin apart


def files_of(package: str, module: str) -> dict[str, Path]:
    """Return the files of a plugin's code, by their name below the folder that is imported from.

    These are the files of the top-level package that the module belongs to, and all code that the
    distribution recorded when it was installed, which an editable installation does not record.
    Nothing is imported, except the parents of a module in a namespace package.
    """
    return dict(_recorded(package)) | dict(_of_module(module))


def digest_of(package: str, module: str) -> str:
    """Return a digest of a plugin's code; empty if there is no file to read, as in a zip archive.

    The files are read once per process and search path: a process that has imported the code does
    not notice later changes.
    """
    return _digest(package, module, tuple(sys.path))


@cache
def _digest(package: str, module: str, search_path: tuple[str, ...]) -> str:
    files = files_of(package, module)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:DIGITS] if files else ""


def _recorded(package: str) -> Iterator[tuple[str, Path]]:
    try:
        recorded = metadata.files(package) or ()
    except metadata.PackageNotFoundError:
        return
    for file in recorded:
        path = Path(str(file.locate()))
        # The finder of an editable installation contains only the project's place.
        if file.suffix in SUFFIXES and not file.name.startswith("__editable__") and path.is_file():
            yield file.as_posix(), path


def _of_module(module: str) -> Iterator[tuple[str, Path]]:
    try:
        spec = find_spec(module.partition(".")[0])
        if spec and spec.origin is None:  # a namespace, which several distributions can share
            spec = find_spec(module)
    except Exception:  # what the parents of the module raise; importing it reports this
        return
    if spec is None:
        return
    if spec.submodule_search_locations is None:
        origin = Path(spec.origin or "")
        if origin.is_file():
            yield origin.name, origin
        return
    for folder in map(Path, spec.submodule_search_locations):
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.relative_to(folder.parent).as_posix(), path
