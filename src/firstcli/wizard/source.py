"""Which files a path stands for, and how a recipe names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from firstcli.errors import UserError, shortened
from firstcli.tasks import layout, tables
from firstcli.tasks.layout import Files

TRAIN, TEST = "train", "test"
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|dev|val|valid|validation|test|eval)(?![a-z])")


@dataclass(frozen=True, slots=True)
class DataSource:
    """The files of a table, by split."""

    given: Path
    """The path that the user gave: a file, a folder or a glob."""
    path: Path
    """What the recipe's `path` is: the same, or a glob of the files in a folder."""
    train: Files
    others: Mapping[str, Files] = field(default_factory=dict)
    """The files of the other splits; empty if there are no splits."""

    def rows(self, split: str = TRAIN, notes: list[str] | None = None) -> Iterator[tables.TableRow]:
        """Read a split row by row.

        Raises:
            UserError: a file is malformed; raised when the iteration reaches the mistake.
        """
        return tables.read_rows(self.train if split == TRAIN else self.others[split], notes)

    @property
    def name(self) -> str:
        """A name for the run: the file's or the folder's, in letters that a folder may have."""
        given = self.given.absolute()
        stem = given.name if given.is_dir() else layout.name_of(given)
        cleaned = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:100]
        return cleaned or "my-data"

    def without_splits(self) -> DataSource:
        """Return the training files alone, as a table from which the test rows must be cut."""
        path = self.train[0] if len(self.train) == 1 else _glob_of(self.given, self.train)
        return DataSource(self.given, path, self.train)


def source_at(path: Path) -> DataSource:
    """Find the files of a path.

    A folder whose files are named like no split is one table, if they have the same columns.

    Raises:
        UserError: there is no data, the files of a split are incomplete, or they are several
            tables.
    """
    splits = layout.splits_at(path)
    files = {split: layout.split_files(path, split) for split in splits}
    if len(set(files.values())) == 1 and TRAIN in files:
        return DataSource(path, path, files[TRAIN])
    if TRAIN in files:
        return DataSource(path, path, files[TRAIN], {k: v for k, v in files.items() if k != TRAIN})
    if set(files) & set(layout.SPLITS):
        raise UserError(
            f"{path}: there is no file for the split 'train', only for {shortened(list(files))}; "
            "give the path of the training file"
        )
    every = tuple(file for split in splits for file in files[split])
    if len(every) == 1:
        return DataSource(path, every[0], every)
    if parts := [file.name for file in every if _SPLIT_WORD.search(file.name.casefold())]:
        raise UserError(
            f"{path}: {shortened(parts)} may be different splits, whose files should be called "
            "train, validation and test; rename them, or give the path of the training file"
        )
    if len({_columns(file) for file in every}) > 1:
        raise UserError(
            f"{path}: the files {shortened([file.name for file in every])} have different columns; "
            "give the path of one of them, or name them train and test"
        )
    return DataSource(path, _glob_of(path, every), every)


def _columns(file: Path) -> frozenset[str]:
    return frozenset(name for row in islice(tables.read_rows(file), 1) for name in row.values)


def _glob_of(folder: Path, files: Files) -> Path:
    """Return a glob that matches exactly these files.

    Raises:
        UserError: there is none.
    """
    start = files[0].name[: len(_common_start([file.name for file in files]))]
    for ending in ("".join(files[0].suffixes[-2:]), files[0].suffix):
        pattern = files[0].parent / f"{start}*{ending}"
        if sorted(files[0].parent.glob(pattern.name)) == sorted(files):
            return pattern
    raise UserError(
        f"{folder}: no pattern matches its files and nothing else; give one, such as "
        f"'{files[0].parent}/*{files[0].suffix}'"
    )


def _common_start(names: list[str]) -> str:
    shortest = min(names, key=len)
    return next(
        (
            shortest[:length]
            for length in range(len(shortest), 0, -1)
            if all(name.startswith(shortest[:length]) for name in names)
        ),
        "",
    )
