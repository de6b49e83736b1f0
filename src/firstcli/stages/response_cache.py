"""Where responses are kept as soon as they are written, until and after their stage ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from firstcli.api import Sample
from firstcli.recipe.sections import Sampling
from firstcli.stages import fingerprints
from firstcli.workspace import responses
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.responses import Response, prompt_digest, request_digest
from firstcli.workspace.run import Run
from firstcli.workspace.units import Unit

CACHE = ".responses"
"""Folder of the caches, in the run folder."""


@dataclass(frozen=True, slots=True)
class PromptsToWrite:
    """The prompts after which the teacher writes, and how it does."""

    prompts: Sequence[Sample]
    digest_of: Callable[[Sample], str]
    """Returns what a prompt's text is kept under."""
    sampling: Sampling

    @property
    def digests(self) -> set[str]:
        """What all texts are kept under."""
        return set(map(self.digest_of, self.prompts))


def prompts_to_write(run: Run, unit: Unit) -> PromptsToWrite:
    """Return what the teacher writes in a unit: responses, or text for copies."""
    if unit.part != "copies":
        sampling = run.recipe.knowledge.sampler
        return PromptsToWrite(
            run.prompts, lambda sample: prompt_digest(sample.as_teacher.prompt), sampling
        )
    settings = run.recipe.writing
    assert settings
    return PromptsToWrite(run.rewording_requests, request_digest, Sampling(**asdict(settings)))


def cache_of(run: Run, unit: Unit) -> Path:
    """Return the cache of a unit's responses, which a digest of teacher and settings names."""
    return run.folder / CACHE / _identity(run, unit)


def _identity(run: Run, unit: Unit) -> str:
    """Return a digest of what responses depend on besides their prompts."""
    contents = " ".join(run.manifests[key].content for key in unit.needs)
    depends_on = fingerprints.predictions(run, "teacher")
    sampling = prompts_to_write(run, unit).sampling
    depends_on |= fingerprints.flat("knowledge", {"sampling": sampling.model_dump()})
    if unit.part == "copies":
        depends_on["written for"] = unit.part
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
