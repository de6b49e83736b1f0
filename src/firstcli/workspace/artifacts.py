"""Artifacts that prove themselves: work folders, manifests written last, and the run's lock.

An artifact is a folder (`students/first/`, its manifest inside) or one file
(`calibration/first.json`, its manifest beside it). Work happens in a hidden sibling
(`students/.first.partial/`) that a killed run leaves behind and the same run takes up again; the
finished artifact then takes the old one's place, so a stale one stays until its successor is whole.
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

from firstcli.errors import UserError
from firstcli.runtime.files import suppress_read_only, sync, write_json, write_text

CHECKPOINTS = "checkpoints"
"""Folder within a work folder that training resumes from; it is no part of the artifact."""
_MARK = ".fingerprint"

FORMAT = 1
"""Format of manifests; one of a newer firstcli is never taken for a missing one."""

INCIDENTAL = ("README.md", "training_log.jsonl", "manifest.json", "concentration.json")
"""Files that say how an artifact came about; they do not count as its content."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact was made from and what it consists of."""

    unit: str
    fingerprint: str
    reads: dict[str, str]
    """Everything the fingerprint covers, so that a plan can say what changed."""
    content: str
    """Digest of the files that matter to dependants."""
    files: dict[str, dict[str, Any]]
    """Size in bytes and SHA-256 of every file, by relative name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers to show: positions, loss, temperature, ..."""
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT


