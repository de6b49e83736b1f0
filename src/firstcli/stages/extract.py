"""Stage `extract`: the teacher's top-k log-probabilities at every supervised position."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstcli.errors import UserError
from firstcli.runtime import distributed
from firstcli.runtime.files import write_text
from firstcli.stages import checks
from firstcli.stages.base import Facts, Option, Stage
from firstcli.stages.finetune import FINETUNE
from firstcli.workspace.artifacts import Artifact
from firstcli.workspace.units import Part, Unit, needs_fit, part_of

if TYPE_CHECKING:
    from firstcli.api import JSON
    from firstcli.data.encoding import EncodedSample
    from firstcli.knowledge.top_k import TopK
    from firstcli.recipe.schema import Recipe
    from firstcli.stages.probe import CostEstimate, Probe
    from firstcli.stages.scoring import ShardSamples, TeacherScorer
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
    accuracy: float
    batches_halved: int | None = None


class Extract(Stage):
    """Stores the knowledge of every part of the training split that arms need."""

    name = "extract"
    help = "Store the teacher's top-k probabilities over the training data."
    format = 3  # the teacher's confidence in its top token, and concentration.json
    shared = True
    precious = True
    checks = (checks.TOKENIZERS, checks.TOP_K, checks.OVERLAP, checks.UNPINNED)
    options = (
        Option("repair", "Extract only the shards that are damaged or missing.", False),
        Option(
            "verify",
            "Score N random samples again with the teacher and compare.",
            0,
            metavar="N",
            minimum=0,
        ),
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
        for part, needs in parts.items():
            artifact = Artifact(folder / "knowledge" / part, True)
            yield Unit(self.key(part), self.name, artifact, needs, part=part)

    def why_nothing(self, recipe: Recipe) -> str:
        return "every arm learns labels"

    def fingerprint_inputs(self, run: Run, unit: Unit) -> Mapping[str, object]:
        from firstcli.stages import fingerprints

        inputs = fingerprints.teacher(run) | fingerprints.part_samples(run, unit.part)
        inputs |= fingerprints.flat("knowledge", run.recipe.knowledge.stored())
        inputs["longest sample"] = fingerprints.longest_sample(run, unit)
        inputs["shared vocabulary"] = fingerprints.shared_vocabulary(run)
        return inputs

    def check(self, run: Run, unit: Unit) -> str:
        from firstcli.runtime.console import size
        from firstcli.stages import inputs, scoring

        if unit.part == "validation" and not run.training.validation:
            raise UserError(
                f"train.validation: {run.recipe.train.validation} of the training split leaves no "
                "row to fit a recalibrator on; raise it"
            )
        rows = inputs.training_rows(run, "teacher", unit.part)
        scoring.shards_of(run, unit)
        stored = size(self.disk(run, unit))
        return f"{len(rows)} samples, {inputs.positions(rows)} positions; {stored} of knowledge"

    def disk(self, run: Run, unit: Unit) -> int:
        from firstcli.knowledge import store
        from firstcli.stages import inputs

        section = run.recipe.knowledge
        positions = inputs.positions(inputs.training_rows(run, "teacher", unit.part))
        return int(positions * store.bytes_per_position(section.top_k, section.precision))

    def probe(self, probe: Probe, unit: Unit) -> CostEstimate | None:
        return probe.extraction(unit)

    def unsound_files(self, folder: Path) -> list[str]:
        from firstcli.knowledge.shards import is_sound

        paths = sorted(folder.glob("shard-*.parquet"))
        return [path.name for path in paths if not is_sound(path)]

    def work(self, run: Run, unit: Unit, folder: Path) -> ExtractFacts | None:
        """Write one shard after another; an interrupted run's finished shards are kept."""
        import torch

        with torch.inference_mode():
            return _extract(run, unit, folder)

    def finish(
        self, run: Run, units: Sequence[Unit], options: Mapping[str, Any]
    ) -> dict[str, JSON]:
        from firstcli.stages import verify

        if not (samples := options.get("verify")):
            return {}
        return distributed.by_first(
            lambda: {"verified": {unit.key: verify.verify(run, unit, samples) for unit in units}}
        )


