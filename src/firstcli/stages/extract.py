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
from firstcli.stages.respond import RESPOND
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import (
    Part,
    Unit,
    follows_gap,
    further_teachers,
    knowledge_path,
    learned_parts,
    needs_fit,
    teachers_of,
)

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.recipe.schema import Recipe
    from firstcli.recipe.sections import Arm
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.workspace.run import Run


SAMPLES = 100
"""Questions whose candidates are counted for the estimate of the size on disk."""
MEASURED_WIDTH = 5
"""The largest top k for which the size of answers was measured."""


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
    mean_distinct: float | None = None
    """With draws, how many different tokens were drawn per position."""
    batches_halved: int | None = None
    requests: int | None = None
    """What a remote teacher was asked, and how many tokens it read and wrote."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    """In the currency of the prices in the recipe, if it has any."""


class Extract(Stage):
    """Stores the knowledge of every part of the training split that arms need."""

    name = "extract"
    help = "Store the teacher's top-k probabilities over the training data."
    example = "recipe.yaml --verify 100"
    format = 4  # float32 logits of half-precision products
    shared = True
    precious = True
    checks = (checks.OVERLAP, checks.UNPINNED)
    why_nothing = "every arm learns labels"
    options = (
        Option("repair", "Extract only the shards that are damaged or missing.", False),
        Option("verify", "Score N random samples again with the teacher and compare.", 0, "N", 0),
    )

    def key(self, part: Part, seed: int | None = None) -> str:
        return f"{self.name} {part}" + ("" if seed is None else f" seed {seed}")

    def keys(self, recipe: Recipe, arm: Arm, part: Part) -> list[str]:
        """Return the keys of the units that make the knowledge of a part that an arm learns."""
        return [self.key(part, seed) for seed in teachers_of(recipe, arm)]

    def units(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        arms = [arm for arm in recipe.arms.values() if arm.learn == "knowledge"]
        teacher = FINETUNE.teacher_keys(recipe)
        learned = {part for arm in arms for part in learned_parts(recipe, arm)}
        if any(needs_fit(arm) or follows_gap(recipe, arm) for arm in arms):
            learned.add("validation")
        # The teacher has never seen the unlabelled samples, with and without folds.
        needed: dict[Part, tuple[str, ...]] = {
            "train": teacher,
            "out-of-fold": FINETUNE.fold_keys(recipe),
            "validation": teacher,
            "unlabelled": teacher,
            "written": (*teacher, *RESPOND.keys(recipe)),
            "copies": (*teacher, *RESPOND.keys_of_copies(recipe)),
        }
        for part, needs in needed.items():
            if part not in learned:
                continue
            artifact = Artifact(knowledge_path(folder, part), True)
            yield Unit(self.key(part), self.name, artifact, needs, part=part)
        yield from self._of_further_teachers(recipe, folder)

    def _of_further_teachers(self, recipe: Recipe, folder: Path) -> Iterator[Unit]:
        arms = [arm for arm in recipe.arms.values() if arm.averages]
        parts = list(dict.fromkeys(part for arm in arms for part in learned_parts(recipe, arm)))
        parts += ["validation"] if any(map(needs_fit, arms)) else []
        for seed in further_teachers(recipe):
            for part in parts:
                written = RESPOND.keys(recipe) if part == "written" else ()
                written += RESPOND.keys_of_copies(recipe) if part == "copies" else ()
                needs = (*FINETUNE.teacher_keys(recipe, seed), *written)
                key, artifact = (
                    self.key(part, seed),
                    Artifact(knowledge_path(folder, part, seed), True),
                )
                yield Unit(key, self.name, artifact, needs, part=part, teacher_seed=seed)

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        inputs = fingerprints.predictions(run, "teacher")
        inputs |= fingerprints.flat("knowledge", run.recipe.knowledge.stored())
        if run.recipe.knowledge.draws is not None:
            inputs["seed of the draws"] = run.recipe.seed
        inputs[f"{unit.part} samples"] = run.part_content(unit.part)
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        if unit.part == "copies":
            inputs |= fingerprints.longest_copy(run, unit)
        if run.recipe.knowledge.over_candidates:
            inputs["candidates"] = fingerprints.knowledge_width(run)
        else:
            inputs["shared vocabulary"] = fingerprints.shared_vocabulary(run)
        return inputs

    def checks_of_knowledge(self, run: Run) -> tuple[SharedCheck, ...]:
        """Return the checks of everything that learns from knowledge."""
        if run.recipe.knowledge.over_candidates:
            return self.checks
        return (checks.TOKENIZERS, checks.TOP_K, *self.checks)

    def checks_of(self, run: Run, unit: Unit) -> Iterable[SharedCheck]:
        return (*self.checks_of_knowledge(run), *checks.untrained_teacher(run, unit.role))

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.data.encoded import lengths_of
        from firstcli.runtime.console import size
        from firstcli.stages import inputs, reading_memory, role_models, scoring
        from firstcli.stages.whole_candidates import CandidateSequences

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
        if not run.is_written(unit.part):
            what = "copies" if unit.part == "copies" else "responses"
            return f"the teacher's {what}, once it has written them"
        rows = inputs.knowledge_rows(run, unit.part)
        scoring.shards_of(run, unit)
        stored = size(self.disk(run, unit))
        text = f"{len(rows)} samples, {inputs.positions(rows)} positions; {stored} of knowledge"
        if role_models.remote(run, unit.role) is not None:
            from firstcli.stages import remote

            return f"{text}; about {remote.estimate(run, rows)}"
        if run.recipe.knowledge.over_candidates:
            sequences = CandidateSequences(inputs.candidate_questions(run, unit.part))
            text += f"; {len(sequences)} candidates of several tokens"
        lengths = lengths_of(rows)
        needed = reading_memory.check(run, unit.role, lengths, scoring.EXTRACTION_TOKENS)
        return f"{text}; {needed}"

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.data.encoded import lengths_of
        from firstcli.knowledge import concentration, store
        from firstcli.stages import extraction, inputs, teacher_knowledge

        width, section = teacher_knowledge.knowledge_width(run), run.recipe.knowledge
        precision, is_drawn = section.precision, section.draws is not None
        tokens_each = min(width, store.distinct_tokens(width)) if is_drawn else width
        each = store.bytes_per_position(tokens_each, precision)
        if not run.is_written(unit.part):
            if unit.part == "copies":
                train = inputs.knowledge_rows(run, "train")
                augment = run.recipe.augmentation
                each_sample = (
                    sum(ref.build().copies for ref in augment.augmenters) if augment else 0
                )
                most = inputs.positions(train) * each_sample
            else:
                most = len(run.prompts) * section.sampler.max_new_tokens
            return int(most * each) + store.bytes_of_shards(most, most, width)
        rows = inputs.knowledge_rows(run, unit.part)
        positions, tokens = inputs.positions(rows), int(lengths_of(rows).sum())
        teacher = run.recipe.teacher
        is_measured = is_drawn or width <= MEASURED_WIDTH
        foreseen = is_measured and teacher is not None and teacher.finetune is not None
        if run.recipe.train.task.plugin.has_candidates and foreseen:
            part = "train" if unit.part == "out-of-fold" else unit.part
            candidates = max(len(sample.candidates) for sample in run.samples_of(part)[:SAMPLES])
            mean = positions / len(rows)
            each = store.bytes_per_answer(mean, candidates, tokens_each, precision) / mean
        figure = concentration.BYTES if extraction.measures_concentration(run, unit) else 0
        return int(positions * each) + store.bytes_of_shards(positions, tokens, width) + figure

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        if probe.run.model_section(unit.role).plugin.is_remote:
            return None
        return probe.extraction(unit) if probe.run.is_written(unit.part) else None

    def resumption(self, run: Run, unit: Unit) -> str:
        from firstcli.knowledge.shards import shard_facts

        shards = unit.artifact.work.glob("shard-*.parquet")
        finished = list(filter(None, map(shard_facts, shards)))
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
        if facts.mean_distinct is not None:
            phrases.append(f"{outcomes(run.recipe)}, {facts.mean_distinct:.1f} different tokens")
        else:
            phrases.append(f"{outcomes(run.recipe)} hold {percent(facts.mean_top_k_mass)}")
        if facts.judged:
            right = "" if facts.accuracy is None else f"right {percent(facts.accuracy)}, "
            phrases.append(f"teacher {right}says {percent(facts.confidence)}")
        if facts.batches_halved:
            phrases.append(f"{facts.batches_halved:,} batches halved")
        if facts.requests is not None:
            from firstcli.api import RemoteUsage
            from firstcli.stages import remote

            counts = (facts.input_tokens or 0, facts.output_tokens or 0)
            phrases.append(remote.described(RemoteUsage(facts.requests, *counts, facts.cost)))
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


def outcomes(recipe: Recipe) -> str:
    """Name the outcomes of which probabilities are stored."""
    section = recipe.knowledge
    if section.draws is not None:
        return f"{section.draws} draws per position"
    return f"top {section.top_k}{' candidates' if section.over_candidates else ''}"


EXTRACT = Extract()
