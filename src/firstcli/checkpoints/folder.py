"""What a checkpoint's folder holds, as far as its files show without loading any weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from firstcli.errors import UserError, shortened

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Maps each weight's name to its file, if there are several."""
ADAPTER = "adapter_config.json"

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_POINTER = 1024  # bytes
READ_SUFFIXES = (".json", ".model", ".txt", ".jinja")
"""Files besides the weights that configuration and tokenizer are read from."""

ADAPTER_WEIGHT = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b|^base_model\.model\.")
QUANTIZED_WEIGHT = re.compile(r"\.(qweight|qzeros|absmax|nested_absmax|quant_map|SCB)$")

MERGE = (
    "merge it into its base model with peft (`merge_and_unload()`, then `save_pretrained`) and "
    "give the merged folder"
)
BESIDE_WEIGHTS = (
    f"holds an adapter ({ADAPTER}) beside a model's weights; {MERGE}, or remove the adapter"
)


def check_folder(folder: Path) -> None:
    """Check that a folder holds the readable weights of one whole model.

    Raises:
        UserError: it holds Git LFS pointers, an adapter beside weights, no safetensors or only
            some of them, damaged ones, or quantised weights that its configuration does not
            declare.
    """
    if not folder.is_dir():
        raise problem_of(folder, "no such folder; give a Hugging Face model folder or a hub id")
    files = weight_files(folder)
    read = {*files, *(path for path in folder.iterdir() if path.suffix in READ_SUFFIXES)}
    refuse_pointers(folder, read)
    if (folder / ADAPTER).is_file():
        raise problem_of(folder, BESIDE_WEIGHTS)
    if not (folder / "config.json").is_file():
        raise problem_of(folder, "has no config.json; give a Hugging Face model folder or a hub id")
    _check_files(folder, files)
    names = [name for path in files for name in weight_names(folder, path)]
    if adapters := [name for name in names if ADAPTER_WEIGHT.search(name)]:
        raise problem_of(
            folder, f"holds adapter weights, such as {shortened(adapters, 1)}; {MERGE}"
        )
    quantized = [name for name in names if QUANTIZED_WEIGHT.search(name)]
    if quantized and "quantization_config" not in read_json(folder / "config.json"):
        raise problem_of(
            folder,
            f"holds quantised weights, such as {shortened(quantized, 1)}, but its config.json has "
            "no quantization_config; add the one that the weights were made with, or give a "
            "checkpoint that is not quantised",
        )


def refuse_pointers(folder: Path, files: Iterable[Path]) -> None:
    """Check that no file is a pointer of Git LFS in place of the file itself."""
    if pointers := sorted(path.name for path in files if _is_pointer(path)):
        raise problem_of(
            folder,
            f"holds Git LFS pointers in place of files, such as {shortened(pointers, 2)}; run "
            "`git lfs pull` in the folder",
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the files that weights are loaded from, present or not; empty if there are none."""
    given = read_json(folder / "config.json").get("transformers_weights")
    for name in (str(given or WEIGHTS), INDEX):
        if not (folder / name).exists():
            continue
        if not name.endswith(".json"):
            return [folder / name]
        weight_map = read_json(folder / name).get("weight_map")
        if isinstance(weight_map, dict):
            return sorted({folder / str(file) for file in weight_map.values()})
    return []


def count_weights(folder: Path) -> int:
    """Return the number of weights in the safetensors files of a folder."""
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            names: list[str] = list(file.keys())
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return count


def stored_dtype(folder: Path) -> str | None:
    """Return the dtype of a folder's first weight of floating point, or None if it has none."""
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            found = (names.get(file.get_slice(name).get_dtype()) for name in file.keys())  # noqa: SIM118
            if dtype := next(filter(None, found), None):
                return dtype
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty if the file is absent or is none, which other readers report."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_files(folder: Path, files: list[Path]) -> None:
    """Check that the weights are there."""
    if not files:
        others = [
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".gguf")
        ]
        instead = f", only {shortened(sorted(others), 2)}" if others else ""
        raise problem_of(
            folder,
            f"has no {WEIGHTS}{instead}; firstcli loads no other format, so convert the weights "
            "with `save_pretrained`",
        )
    if missing := [path.name for path in files if not path.is_file()]:
        raise problem_of(
            folder,
            f"{len(missing)} of {len(files)} files that {INDEX} names are missing, such as "
            f"{shortened(missing, 1)}; download them",
        )


def weight_names(folder: Path, path: Path) -> Iterator[str]:
    """Yield the names of the weights in a file; its header states them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            yield from file.keys()
    except SafetensorError as error:
        raise problem_of(
            folder, f"{path.name} is damaged or incomplete ({error}); download it again"
        ) from error


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > LONGEST_POINTER:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def problem_of(folder: Path, problem: str) -> UserError:
    """Return the error of a checkpoint's folder."""
    return UserError(f"checkpoint {folder}: {problem}")
