"""Convert an exported folder to GGUF with llama.cpp's own converter, and measure the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from firstcli.errors import UserError
from firstcli.runtime.files import sync

CONVERTER = "convert_hf_to_gguf.py"
QUANTIZER = "llama-quantize"
HOME = "LLAMA_CPP"
"""Environment variable: the folder of llama.cpp."""
CONVERTED = ("f32", "f16", "bf16", "q8_0")
"""Types that the converter writes itself; all others need the quantizer."""
_INSTALL = (
    "clone https://github.com/ggml-org/llama.cpp, build it, `pip install gguf`, and set the "
    f"environment variable {HOME} to its folder"
)


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of llama.cpp that a conversion needs."""

    converter: Path
    quantizer: Path | None


def find_tools(target: Path, kind: str) -> Tools:
    """Find what a conversion needs, before any work.

    Args:
        target: the file to write.
        kind: its type, such as `f16` or `Q4_K_M`.

    Raises:
        UserError: a program is missing, or the file exists.
    """
    if target.exists():
        raise UserError(f"--gguf {target}: exists already; choose a different name, or delete it")
    converter = _program(CONVERTER, ("",))
    if converter is None:
        raise UserError(f"--gguf needs llama.cpp's {CONVERTER}, which is not found; {_INSTALL}")
    quantizer = None
    if kind.lower() not in CONVERTED:
        quantizer = _program(QUANTIZER, ("build/bin", ""))
        if quantizer is None:
            raise UserError(
                f"--gguf-type {kind} needs llama.cpp's {QUANTIZER}, which is not found; "
                f"{_INSTALL}, or choose {', '.join(CONVERTED)}"
            )
    return Tools(converter, quantizer)


def _program(name: str, places: tuple[str, ...]) -> Path | None:
    home = os.environ.get(HOME)
    inside = [Path(home).expanduser() / place / name for place in places] if home else []
    on_path = shutil.which(name)
    return next((path for path in inside if path.is_file()), Path(on_path) if on_path else None)


def convert(tools: Tools, folder: Path, target: Path, kind: str) -> None:
    """Write a GGUF file; it appears whole or not at all.

    Args:
        tools: the programs.
        folder: an exported folder.
        target: the file.
        kind: its type.

    Raises:
        UserError: a program fails; its last words are in the message.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    whole, partial = (target.with_name(f".{target.name}.{end}") for end in ("f32", "partial"))
    try:
        first, type_of_first = (whole, "f32") if tools.quantizer else (partial, kind.lower())
        arguments = ("--outfile", first, "--outtype", type_of_first)
        _run(sys.executable, tools.converter, folder, *arguments)
        if tools.quantizer:
            _run(tools.quantizer, whole, partial, kind.upper())
        sync(partial)
        os.rename(partial, target)
        sync(target.parent)
    finally:
        for path in (whole, partial):
            path.unlink(missing_ok=True)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        words = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-1:])
        name = next(Path(part).name for part in command if part != sys.executable)
        raise UserError(f"--gguf: {name} failed ({words[:300] or f'code {done.returncode}'})")


def unreadable() -> str | None:
    """Return why a GGUF file cannot be measured here, or None; transformers reads it."""
    if find_spec("gguf") is None:
        return "install the package `gguf` to measure the file: `pip install gguf`"
    return None
