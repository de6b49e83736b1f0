"""What identifies the content of data and checkpoints; unchanged files are not read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from firstcli import __version__
from firstcli.api import ModelRef, Task
from firstcli.errors import UserError
from firstcli.recipe.evaluations import Evaluation
from firstcli.recipe.references import ModelSection, TaskRef
from firstcli.recipe.sections import Train
from firstcli.workspace.artifacts import Digests
from firstcli.workspace.memory import Memory
from firstcli.workspace.units import Role


class ContentDigests:
    """Digests of samples, remembered as long as the files do not change that they are read from."""

    def __init__(self, digests: Digests, memory: Memory) -> None:
        """Read nothing yet.

        Args:
            digests: digests of files.
            memory: what the run folder remembers.
        """
        self.digests, self.memory = digests, memory

    def of_training(
        self, section: Train, ref: TaskRef, make: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Return digests of the parts of the training data.

        Args:
            section: the recipe's section `train`.
            ref: the training task with adapted options.
            make: computes the digests.
        """
        what = f"training data, {section.validation} of it for validation{of_first(section)}"
        source = self.source(ref, "train")
        if section.unlabelled:
            what += f", {section.unlabelled.model_dump_json()}"
            if (path := section.unlabelled.path) is not None:
                more = self.source(ref, "train", ref.build_unlabelled(path))
                if source is not None and more is not None:
                    source |= {f"unlabelled {key}": value for key, value in more.items()}
                else:
                    source = None
        return self._remembered(what, source, make)

    def of_split(
        self, what: str, ref: TaskRef, split: str, make: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Return digests of a split, remembered as long as its source does not change.

        Args:
            what: what has the digests, for the run folder's memory.
            ref: the task.
            split: the split.
            make: computes the digests.
        """
        return self._remembered(what, self.source(ref, split), make)

    def _remembered(
        self, what: str, source: dict[str, str] | None, make: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Return digests of data, remembered as long as their sources do not change."""
        if source is None:
            return make()
        return self.memory.recall(f"content of the {what}", source, make)

    def source(
        self, ref: TaskRef, split: str, task: Task[Any] | None = None
    ) -> dict[str, str] | None:
        """Return what identifies a split's content; None if only reading the split can tell.

        Args:
            ref: the task.
            split: the split.
            task: the task over other files, if not over its own.
        """
        task = task or ref.build()
        files = task.sources(split) if split in task.splits else None
        if files is None or not all(file.is_file() for file in files):
            return None
        return {
            "task": " ".join((ref.identity, ref.source)).strip(),
            "options": as_json(ref.effective),
            "split": split,
            "files": ", ".join(self.digests.of_file(file) for file in files),
            "firstcli": __version__,
        }

    def of_checkpoint(self, role: Role, section: ModelSection) -> str:
        """Return what identifies a checkpoint: a folder's content, or a hub id and revision."""
        ref = ModelRef(section.checkpoint, section.revision)
        if ref.folder is None:
            return f"{ref.checkpoint}@{ref.revision}"
        if not ref.folder.is_dir():
            raise UserError(f"{role}.model.checkpoint: {ref.folder} is not a folder")
        return self.digests.of_checkpoint(ref.folder)


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def of_first(section: Train | Evaluation) -> str:
    return f", the first {section.limit}" if section.limit else ""
