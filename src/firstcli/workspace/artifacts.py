"""Artifacts, their work folders and their manifests.

An artifact is a folder (`students/first/`, with its manifest inside) or one file
(`calibration/first.json`, with its manifest next to it). Work happens in a hidden sibling
(`students/.first.partial/`). A killed run leaves it behind, and the next run resumes there. The
finished artifact replaces the old one, so a stale artifact stays until its successor is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firstcli.checkpoints import adapters
from firstcli.errors import UserError
from firstcli.runtime.files import suppress_read_only, sync, write_json, write_text

CHECKPOINTS = "checkpoints"
"""Folder inside a work folder from which training resumes; it is not part of the artifact."""
_MARK = ".fingerprint"

FORMAT = 2
"""Format of manifests. Format 1 recorded neither versions of plugins nor defaults of options.
A manifest of a newer firstcli is never mistaken for a missing one."""

SIDECARS = ("firstcli.json", "README.md", "reliability.png")
"""Files in the folder of a trained model that describe it. They are written again when more is
known about the model, so they are no part of the artifact: manifests do not cover them, and those
of earlier versions that cover a README.md stay valid whatever it contains."""

INCIDENTAL = (*SIDECARS, "training_log.jsonl", "manifest.json", "concentration.json")
"""Files that describe how an artifact was made; they do not count as its content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact was made from and what it consists of."""

    unit: str
    fingerprint: str
    inputs: dict[str, str]
    """Everything that the fingerprint covers, so that a plan can say what changed."""
    content: str
    """Digest of the files that matter to dependants."""
    files: dict[str, dict[str, Any]]
    """Size in bytes and SHA-256 of every file, by relative name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers to show: positions, loss, temperature, ..."""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """Return the content of the manifest's file, which calls the inputs `reads`."""
        content = asdict(self)
        return {**content, "reads": content.pop("inputs")}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Manifest:
        """Return the manifest that `as_json` wrote.

        Raises:
            TypeError: a key is missing or unknown.
        """
        renamed = {"inputs" if key == "reads" else key: value for key, value in content.items()}
        return cls(**{"format": 1, **renamed})


