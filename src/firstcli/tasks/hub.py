"""Where a published data set is found: on the hub, pinned, or in a local copy of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from firstcli.errors import UserError
from firstcli.tasks.tables import Row, read_rows


@dataclass(frozen=True, slots=True)
class Source:
    """A data set's address on the hub, and the names of its files as its authors publish them."""

    repo: str
    revision: str
    """The commit that is loaded unless the options name another."""
    config: str | None
    hub_splits: Mapping[str, str]
    """Our split names to the hub's."""
    files: Mapping[str, tuple[str, ...]]
    """Our split names to the official files, relative to a folder; the first that exists counts."""

    def splits(self, path: Path | None) -> tuple[str, ...]:
        """Name the splits at a path, or on the hub; a file is taken for any of them."""
        return tuple(self._files_in(path) if path and path.is_dir() else self.hub_splits)

    def rows(self, split: str, path: Path | None, revision: str | None) -> Iterator[Row]:
        """Read a split, row by row.

        Raises:
            UserError: the files are missing or malformed, or the hub cannot be reached.
        """
        if path is None:
            return self._from_hub(split, revision or self.revision)
        if not path.is_dir():
            return read_rows(path)
        files = self._files_in(path)
        if split not in files:
            raise UserError(f"{path}: the split '{split}' is missing: {self._wanted(split)}")
        return read_rows(files[split])

    def _files_in(self, folder: Path) -> dict[str, Path]:
        found = {
            split: next((folder / name for name in names if (folder / name).is_file()), None)
            for split, names in self.files.items()
        }
        present = {split: file for split, file in found.items() if file is not None}
        if not present:
            wanted = "; ".join(map(self._wanted, self.files))
            raise UserError(f"{folder}: none of the data set's files is in this folder: {wanted}")
        return present

    def _wanted(self, split: str) -> str:
        return f"{split} is {' or '.join(self.files[split])}"

    def _from_hub(self, split: str, revision: str) -> Iterator[Row]:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        name = self.hub_splits[split]
        try:
            data = load_dataset(self.repo, self.config, split=name, revision=revision)
        except (DatasetsError, OSError, ValueError) as error:
            raise UserError(
                f"data set '{self.repo}' at revision '{revision}' cannot be loaded from the hub: "
                f"{type(error).__name__}: {error}; without a connection, give the folder with the "
                "data set's own files as the task's option `path`"
            ) from error
        where = f"{self.repo} ({name})"
        return (Row(f"{where}, row {number}", values) for number, values in enumerate(data, 1))
