"""Damaged artifacts of precious stages: report them, and repair them only on request."""

from __future__ import annotations

from firstcli.errors import UserError, shortened
from firstcli.pipeline import plan
from firstcli.stages import stage_of
from firstcli.workspace.artifacts import Digests, fingerprint
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit


def repair(run: Run, unit: Unit, request: plan.Request) -> None:
    """Find damaged files of a precious stage's artifact; on request, let the stage rebuild them.

    Raises:
        UserError: files are damaged or missing and no repair is requested, the manifest is
            damaged, or a newer firstcli made the artifact.
    """
    requested = request.stage_options.get("repair")
    artifact, stage = unit.artifact, stage_of(unit)
    command = f"`{request.command(stage.name)}"
    manifest = artifact.written()
    made_by = int(manifest.inputs["format"]) if manifest else 0
    mark = manifest.fingerprint if manifest else ""
    if manifest and made_by <= stage.format:
        if any(key not in run.manifests for key in unit.needs):
            return
        inputs = plan.fingerprint_inputs(run, unit)
        if plan.recorded_inputs(run, manifest, inputs) != inputs:
            return  # it is rebuilt, and stays until its successor is complete
        mark = fingerprint(inputs)  # a manifest of format 1 has fewer inputs
    damaged = artifact.damage(Digests() if requested else run.digests)
    if requested:
        known = set(damaged)
        damaged += [name for name in stage.unsound_files(artifact.path) if name not in known]
    if not damaged:
        if made_by > stage.format and artifact.manifest(run.digests):
            raise UserError(
                f"{artifact.path}: made by a newer firstcli (format {made_by}, this version makes "
                f"{stage.format}); upgrade firstcli, or rebuild it with {command} --force`"
            )
        return
    problem = f"{artifact.path}: {shortened(damaged, 3)}: damaged or missing"
    if artifact.manifest_path.name in damaged:  # nothing records what the files were made from
        raise UserError(f"{problem}; {command} --force` rebuilds everything")
    if not requested:
        raise UserError(
            f"{problem}; {command} --repair` rebuilds only these files, --force rebuilds everything"
        )
    run.console.say(f"{problem}; will be rebuilt")
    artifact.reopen(damaged, mark)
