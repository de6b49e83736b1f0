"""The files of each split: of a file, a list or a glob, and of the usual folders.

These are folders with one file per split, clones and snapshots of data sets on the hub with their
shards, and what `datasets` saves with `save_to_disk`. Names decide, as on the hub; `datasets` is
not used because its import takes seconds, and because messages name files and lines.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from firstcli.errors import UserError, did_you_mean, shortened
from firstcli.tasks.formats import ENDINGS, DataFile, data_file

Files = tuple[Path, ...]
"""The files that are read as one, in order."""

PATH_HELP = (
    "a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, also as .gz, .zst or .zip, used for "
    "every split; a list of files or a glob such as data/*.jsonl, read as one; or a folder with "
    "one file per split, such as train.csv and dev.csv, a clone from the hub, or what "
    "`save_to_disk` wrote; .json is read into memory whole, so use .jsonl for large data"
)
"""What the option `path` of a task may be."""

SPLITS = ("train", "validation", "test")
_ALIASES = {"dev": "validation", "valid": "validation", "val": "validation"}
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?")
_FIRST_CHOICE = {".jsonl", ".json", ".csv", ".parquet"}
DEEPEST = 2  # levels of folders between the given one and its data files


def splits_at(path: Path | Sequence[Path]) -> tuple[str, ...]:
    """Return the splits of a folder; a single file, a list and a glob serve as any usual split.

    Raises:
        UserError: there is no data, or the files of a split are ambiguous or incomplete.
    """
    return tuple(_files_by_split(path))


def is_one_table(path: Path | Sequence[Path]) -> bool:
    """Return whether the same files serve as every split.

    Raises:
        UserError: `splits_at` fails.
    """
    files = _files_by_split(path)
    return set(files) == set(SPLITS) and len(set(files.values())) == 1


def split_files(path: Path | Sequence[Path], split: str) -> Files:
    """Return the files of a split.

    Raises:
        UserError: there is no such split, or `splits_at` fails.
    """
    files = _files_by_split(path)
    if split not in files:
        shown = path if isinstance(path, Path) else shortened([str(part) for part in path], 3)
        raise UserError(
            f"{shown}: no file for the split '{split}'{did_you_mean(split, files)}; "
            f"there is {shortened(list(files))}"
        )
    return files[split]


def _files_by_split(path: Path | Sequence[Path]) -> dict[str, Files]:
    """Map each split to its files; folders in a list contribute the splits that all of them have.

    Args:
        path: a file, a folder, a glob, or a list of these.
    """
    given = [path] if isinstance(path, Path) else path
    paths = list(chain.from_iterable(map(_matches, given)))
    if repeated := sorted({str(path) for path in paths if paths.count(path) > 1}):
        raise UserError(f"path: {shortened(repeated)} is listed or matched more than once")
    layouts = [_layout(path) for path in paths]
    common = [split for split in layouts[0] if all(split in layout for layout in layouts)]
    if not common:
        raise UserError(
            f"path: there is no split that all of {shortened(list(map(str, paths)))} have"
        )
    ordered = (
        *(split for split in SPLITS if split in common),
        *sorted(set(common) - set(SPLITS)),
    )
    return {
        split: tuple(chain.from_iterable(layout[split] for layout in layouts)) for split in ordered
    }


def _matches(path: Path) -> list[Path]:
    """Return what a glob matches, sorted; a path that exists stands for itself."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    usable = [match for match in matches if match.is_dir() or _may_be_data(match)]
    if not matches:
        raise UserError(f"{path}: no file or folder matches this pattern")
    names = [name_of(match) for match in usable if not match.is_dir()]
    mixed = sorted({_ALIASES.get(name, name) for name in names} & set(SPLITS))
    if len(mixed) > 1:
        raise UserError(
            f"{path}: matches files of different splits ({', '.join(mixed)}), which would be read "
            "as one; give their folder, or a pattern for one split"
        )
    return usable or matches


def _may_be_data(file: Path) -> bool:
    return data_file(file) is not None and file.name not in _METADATA


def name_of(file: Path) -> str:
    """Return a data file's name without its endings and without the number of its shard."""
    known = data_file(file)
    stem = known.stem if known else file.stem
    shard = _SHARD.fullmatch(stem)
    return shard[1] if shard else stem


def folder_of(file: Path) -> str:
    """Return the name of a data file's folder; layouts put `data` or a split's name between."""
    names = [folder.name for folder in file.absolute().parents]
    between = {"data", *SPLITS, *_ALIASES}
    return next((name for name in names if name.lower() not in between), names[0])


def _layout(path: Path) -> dict[str, Files]:
    if not path.is_dir():
        return dict.fromkeys(SPLITS, (path,))
    files = folder_layout(path)
    if not files:
        raise UserError(f"{path}: there is no file that ends in {ENDINGS} in this folder")
    return files