def fingerprint(inputs: Mapping[str, str]) -> str:
    """Return one digest of everything that a unit's result depends on."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Describe how two sets of fingerprint inputs differ, one phrase per key."""

    def phrase(key: str) -> str:
        before, after = old.get(key), new.get(key)
        if before is not None and after is not None and len(before) + len(after) < 120:
            return f"{key} changed ({before} -> {after})"
        return f"{key} changed" if before and after else f"{key} {'removed' if before else 'added'}"

    return [phrase(key) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


class Digests:
    """SHA-256 of files, remembered by size and modification time, so large files are read once."""

    def __init__(self, memory: Path = Path(os.devnull)) -> None:
        self._path = memory
        self._changed = False
        try:
            self._known: dict[str, Any] = json.loads(memory.read_text("utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of_file(self, path: Path) -> str:
        stat = path.stat()
        key = os.path.relpath(path.resolve(), self._path.parent.resolve())
        identity = [stat.st_size, stat.st_mtime_ns]
        if (known := self._known.get(key)) is None or known[:2] != identity:
            with path.open("rb") as file:
                known = [*identity, hashlib.file_digest(file, "sha256").hexdigest()]
            self._known[key] = known
            self._changed = True
        return str(known[2])

    def of_checkpoint(self, folder: Path) -> str:
        """Return a digest of a model folder: weights, configuration and tokenizer.

        Of an adapter, the content of its base model counts, or its hub id and revision.

        Raises:
            UserError: the base model is not there.
        """
        kept = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
        content = {
            path.name: self.of_file(path)
            for path in folder.iterdir()
            if path.suffix in kept and path.is_file() and path.name not in INCIDENTAL
        }
        if adapters.is_adapter(folder):
            base, *_ = adapters.bases(folder)
            content["base model"] = (
                f"{base.checkpoint}@{base.revision}"
                if base.folder is None
                else self.of_checkpoint(base.folder)
            )
        return fingerprint(content)

    def save(self) -> None:
        """Write the digests, if any was added."""
        if self._changed:
            with suppress_read_only():
                write_json(self._path, self._known)
            self._changed = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """The place of one unit's result."""

    path: Path
    is_folder: bool

    @property
    def manifest_path(self) -> Path:
        if self.is_folder:
            return self.path / "manifest.json"
        return self.path.with_suffix(".manifest.json")

    @property
    def _place(self) -> Path:
        """The path, or the target of a symbolic link to a folder.

        Work happens next to the target, because a user has moved the artifact there for its space,
        and a folder cannot be renamed onto a link.
        """
        return self.path.resolve() if self.is_folder and self.path.is_symlink() else self.path

    @property
    def work(self) -> Path:
        return self._hidden("partial")

    @property
    def _old(self) -> Path:
        return self._hidden("old")

    def _hidden(self, ending: str) -> Path:
        # A folder's name may contain a dot that starts no suffix, such as an arm `first.v2`.
        place = self._place
        name = place.name if self.is_folder else place.stem
        return place.parent / f".{name}.{ending}"

    def manifest(self, digests: Digests) -> Manifest | None:
        """Return the manifest of a finished and undamaged artifact, else None.

        Raises:
            UserError: a newer firstcli wrote it.
        """
        manifest = self.written()
        return None if manifest is None or self._damaged(manifest, digests) else manifest

    def damage(self, digests: Digests) -> list[str]:
        """Return the names of a finished artifact's files that are missing or have changed.

        A disk error changes neither size nor time: only `Digests()` without memory detects it.
        """
        if manifest := self.written():
            return self._damaged(manifest, digests)
        # A finished folder always contains its manifest.
        exists = self.path.exists() if self.is_folder else self.manifest_path.exists()
        return [self.manifest_path.name] if exists else []

    def written(self) -> Manifest | None:
        """Return the manifest as it was written, even if files have changed since."""
        try:
            content = json.loads(self.manifest_path.read_text("utf-8"))
            if content.get("format", 1) > FORMAT:
                raise UserError(
                    f"{self.manifest_path}: written by a newer firstcli (format "
                    f"{content['format']}, this version reads up to {FORMAT}); upgrade "
                    "firstcli, or choose a different --run-dir"
                )
            manifest = Manifest.from_json(content)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        # A flipped bit is damage, not a changed recipe.
        return manifest if manifest.fingerprint == fingerprint(manifest.inputs) else None

    def _damaged(self, manifest: Manifest, digests: Digests) -> list[str]:
        root = self.path if self.is_folder else self.path.parent
        return [
            name
            for name, facts in manifest.files.items()
            if name not in SIDECARS
            and (
                not (path := root / name).is_file()
                or path.stat().st_size != facts["size"]
                or digests.of_file(path) != facts["sha256"]
            )
        ]

    def reopen(self, damaged: Iterable[str], fingerprint: str) -> None:
        """Turn a finished folder back into a work folder, without its damaged files.

        Args:
            damaged: names of the damaged files.
            fingerprint: that of the work which `begin` will resume.
        """
        assert self.is_folder
        shutil.rmtree(self.work, ignore_errors=True)
        for name in damaged:
            (self.path / name).unlink(missing_ok=True)
        # Until the manifest is deleted, `recover` undoes all this and the damage is found again.
        os.rename(self._place, self.work)
        sync(self.work.parent)
        write_text(self.work / _MARK, fingerprint)
        (self.work / "manifest.json").unlink()
        sync(self.work)

    def is_begun(self, fingerprint: str) -> bool:
        """Return whether an interrupted run of the same work left a work folder."""
        mark = self.work / _MARK
        return mark.is_file() and mark.read_text("utf-8") == fingerprint

    def begin(self, fingerprint: str) -> Path:
        """Return the work folder, with what an interrupted run of the same work left there."""
        if not self.is_begun(fingerprint):
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            write_text(self.work / _MARK, fingerprint)
        return self.work

    def commit(
        self,
        unit: str,
        inputs: Mapping[str, str],
        facts: dict[str, Any],
        seconds: float,
        versions: dict[str, str],
        digests: Digests,
    ) -> Manifest:
        """Turn the work folder's content into the artifact; the manifest is written last.

        Args:
            unit: key of the unit.
            inputs: everything that the fingerprint covers.
            facts: numbers to show, as JSON values.
            seconds: how long the work took.
            versions: package versions, for information.
            digests: digests of files.
        """
        names = {
            path.relative_to(self.work).as_posix(): path
            for path in sorted(self.work.rglob("*"))
            if path.is_file() and path.relative_to(self.work).parts[0] != CHECKPOINTS
        }
        names = {name: path for name, path in names.items() if not name.startswith(".")}
        files = {
            name: {"size": path.stat().st_size, "sha256": digests.of_file(path)}
            for name, path in names.items()
            if name not in SIDECARS
        }
        content = {n: str(f["sha256"]) for n, f in files.items() if n not in INCIDENTAL}
        manifest = Manifest(
            unit,
            fingerprint(inputs),
            dict(inputs),
            fingerprint(content),
            files,
            facts,
            round(seconds, 3),
            versions,
        )
        for path in (*names.values(), *self._folders(names.values())):
            sync(path)  # content must be on disk before the name under which it is found
        if self.is_folder:
            write_json(self.work / "manifest.json", manifest.as_json())
            self.recover()
        else:
            for name, path in names.items():
                os.replace(path, self.path.parent / name)
            sync(self.path.parent)
            shutil.rmtree(self.work)
            write_json(self.manifest_path, manifest.as_json())
        return manifest

    def _folders(self, paths: Iterable[Path]) -> list[Path]:
        """Return the folders that contain these files, innermost first."""
        folders = {parent for path in paths for parent in path.parents} | {self.work}
        inside = [folder for folder in folders if folder.is_relative_to(self.work)]
        return sorted(inside, key=lambda folder: -len(folder.parts))

    def recover(self) -> None:
        """Move finished work into place, at whatever moment a run was killed.

        A work folder with a manifest is complete; until then nothing that a run resumes from is
        deleted.

        Raises:
            UserError: the artifact is a symbolic link to something that does not exist.
        """
        if self.is_folder and (self.work / "manifest.json").exists():
            shutil.rmtree(self.work / CHECKPOINTS, ignore_errors=True)
            (self.work / _MARK).unlink(missing_ok=True)
            place, work = self._place, self.work
            if place.exists():
                self._delete_old()
                os.rename(place, self._old)
            os.rename(work, place)
            sync(place.parent)
        self._delete_old()
        if self.path.is_symlink() and not self.path.exists():
            raise UserError(
                f"{self.path}: a symbolic link to {self._place}, which does not exist; mount the "
                "disk, or delete the link"
            )

    def _delete_old(self) -> None:
        if self._old.is_symlink():  # firstcli 0.1 moved the link instead of the linked folder
            self._old.unlink()
        shutil.rmtree(self._old, ignore_errors=True)
