"""Damaged knowledge: named, never redone unasked, and with `--repair` only where it must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from firstcli.errors import UserError, shortened
from firstcli.pipeline.fingerprints import FORMATS, reads_of
from firstcli.workspace.artifacts import Digests, fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


def mend(run: Run, unit: Unit, recipe: Path, *, repair: bool) -> None:
    """Let damaged shards be redone if that is asked for; knowledge is too dear to redo unasked.

    Raises:
        UserError: shards are damaged or missing and `repair` is not given, the manifest is
            damaged, or a newer firstcli made all this.
    """
    artifact, command = unit.artifact, f"`first extract {recipe}"
    if _is_stale(run, unit):  # it will be redone, and stays until that is complete
        return
    damaged = artifact.damage(Digests() if repair else run.digests)
    if repair:
        damaged += _unsound(artifact.path, damaged)
    if not damaged:
        _refuse_newer(run, unit, command)
        return
    found = f"{artifact.path}: {shortened(damaged, 3)}: damaged or missing"
    if artifact.manifest_path.name in damaged:  # nothing says what the shards were made from
        raise UserError(f"{found}; {command} --force` redoes all")
    if not repair:
        raise UserError(f"{found}; {command} --repair` redoes just that, --force all")
    run.console.say(f"{found}; to be redone")
    artifact.reopen(damaged)


def _is_stale(run: Run, unit: Unit) -> bool:
    manifest = unit.artifact.written()
    if manifest is None or int(manifest.reads["format"]) > FORMATS["extract"]:
        return False
    known = all(key in run.manifests for key in unit.needs)
    return not known or manifest.fingerprint != fingerprint(reads_of(run, unit))


def _unsound(folder: Path, but: Sequence[str]) -> list[str]:
    """Name shards that were damaged before their manifest was written, so that it knows nothing."""
    from firstcli.knowledge.shards import is_sound

    paths = sorted(folder.glob("shard-*.parquet"))
    return [path.name for path in paths if path.name not in but and not is_sound(path)]


def _refuse_newer(run: Run, unit: Unit, command: str) -> None:
    manifest = unit.artifact.manifest(run.digests)
    made_by = int(manifest.reads["format"]) if manifest else 0
    if made_by > FORMATS["extract"]:
        raise UserError(
            f"{unit.artifact.path}: made by a newer firstcli (format {made_by}, this one makes "
            f"{FORMATS['extract']}); update firstcli, or redo it with {command} --force`"
        )
