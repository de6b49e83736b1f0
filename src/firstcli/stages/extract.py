"""Stage `extract`: the teacher's top-k log-probabilities at every supervised position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.stages import checks, fingerprints
from firstcli.stages.base import Facts, Option, Stage
from firstcli.stages.checks import SharedCheck
from firstcli.stages.finetune import FINETUNE
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Part, Unit, learns_unlabelled, needs_fit, part_of

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recipe.schema import Recipe
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.workspace.run import Run


@dataclass(frozen=True, slots=True)
class ExtractFacts(Facts):
    """What a part's knowledge holds, what storing it costs, and how right the teacher is."""

    samples: int
    positions: int
    bytes_per_position: float
    mean_top_k_mass: float
    mean_probability_error: float
    mean_mass_error: float
    mean_kl: float
    max_probability_error: float
    max_mass_error: float
    judged: int
    """Positions over which confidence and accuracy of the top token are averaged."""
    confidence: float
    accuracy: float | None = None
    """None for samples without a label."""
    batches_halved: int | None = None


class Extract(Stage):
    """Stores the knowledge of every part of the training split that arms need."""

    name = "extract"
    help = "Store the teacher's top-k probabilities over the training data."
    example = "recipe.yaml --verify 100"
    format = 4  # float32 logits of half-precision products
    shared = True
    precious = True
    checks = (checks.TOKENIZERS, checks.TOP_K, checks.OVERLAP, checks.UNPINNED)
    why_nothing = "every arm learns labels"
    options = (
        Option("repair", "Extract only the shards that are damaged or missing.", False),
        Option("verify", "Score N random samples again with the teacher and compare.", 0, "N", 0),
    )

    def key(self, part: Part) -> str:
        return f"{self.name} {part}"

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        arms = [arm for arm in recipe.arms.values() if arm.learn == "knowledge"]
        teacher = FINETUNE.teacher_keys(recipe)
        parts: dict[Part, tuple[str, ...]] = {part_of(recipe, arm): teacher for arm in arms}
        if "out-of-fold" in parts:
            parts["out-of-fold"] = FINETUNE.fold_keys(recipe)
        if any(map(needs_fit, arms)):
            parts["validation"] = teacher
        if any(learns_unlabelled(recipe, arm) for arm in arms):
            parts["unlabelled"] = teacher  # which has never seen them, with and without folds
        for part, needs in parts.items():
            artifact = Artifact(folder / "knowledge" / part, True)
            yield Unit(self.key(part), self.name, artifact, needs, part=part)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        inputs = fingerprints.predictions(run, "teacher")
        inputs |= fingerprints.flat("knowledge", run.recipe.knowledge.stored())
        inputs[f"{unit.part} samples"] = run.part_content(unit.part)
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs["shared vocabulary"] = fingerprints.shared_vocabulary(run)
        return inputs

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        return (*self.checks, *checks.untrained_teacher(run, unit.role))

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.data.encoded import lengths_of
        from firstcli.runtime.console import size
        from firstcli.stages import inputs, reading_memory, scoring

        if unit.part == "validation" and not run.training.validation:
            raise UserError(
                f"train.validation: {run.recipe.train.validation} of the training split leaves no "
                "sample to fit a recalibrator on; raise it"
            )
        if unit.part == "unlabelled" and not run.training.unlabelled:
            raise UserError(
                "train.unlabelled: there is no row to use; give rows whose prompts do not also "
                "occur with a label, or leave it out"
            )
        rows = inputs.training_rows(run, "teacher", unit.part)
        scoring.shards_of(run, unit)
        stored = size(self.disk(run, unit))
        lengths = lengths_of(rows)
        needed = reading_memory.check(run, unit.role, lengths, scoring.EXTRACTION_TOKENS)
        return (
            f"{len(rows)} samples, {inputs.positions(rows)} positions; {stored} of knowledge; "
            f"{needed}"
        )

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.knowledge import store
        from firstcli.stages import inputs

        section = run.recipe.knowledge
        positions = inputs.positions(inputs.training_rows(run, "teacher", unit.part))
        return int(positions * store.bytes_per_position(section.top_k, section.precision))

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return probe.extraction(unit)

    def resumption(self, folder: Path) -> str:
        from firstcli.knowledge.shards import shard_facts

        finished = list(filter(None, map(shard_facts, folder.glob("shard-*.parquet"))))
        if not finished:
            return ""
        total = finished[0].get("shards")
        return f"shard {len(finished)}" + (f" of {total}" if total else "")

    def in_words(self, run: Run, unit: Unit) -> list[str]:
        from firstcli.runtime.console import percent, size

        manifest = run.manifests[unit.key]
        facts = ExtractFacts.of(manifest.facts)
        stored = sum(file["size"] for file in manifest.files.values())
        phrases = [f"{facts.positions:,} positions", size(stored)]
        phrases.append(f"top {run.recipe.knowledge.top_k} hold {percent(facts.mean_top_k_mass)}")
        if facts.judged:
            right = "" if facts.accuracy is None else f"right {percent(facts.accuracy)}, "
            phrases.append(f"teacher {right}says {percent(facts.confidence)}")
        if facts.batches_halved:
            phrases.append(f"{facts.batches_halved:,} batches halved")
        return phrases

    def unsound_files(self, folder: Path) -> list[str]:
        from firstcli.knowledge.shards import is_sound

        paths = sorted(folder.glob("shard-*.parquet"))
        return [path.name for path in paths if not is_sound(path)]

    def work(self, run: Run, unit: Unit, folder: Path) -> ExtractFacts | None:
        from firstcli.stages import extraction

        facts = extraction.extract(run, unit, folder)
        return None if facts is None else ExtractFacts(**facts)

    def finish(
        self, run: Run, units: Sequence[Unit], options: Mapping[str, Any]
    ) -> dict[str, JSON]:
        from firstcli.stages import extraction

        if not (samples := options.get("verify")):
            return {}
        return distributed.by_first(
            lambda: {
                "verified": {unit.key: extraction.verify(run, unit, samples) for unit in units}
            }
        )


EXTRACT = Extract()