def fingerprint(reads: Mapping[str, str]) -> str:
    """Return one digest of everything that a unit reads."""
    return hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest()


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Say how two sets of reads differ, one phrase a key."""

    def phrase(key: str) -> str:
        before, after = old.get(key), new.get(key)
        if before is not None and after is not None and len(before) + len(after) < 60:
            return f"{key} changed ({before} -> {after})"
        return f"{key} changed" if before and after else f"{key} {'removed' if before else 'added'}"

    return [phrase(key) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


class Digests:
    """SHA-256 of files, remembered by size and modification time, so large ones are read once."""

    def __init__(self, memory: Path = Path(os.devnull)) -> None:
        self._path = memory
        try:
            self._known: dict[str, Any] = json.loads(memory.read_text("utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def of_file(self, path: Path) -> str:
        stat = path.stat()
        key = os.path.relpath(path.resolve(), self._path.parent.resolve())
        seen = [stat.st_size, stat.st_mtime_ns]
        if (known := self._known.get(key)) is None or known[:2] != seen:
            with path.open("rb") as file:
                known = [*seen, hashlib.file_digest(file, "sha256").hexdigest()]
            self._known[key] = known
        return str(known[2])

    def of_checkpoint(self, folder: Path) -> str:
        """Digest a model folder: weights, configuration and tokenizer."""
        kept = (".safetensors", ".json", ".model", ".txt", ".jinja", ".py")
        names = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix in kept and path.is_file() and path.name not in INCIDENTAL
        )
        parts = {name: self.of_file(folder / name) for name in names}
        return fingerprint(parts)

    def save(self) -> None:
        with suppress_read_only():
            write_json(self._path, self._known)


@dataclass(frozen=True, slots=True)
class Artifact:
    """Where one unit's result lives."""

    path: Path
    is_folder: bool

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json" if self.is_folder else self._sibling(".manifest.json")

    @property
    def work(self) -> Path:
        return self.path.parent / f".{self._stem}.partial"

    @property
    def _stem(self) -> str:
        # Not Path.stem: an arm may be called `first.v2`.
        return self.path.name if self.is_folder else self.path.name[: -len(self.path.suffix)]

    def _sibling(self, ending: str) -> Path:
        return self.path.parent / (self._stem + ending)

    @property
    def _old(self) -> Path:
        return self.path.parent / f".{self._stem}.old"

    def manifest(self, digests: Digests) -> Manifest | None:
        """Return the manifest of a finished, unchanged artifact, else None.

        Raises:
            UserError: a newer firstcli made it.
        """
        manifest = self.written()
        return None if manifest is None or self._damaged(manifest, digests) else manifest

    def damage(self, digests: Digests) -> list[str]:
        """Name the files of a finished artifact that are missing or not as they were written.

        A disk's own error changes neither size nor time: only `Digests()` without memory finds it.
        """
        manifest = self.written()
        if manifest is None:  # a folder gets its name with its manifest in it
            begun = self.path.exists() if self.is_folder else self.manifest_path.exists()
            return [self.manifest_path.name] if begun else []
        return self._damaged(manifest, digests)

    def written(self) -> Manifest | None:
        """Return the manifest as it was written, whatever has become of the files since."""
        try:
            found = json.loads(self.manifest_path.read_text("utf-8"))
            if found.get("format", FORMAT) > FORMAT:
                raise UserError(
                    f"{self.manifest_path}: written by a newer firstcli (format "
                    f"{found['format']}, this one knows {FORMAT}); update firstcli, or choose "
                    "another --run-dir"
                )
            manifest = Manifest(**found)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        # A flipped bit is damage, and not a recipe that has changed.
        return manifest if manifest.fingerprint == fingerprint(manifest.reads) else None

    def _damaged(self, manifest: Manifest, digests: Digests) -> list[str]:
        root = self.path if self.is_folder else self.path.parent
        return [
            name
            for name, facts in manifest.files.items()
            if not (path := root / name).is_file()
            or path.stat().st_size != facts["size"]
            or digests.of_file(path) != facts["sha256"]
        ]

    def reopen(self, damaged: Iterable[str]) -> None:
        """Make a finished folder a work folder again, without the files that are damaged."""
        manifest = self.written()
        assert manifest is not None and self.is_folder
        shutil.rmtree(self.work, ignore_errors=True)
        for name in damaged:
            (self.path / name).unlink(missing_ok=True)
        # As long as the manifest is there, `recover` takes all this back, and it is damaged again.
        os.rename(self.path, self.work)
        sync(self.path.parent)
        write_text(self.work / _MARK, manifest.fingerprint)
        (self.work / "manifest.json").unlink()
        sync(self.work)

    def begin(self, fingerprint: str) -> Path:
        """Return the folder to work in, with what an interrupted run of this work left there."""
        mark = self.work / _MARK
        if not (mark.is_file() and mark.read_text("utf-8") == fingerprint):
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            write_text(mark, fingerprint)
        return self.work

    def commit(
        self,
        unit: str,
        reads: Mapping[str, str],
        facts: dict[str, Any],
        seconds: float,
        versions: dict[str, str],
        digests: Digests,
    ) -> Manifest:
        """Make the work folder's content the artifact; the manifest comes last."""
        names = {
            path.relative_to(self.work).as_posix(): path
            for path in sorted(self.work.rglob("*"))
            if path.is_file() and path.relative_to(self.work).parts[0] != CHECKPOINTS
        }
        names = {name: path for name, path in names.items() if not name.startswith(".")}
        files = {
            name: {"size": path.stat().st_size, "sha256": digests.of_file(path)}
            for name, path in names.items()
        }
        content = {n: str(f["sha256"]) for n, f in files.items() if n not in INCIDENTAL}
        manifest = Manifest(
            unit,
            fingerprint(reads),
            dict(reads),
            fingerprint(content),
            files,
            facts,
            round(seconds, 3),
            versions,
        )
        for path in (*names.values(), *self._folders(names.values())):
            sync(path)  # what is inside must last before the name under which it is found
        if self.is_folder:
            write_json(self.work / "manifest.json", asdict(manifest))
            self.recover()
        else:
            for name, path in names.items():
                os.replace(path, self.path.parent / name)
            sync(self.path.parent)
            shutil.rmtree(self.work)
            write_json(self.manifest_path, asdict(manifest))
        return manifest

    def _folders(self, paths: Iterable[Path]) -> list[Path]:
        """Return the folders that hold these files, the innermost first."""
        found = {parent for path in paths for parent in path.parents} | {self.work}
        inside = [folder for folder in found if folder.is_relative_to(self.work)]
        return sorted(inside, key=lambda folder: -len(folder.parts))

    def recover(self) -> None:
        """Put finished work in its place, whenever a kill came.

        A work folder with a manifest is whole; until then nothing to resume from is deleted.
        """
        if self.is_folder and (self.work / "manifest.json").exists():
            shutil.rmtree(self.work / CHECKPOINTS, ignore_errors=True)
            (self.work / _MARK).unlink(missing_ok=True)
            if self.path.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                os.rename(self.path, self._old)
            os.rename(self.work, self.path)
            sync(self.path.parent)
        shutil.rmtree(self._old, ignore_errors=True)