def folder_layout(folder: Path, depth: int = 0) -> dict[str, Files]:
    """Map the splits of a folder to their files; empty if there are none.

    Args:
        folder: an existing folder.
        depth: number of folders above it that have been searched.

    Raises:
        UserError: the files of a split are ambiguous or incomplete, or several folders hold data.
    """
    if (folder / "state.json").is_file():
        return dict.fromkeys(SPLITS, _saved(folder))
    if (folder / "dataset_dict.json").is_file():
        names = _json_list(folder / "dataset_dict.json", "splits")
        return {_ALIASES.get(name, name): _saved(folder / name) for name in names}
    paths = _listed(folder)
    files = _by_name(folder, paths)
    if depth == DEEPEST or files.keys() & set(SPLITS):
        return files
    folders = [path for path in paths if path.is_dir()]
    if files:  # other files may lie beside the folder `data` of a data set from the hub
        folders = [path for path in folders if path.name == "data"]
    return _of_folders(folder, folders, depth) or files


def _of_folders(parent: Path, folders: Sequence[Path], depth: int) -> dict[str, Files]:
    """Find the data below a folder: one folder per split, `data`, or the only one with data."""
    names = {_ALIASES.get(path.name, path.name): path for path in folders}
    if names.keys() & set(SPLITS):
        shards = {split: _shards(path) for split, path in names.items()}
        if any(shards.values()):
            return {split: files for split, files in shards.items() if files}
    if parent.joinpath("snapshots").is_dir():  # a data set in the cache of the hub
        folders = [path for path in _listed(parent / "snapshots") if path.is_dir()]
        depth -= 1
    layouts = {path: files for path in folders if (files := folder_layout(path, depth + 1))}
    if (data := parent / "data") in layouts:
        return layouts[data]
    if len(layouts) > 1:
        listed = shortened([path.name for path in layouts], 10)
        raise UserError(f"{parent}: several folders hold data: {listed}; give the path of one")
    return next(iter(layouts.values()), {})


def _listed(folder: Path) -> list[Path]:
    """Return what a folder contains, except hidden files and descriptions of a data set."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    return [path for path in paths if path.name not in _METADATA and path.name[0] != "."]


def _shards(folder: Path) -> Files:
    """Return all data files of a folder that holds one split."""
    if (folder / "state.json").is_file():
        return _saved(folder)
    files = [file for path in _listed(folder) if path.is_file() and (file := data_file(path))]
    if len({file.ending for file in files}) > 1:
        names = shortened([file.path.name for file in files])
        raise UserError(f"{folder}: the files of this split have different formats: {names}")
    return tuple(file.path for file in files)


def _by_name(folder: Path, paths: Iterable[Path]) -> dict[str, Files]:
    """Group files by the split that their names state: `train.csv`, `train-00000-of-00002.csv`."""
    groups: dict[str, list[DataFile]] = {}
    for path in paths:
        if (file := data_file(path)) and path.is_file():
            shard = _SHARD.fullmatch(file.stem)
            name = shard[1] if shard else file.stem
            groups.setdefault(_ALIASES.get(name, name), []).append(file)
    return {split: _of_split(folder, split, group) for split, group in groups.items()}


def _of_split(folder: Path, split: str, files: list[DataFile]) -> Files:
    """Return the file of a split, or all its shards."""
    # Compressed copies and other formats often lie beside the plain file.
    files = [file for file in files if file.path.suffix.lower() in _FIRST_CHOICE] or files
    paths = tuple(file.path for file in files)
    shards = [_SHARD.fullmatch(file.stem) for file in files]
    numbers = [int(shard[2]) for shard in shards if shard]
    totals = {int(shard[3]) for shard in shards if shard}
    if not numbers and len(files) == 1:
        return paths
    if len(numbers) < len(files) or len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise UserError(
            f"{folder}: both '{paths[0].name}' and '{paths[1].name}' can be the split "
            f"'{split}'; keep one, or give the path of a file instead of a folder"
        )
    (total,) = totals
    if numbers != list(range(total)):
        missing = sorted(set(range(total)) - set(numbers))
        raise UserError(
            f"{folder}: split '{split}' is incomplete: of its {total} files, {len(missing)} are "
            f"missing, such as number {missing[0]:05}"
        )
    return paths


def _saved(folder: Path) -> Files:
    """Return the files of a data set that `datasets` saved; its cache files lie beside them.

    Raises:
        UserError: the list of files is damaged, or one of them is missing.
    """
    state = folder / "state.json"
    try:
        names = [str(entry["filename"]) for entry in _json_list(state, "_data_files")]
    except (TypeError, KeyError):
        raise UserError(f"{state}: expected the file names of a saved data set") from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {shortened(missing)}, listed in state.json, is missing")
    return tuple(folder / name for name in names)


def _json_list(path: Path, key: str) -> list[Any]:
    try:
        values = json.loads(path.read_text("utf-8"))[key]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as what `save_to_disk` writes: {error}") from error
    return list(values)
