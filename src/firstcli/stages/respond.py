"""Stage `respond`: the teacher writes the responses of prompts that have none."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firstcli.errors import UserError
from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Facts, Stage
from firstcli.stages.checks import SharedCheck
from firstcli.stages.finetune import FINETUNE
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    RESPONSES_KEY,
    REWORDINGS,
    REWORDINGS_KEY,
    Unit,
    responses_path,
)

if TYPE_CHECKING:
    from firstcli.recipe.schema import Recipe
    from firstcli.workspace.run import Run


@dataclass(frozen=True, slots=True)
class RespondFacts(Facts):
    """How many responses the teacher has written, and how many students can learn.

    Of texts for copies, the augmenter decides later which can be used.
    """

    prompts: int
    written: int
    """Samples whose response the teacher ended itself; students learn these."""
    mean_tokens: float
    """Mean length of these responses, with the token that ends them."""
    unfinished: int
    """Samples left out because the response reached the limit of tokens."""
    empty: int
    """Samples left out because the response has no text."""
    too_long: int
    """Samples left out because the prompt leaves no room for a response."""


class Respond(Stage):
    """Writes the responses that students learn from besides, or instead of, those of the data."""

    name = "respond"
    help = "Let the teacher write responses to prompts that have none."
    example = "recipe.yaml --set knowledge.responses=teacher"
    shared = True
    precious = True
    checks = (checks.UNPINNED,)
    why_nothing = (
        "knowledge.responses is `data`, or no arm learns from the teacher; and no augmenter needs "
        "text"
    )

    def keys(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the key of the stage's unit, if there is one."""
        learns = any(arm.learn == "knowledge" for arm in recipe.arms.values())
        writes = learns and recipe.knowledge.responses != "data"
        return (RESPONSES_KEY,) if writes else ()

    def keys_of_copies(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the key of the unit that writes text for copies, if there is one."""
        return (REWORDINGS_KEY,) if recipe.writing is not None else ()

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        for key in self.keys_of_copies(recipe):
            artifact = Artifact(folder / REWORDINGS, True)
            yield Unit(key, self.name, artifact, FINETUNE.teacher_keys(recipe), part="copies")
        for key in self.keys(recipe):
            artifact = Artifact(responses_path(folder), True)
            needs = FINETUNE.teacher_keys(recipe)
            yield Unit(key, self.name, artifact, needs, part="written")

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        inputs = fingerprints.predictions(run, "teacher")
        if unit.part == "copies":
            inputs |= fingerprints.rewordings(run)
        else:
            inputs |= fingerprints.flat("knowledge", run.recipe.knowledge.writing())
            inputs["prompts"] = run.prompts_content
        inputs["longest sample"] = fingerprints.longest_response(run)
        inputs["seed"] = run.recipe.seed
        return inputs

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        return (*self.checks, *checks.untrained_teacher(run, unit.role))

    def check(self, run: Run, unit: Unit) -> str:
        if (settings := run.recipe.writing) and unit.part == "copies":
            if not run.rewording_requests:
                raise UserError(
                    "train.augment: no prompt has a text that the teacher could write in other "
                    "words, because none is followed by the end of a template; use perturb instead"
                )
            count, most = len(run.rewording_requests), settings.max_new_tokens
            return f"{count} texts for copies, up to {most} tokens each"
        if not run.prompts:
            raise UserError(
                "knowledge.responses: every row of the training split has a response, so there is "
                "none to write; leave it out, or set `teacher-always`"
            )
        most = run.recipe.knowledge.sampler.max_new_tokens
        return f"{len(run.prompts)} prompts, up to {most} tokens each"

    def disk(self, run: Run, unit: Unit) -> int:
        # About four characters per token, in the cache and in the result.
        if (settings := run.recipe.writing) and unit.part == "copies":
            return 8 * len(run.rewording_requests) * settings.max_new_tokens
        return 8 * len(run.prompts) * run.recipe.knowledge.sampler.max_new_tokens

    def resumption(self, run: Run, unit: Unit) -> str:
        from firstcli.stages.response_cache import cache_of, known_in, prompts_to_write

        wanted = prompts_to_write(run, unit).digests
        written = len(known_in(cache_of(run, unit)).keys() & wanted)
        what = "text" if unit.part == "copies" else "response"
        return f"{what} {written:,} of {len(wanted):,}" if written else ""

    def forget(self, run: Run, unit: Unit) -> None:
        from firstcli.stages.response_cache import cache_of

        if (cache := cache_of(run, unit)).is_dir():
            shutil.rmtree(cache)

    def work(self, run: Run, unit: Unit, folder: Path) -> RespondFacts | None:
        from firstcli.stages import writing

        facts = writing.write(run, unit, folder)
        return None if facts is None else RespondFacts(**facts)

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        facts = RespondFacts.of(run.manifests[unit.key].facts)
        if unit.part == "copies":
            return [f"{facts.prompts:,} texts", f"{facts.mean_tokens:.0f} tokens on average"]
        phrases = [f"{facts.written:,} of {facts.prompts:,} responses"]
        phrases.append(f"{facts.mean_tokens:.0f} tokens on average")
        for name in ("unfinished", "empty", "too_long"):
            if count := getattr(facts, name):
                phrases.append(f"{count:,} {name.replace('_', ' ')}")
        return phrases


RESPOND = Respond()