def _extract(run: Run, unit: Unit, folder: Path) -> ExtractFacts | None:
    from firstcli.knowledge import concentration, store
    from firstcli.knowledge.shards import shard_path
    from firstcli.stages import scoring

    shards = scoring.shards_of(run, unit)
    scorer = scoring.TeacherScorer(run, unit.key)
    _write_shards(run, unit, folder, shards, scorer)
    halved = sum(distributed.gathered(scorer.halving.halved))
    if not distributed.is_first():
        return None
    paths = [shard_path(folder, index) for index in range(len(shards))]
    if unseen := sum(not path.exists() for path in paths):
        raise UserError(
            f"{folder}: {unseen} shards that other processes wrote are not visible here; all "
            "machines must share the run folder"
        )
    if unit.part != "validation" and not (folder / concentration.FILE_NAME).exists():
        measured = _concentration(run, scorer, shards)
        write_text(folder / concentration.FILE_NAME, json.dumps(measured) + "\n")
    return ExtractFacts(**store.summary(folder), batches_halved=halved or None)


def _write_shards(
    run: Run, unit: Unit, folder: Path, shards: Sequence[ShardSamples], scorer: TeacherScorer
) -> None:
    """Write the shards that an interrupted run has not finished; each process writes some."""
    from firstcli.data.encoded import has_answer_position
    from firstcli.knowledge.shards import StoreFormat, shard_path, write_shard
    from firstcli.stages import inputs

    format = StoreFormat(
        **run.recipe.knowledge.stored(),
        split=unit.part,
        shards=len(shards),
        teacher=distributed.by_first(lambda: _teacher_identity(run, unit)),
        tokenizer=inputs.vocabulary_digest(run, "teacher"),
    )
    missing = distributed.by_first(lambda: _missing_shards(folder, len(shards)))
    samples_of = [len(shard.rows) for shard in shards]
    if done := sum(samples_of) - sum(samples_of[index] for index in missing):
        run.console.say(f"{unit.key}: resuming after {done} finished samples")
    answers_only = bool(has_answer_position(inputs.training_rows(run, "teacher", unit.part)).any())
    # Each process takes whole shards, whose content depends on the data alone.
    ours = missing[distributed.rank() :: distributed.count()]
    total = sum(samples_of[index] for index in ours)
    with run.console.progress(unit.key, total, "samples") as advance:
        for index in ours:
            rows = shards[index].rows
            knowledge = scorer(shards[index], run.recipe.knowledge.top_k, advance)
            path, ordered = shard_path(folder, index), [knowledge[row.id] for row in rows]
            write_shard(path, rows, ordered, format, _top_1(rows, knowledge, answers_only))


def _concentration(
    run: Run, scorer: TeacherScorer, shards: Sequence[ShardSamples]
) -> dict[str, Any]:
    """Score some samples once more, with many more tokens than the store keeps."""
    from firstcli.knowledge import concentration
    from firstcli.stages import inputs, scoring

    width = min(concentration.RANKS, inputs.shared_vocabulary(run))
    total = sum(len(shard.rows) for shard in shards)
    rows: list[EncodedSample] = []
    knowledge: dict[str, TopK] = {}
    for shard in shards:
        drawn = concentration.subset(shard.rows, total)
        knowledge |= scorer(scoring.ShardSamples(drawn, shard.fold), width)
        rows += drawn
    section = run.recipe.knowledge
    wide = [knowledge[row.id] for row in rows]
    return concentration.measure(rows, wide, section.precision, section.top_k)


def _top_1(
    rows: Sequence[EncodedSample], knowledge: Mapping[str, TopK], answers_only: bool
) -> dict[str, Any]:
    """Compare the top token's probability with how often it is the label.

    A teacher is more confident, and more often right, on samples that it was fine-tuned on.

    Args:
        rows: samples of one shard.
        knowledge: the top k of every sample, by id.
        answers_only: count only the answer positions, which tell the candidates apart.
    """
    import numpy as np

    confidence, correct = [], []
    for row in rows:
        top = knowledge[row.id]
        positions: Any = slice(None)
        if answers_only:
            positions = np.arange(row.start, len(row.input_ids)) == row.answer_position
        confidence.append(np.exp(top.log_probs[positions, 0], dtype=np.float64))
        correct.append(top.token_ids[positions, 0] == row.targets[positions])
    return {
        "judged": sum(map(len, confidence)),
        "confidence": float(np.concatenate(confidence).sum()),
        "correct": int(np.concatenate(correct).sum()),
    }


def _missing_shards(folder: Path, count: int) -> list[int]:
    """Return the shards that an interrupted run has not finished."""
    from firstcli.knowledge.shards import shard_facts, shard_path

    paths = [shard_path(folder, index) for index in range(count)]
    return [index for index, path in enumerate(paths) if shard_facts(path) is None]


def _teacher_identity(run: Run, unit: Unit) -> str:
    """Return what identifies the teacher: its content, or its checkpoint."""
    contents = [run.manifests[key].content for key in unit.needs]
    return " ".join(contents) or run.checkpoint_identity("teacher")


EXTRACT = Extract()
