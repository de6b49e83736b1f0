"""The location of a published data set: a pinned revision on the hub, or a local copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from firstcli.errors import UserError
from firstcli.tasks.tables import TableRow, read_rows


@dataclass(frozen=True, slots=True)
class Source:
    """A data set's address on the hub, and the names of its officially published files."""

    repo: str
    revision: str
    """The commit that is loaded unless the options name a different one."""
    config: str | None
    hub_splits: Mapping[str, str]
    """Maps firstcli's split names to those of the hub."""
    files: Mapping[str, tuple[str, ...]]
    """Maps a split to possible file names, relative to a folder; the first that exists is used."""

    def splits(self, path: Path | None) -> tuple[str, ...]:
        """Return the splits in a folder or on the hub; a single file serves as any split."""
        return tuple(self._files_in(path) if path and path.is_dir() else self.hub_splits)

    def file(self, split: str, path: Path) -> Path:
        """Return the local file of a split.

        Raises:
            UserError: the folder `path` does not contain it.
        """
        if not path.is_dir():
            return path
        files = self._files_in(path)
        if split not in files:
            raise UserError(f"{path}: the split '{split}' is missing: {self._names(split)}")
        return files[split]

    def rows(self, split: str, path: Path | None, revision: str | None) -> Iterator[TableRow]:
        """Read a split row by row.

        Raises:
            UserError: the files are missing or malformed, or the hub cannot be reached.
        """
        if path is None:
            return self._from_hub(split, revision or self.revision)
        return read_rows(self.file(split, path))

    def _files_in(self, folder: Path) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for split, names in self.files.items():
            if existing := [folder / name for name in names if (folder / name).is_file()]:
                files[split] = existing[0]
        if not files:
            expected = "; ".join(map(self._names, self.files))
            raise UserError(f"{folder}: none of the data set's files is in this folder: {expected}")
        return files

    def _names(self, split: str) -> str:
        return f"{split} is {' or '.join(self.files[split])}"

    def _from_hub(self, split: str, revision: str) -> Iterator[TableRow]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        name = self.hub_splits[split]
        try:
            data = load_dataset(self.repo, self.config, split=name, revision=revision)
        except (DatasetsError, OSError, ValueError) as error:
            raise UserError(
                f"data set '{self.repo}' at revision '{revision}' cannot be loaded from the hub: "
                f"{type(error).__name__}: {error}; without a connection, set the task's option "
                "`path` to the folder with the data set's official files"
            ) from error
        where = f"{self.repo} ({name})"
        return (TableRow(f"{where}, row {number}", values) for number, values in enumerate(data, 1))
