"""Damaged artifacts of precious stages: report them, and repair them only on request."""

from __future__ import annotations

from pathlib import Path

from firstcli.errors import UserError, shortened
from firstcli.pipeline.plan import is_stale
from firstcli.stages import stage_of
from firstcli.workspace.artifacts import Digests
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


def repair(run: Run, unit: Unit, recipe: Path, *, requested: bool) -> None:
    """Find damaged files of an artifact; if a repair is requested, let the stage make them again.

    Args:
        run: the run.
        unit: a unit of a precious stage.
        recipe: path of the recipe, for messages.
        requested: whether the user asked for a repair.

    Raises:
        UserError: files are damaged or missing and no repair is requested, the manifest is
            damaged, or a newer firstcli made the artifact.
    """
    artifact, stage = unit.artifact, stage_of(unit)
    command = f"`first {stage.name} {recipe}"
    manifest = artifact.written()
    made_by = int(manifest.inputs["format"]) if manifest else 0
    if manifest and made_by <= stage.format and is_stale(run, unit, manifest):
        return  # it is rebuilt, and stays until its successor is complete
    damaged = artifact.damage(Digests() if requested else run.digests)
    if requested:
        known = set(damaged)
        damaged += [name for name in stage.unsound_files(artifact.path) if name not in known]
    if not damaged:
        if made_by > stage.format and artifact.manifest(run.digests):
            raise UserError(
                f"{artifact.path}: made by a newer firstcli (format {made_by}, this version makes "
                f"{stage.format}); update firstcli, or rebuild it with {command} --force`"
            )
        return
    problem = f"{artifact.path}: {shortened(damaged, 3)}: damaged or missing"
    if artifact.manifest_path.name in damaged:  # nothing records what the files were made from
        raise UserError(f"{problem}; {command} --force` rebuilds everything")
    if not requested:
        raise UserError(
            f"{problem}; {command} --repair` rebuilds just these files, --force everything"
        )
    run.console.say(f"{problem}; will be rebuilt")
    artifact.reopen(damaged)
