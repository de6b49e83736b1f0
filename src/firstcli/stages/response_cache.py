"""Where responses are kept as soon as they are written, until and after their stage ends."""

from __future__ import annotations

from pathlib import Path

from firstcli.stages import fingerprints
from firstcli.workspace import responses
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.responses import Response
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

CACHE = ".responses"
"""Folder of the caches, in the run folder."""


def cache_of(run: Run, unit: Unit) -> Path:
    """Return the cache of a unit's responses, which a digest of teacher and settings names."""
    return run.folder / CACHE / _identity(run, unit)


def _identity(run: Run, unit: Unit) -> str:
    """Return a digest of what responses depend on besides their prompts."""
    contents = " ".join(run.manifests[key].content for key in unit.needs)
    depends_on = fingerprints.predictions(run, "teacher")
    depends_on |= fingerprints.flat("knowledge", run.recipe.knowledge.writing())
    depends_on["teacher"] = contents or run.checkpoint_identity("teacher")
    depends_on["longest sample"] = fingerprints.longest_response(run)
    depends_on["seed"] = run.recipe.seed
    return fingerprint(fingerprints.as_text(depends_on))[:16]


def known_in(cache: Path) -> dict[str, Response]:
    """Return all responses that any process has written to a cache, by their prompts' digests."""
    known: dict[str, Response] = {}
    for path in sorted(cache.glob("*.jsonl")):
        known |= responses.read(path)
    return known
