"""The splits of a table: as its files divide it, by a column, or with a share cut off for testing.

A share is cut by a hash of each prompt. So rows with the same prompt are in the same split, and the
split of a row depends neither on the order of the rows nor on other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import Field, field_validator, model_validator

from firstcli.api import DataPaths, PluginOptions
from firstcli.errors import UserError, did_you_mean
from firstcli.tasks import layout
from firstcli.tasks.layout import Files
from firstcli.tasks.tables import TableRow, describe
from firstcli.tasks.templates import columns_of, fill

_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
"""What a column may call each split."""
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}


class TableOptions(PluginOptions):
    """The location of a table, and how it is divided into splits."""

    path: DataPaths = Field(description=layout.PATH_HELP)
    test: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the rows that becomes the split `test`, cut by a hash of the prompt; "
        "for data without a test split",
    )
    split_column: str | None = Field(
        None,
        min_length=1,
        description="column that names the split of each row: train, validation (or valid, val, "
        "dev) or test; for files that contain several splits",
    )
    id_column: str | None = Field(
        None, description="column with an id for each row (default: `id`, if it exists)"
    )

    @model_validator(mode="after")
    def _one_way_to_split(self) -> TableOptions:
        if self.test is not None and self.split_column is not None:
            raise ValueError("both `test` and `split_column` determine the test split; remove one")
        return self


_PLACES = {"name": layout.name_of, "folder": layout.folder_of}
"""What the option `group` may say of the file of a row."""


class GroupedTableOptions(TableOptions):
    """The location of a table of questions, which may belong to groups."""

    group: str | None = Field(
        None,
        min_length=1,
        description="column with the group of each question, such as its subject, over which the "
        "report also averages; or {name} or {folder}, which stand for the name of the data file "
        "(without its ending) and of its folder, for a path with one file or folder per group",
    )

    @field_validator("group")
    @classmethod
    def _names_a_column_or_a_file(cls, group: str | None) -> str | None:
        if group and ({*columns_of(group)} - {*_PLACES}):
            raise ValueError(
                "expected the name of a column, or a text in which only {name} and {folder} have a "
                "meaning"
            )
        return group

    def group_of(self, row: TableRow) -> str | None:
        """Return the group of a row's question, or None if there are no groups."""
        if self.group is None or not columns_of(self.group):
            return None if self.group is None else row.filled(self.group).strip()
        assert row.file
        file = row.file
        return fill(self.group, lambda name: _PLACES[name](file))


OptionsT = TypeVar("OptionsT", bound=TableOptions)


def over_files(options: OptionsT, path: Path | Sequence[Path]) -> OptionsT:
    """Return the options for other files, all of whose rows are used."""
    return options.model_copy(update={"path": path, "test": None, "split_column": None})


class TableSplits:
    """Which files, and which of their rows, belong to each split."""

    def __init__(self, options: TableOptions) -> None:
        """Read nothing yet; `options` locate and divide the table."""
        self._options = options

    @property
    def names(self) -> tuple[str, ...]:
        """The splits of a folder; train, validation and test for files; or those that are cut.

        Raises:
            UserError: the data have their own test split, or `layout.splits_at` fails.
        """
        options = self._options
        splits = layout.splits_at(options.path)
        if options.test is None and options.split_column is None:
            return splits
        is_one_table = layout.is_one_table(options.path)
        if options.split_column is not None:
            if not is_one_table:
                raise self._mistake("split_column", splits)
            return layout.SPLITS
        if is_one_table:
            return ("train", "test")
        if "test" in splits:
            raise self._mistake("test", splits)
        if "train" not in splits:
            raise UserError(
                f"{self._path}: there is no split 'train' from which `test` can be cut; there is "
                f"{', '.join(splits)}"
            )
        return (*splits, "test")

    @property
    def _path(self) -> str:
        path = self._options.path
        return str(path if isinstance(path, Path) else path[0])

    def _mistake(self, option: str, splits: Sequence[str]) -> UserError:
        return UserError(
            f"{self._path}: the data have the splits {', '.join(splits)}, so `{option}` cannot "
            "divide them again; remove this option, or let `path` name a file"
        )

    def files(self, split: str) -> Files:
        """Return the files that contain the rows of a split.

        Raises:
            UserError: there is no such split.
        """
        options = self._options
        if options.test is None and options.split_column is None:
            return layout.split_files(options.path, split)
        if split not in self.names:
            raise UserError(
                f"{self._path}: there is no split '{split}'{did_you_mean(split, self.names)}; "
                f"there is {', '.join(self.names)}"
            )
        cut = options.test is not None and split == "test"
        return layout.split_files(options.path, "train" if cut else split)

    def rows(self, split: str, rows: Iterable[TableRow]) -> Iterator[TableRow]:
        """Pass on the rows of `files(split)` that belong to a split, unless their prompts decide.

        Raises:
            UserError: the column does not name a split, or no row belongs to this one.
        """
        column, empty = self._options.split_column, True
        for row in rows:
            if column is None or _named_split(row, column) == split:
                empty = False
                yield row
        if empty and column is not None:
            raise UserError(f"{self._path}: no row has the split '{split}' in column '{column}'")

    def has_prompt(self, split: str, prompt: str, *, labelled: bool = True) -> bool:
        """Return whether rows with a prompt belong to a split, if a share is cut off.

        Args:
            split: the split.
            prompt: the rows' prompt.
            labelled: whether they have a label; rows without one all belong to `train`.
        """
        share = self._options.test
        if share is None or split not in ("train", "test"):
            return True
        if not labelled:
            return split == "train"
        return (_position(prompt) < share) == (split == "test")


def _position(prompt: str) -> float:
    """Return a number in [0, 1) that is uniform over prompts.

    Not the number by which the validation part is cut: the two cuts are independent.
    """
    digest = hashlib.sha256(b"test\0" + prompt.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:13], 16) / 16**13


def _named_split(row: TableRow, column: str) -> str:
    value = row.value(column)
    name = value.strip().casefold() if isinstance(value, str) else None
    if name in _SPLITS:
        return _SPLITS[name]
    expected = ", ".join(_NAMES)
    raise row.mistake(
        f"column '{column}': found {describe(value)}{did_you_mean(str(value), _SPLITS)}, expected "
        f"the name of a split: {expected}"
    )
